"""What is drawn: torchvision's distributions, independence of the rest of the list, and the same bits everywhere."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import feeder
from feeder.pixels import operation_keys
from feeder.pixels.mixers import symmetric_beta
from feeder.pixels.policies import NARROW, OPERATIONS, WIDE
from tests.contracts.pixels import keys
from tests.peers import torchvision_transforms

GOLDEN = Path(__file__).parents[2] / "golden" / "pixels.json"
COUNT = 4000
BOUND = 2.69 * math.sqrt(2 / COUNT)  # of a two-sample Kolmogorov-Smirnov test at p = 1e-6


@pytest.fixture(scope="module")
def v2():
    transforms = torchvision_transforms()
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield transforms


def distance(first, second):
    """Return the Kolmogorov-Smirnov distance of two samples."""
    values = np.sort(np.concatenate((first, second)))
    ends = (np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (first, second))
    return np.abs(np.subtract(*ends)).max()


def assert_evenly(counts, shares=None):
    """A chi-square test: more than six standard deviations above its mean happens by chance once in a million."""
    expected = counts.sum() * (np.full(len(counts), 1 / len(counts)) if shares is None else np.asarray(shares))
    excess = ((counts - expected) ** 2 / expected).sum() - (len(counts) - 1)
    assert excess < 6 * math.sqrt(2 * len(counts))


def drawn(transform, height=64, width=48, seed=0, count=COUNT):
    return transform.draw(keys(count, seed), height, width)


class TestDistributions:
    def test_color_jitter(self, v2):
        arguments = (0.4, (0.2, 3.0), 1.5, 0.1)
        ours = drawn(feeder.ColorJitter(*arguments))
        theirs = [v2.ColorJitter(*arguments).make_params([]) for _ in range(COUNT)]
        for name in ("brightness", "contrast", "saturation", "hue"):
            assert distance(ours[name], np.array([params[f"{name}_factor"] for params in theirs])) < BOUND, name
        places = ours["order"] @ np.array([64, 16, 4, 1])
        assert len(np.unique(places)) == 24
        assert_evenly(np.unique(places, return_counts=True)[1])

    def test_gaussian_blur(self, v2):
        theirs = [v2.GaussianBlur(5).make_params([])["sigma"][0] for _ in range(COUNT)]
        assert distance(drawn(feeder.GaussianBlur(5))["sigma"], np.array(theirs)) < BOUND

    @pytest.mark.parametrize("arguments", [{}, {"scale": (0.3, 1.0), "ratio": (0.1, 9.0)}])
    def test_random_erasing(self, v2, arguments):
        import torch

        image = torch.zeros(3, 64, 48)
        transform = v2.RandomErasing(p=1.0, **arguments)
        theirs = [transform.make_params([image]) for _ in range(COUNT)]
        found = np.array([[p["i"], p["j"], p["h"], p["w"]] if p["v"] is not None else [0] * 4 for p in theirs])
        ours = drawn(feeder.RandomErasing(p=1.0, **arguments))["box"]
        for edge in range(4):
            assert distance(ours[:, edge], found[:, edge]) < BOUND, edge

    def test_random_apply_and_erasing_happen_with_their_probability(self):
        for p in (0.0, 0.25, 1.0):
            happened = (
                drawn(feeder.RandomApply([feeder.RandomInvert()], p=p))["apply"].mean(),
                drawn(feeder.RandomSolarize(128, p=p))["apply"].mean(),
                (drawn(feeder.RandomErasing(p=p))["box"][:, 2] > 0).mean(),
            )
            assert np.abs(np.array(happened) - p).max() <= 5 * math.sqrt(p * (1 - p) / COUNT)

    def test_random_choice_weighs(self):
        ops = [feeder.RandomInvert(), feeder.RandomEqualize(), feeder.RandomGrayscale()]
        assert_evenly(np.bincount(drawn(feeder.RandomChoice(ops))["choice"], minlength=3))
        counts = np.bincount(drawn(feeder.RandomChoice(ops, p=[3, 0, 1]))["choice"], minlength=3)
        assert counts[1] == 0
        assert_evenly(counts[[0, 2]], [0.75, 0.25])

    def test_rand_augment(self):
        params = drawn(feeder.RandAugment(num_ops=2, magnitude=5))
        for step in range(2):
            assert_evenly(np.bincount(params["operation"][:, step], minlength=len(OPERATIONS))[:-1])
        assert not (params["operation"] == OPERATIONS.index("Invert")).any()
        turned = params["magnitude"][params["operation"] == OPERATIONS.index("Rotate")]
        assert np.unique(np.abs(turned)).tolist() == [5.0]
        assert_evenly(np.unique(turned, return_counts=True)[1])

    def test_trivial_augment(self):
        params = drawn(feeder.TrivialAugmentWide(), count=20000)
        sheared = params["magnitude"][params["operation"] == OPERATIONS.index("ShearY")]
        assert_evenly(np.unique(np.abs(sheared), return_counts=True)[1])
        assert len(np.unique(np.abs(sheared))) == 31
        bits = params["magnitude"][params["operation"] == OPERATIONS.index("Posterize")]
        assert (bits.min(), bits.max()) == (2, 8)

    @pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
    def test_auto_augment(self, v2, policy):
        """Each operation at each place is as frequent as torchvision's table of pairs says, magnitudes included."""
        transform = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
        assert feeder.AutoAugment(v2.AutoAugmentPolicy(policy)) == feeder.AutoAugment(policy)
        params = drawn(feeder.AutoAugment(policy), count=20000)
        for step in range(2):
            expected = {}
            for pair in transform._policies:
                name, chance, level = pair[step]
                function, signed = transform._AUGMENTATION_SPACE[name]
                magnitudes = function(10, 64, 48)
                magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
                for sign in (1, -1) if signed else (1,):
                    key = (name, round(sign * magnitude, 6) + 0.0)
                    expected[key] = expected.get(key, 0) + chance / 25 / (2 if signed else 1)
                expected["Identity", 0.0] = expected.get(("Identity", 0.0), 0) + (1 - chance) / 25
            found = dict.fromkeys(expected, 0)
            for operation, magnitude in zip(params["operation"][:, step], params["magnitude"][:, step], strict=True):
                found[OPERATIONS[operation], round(float(magnitude), 6) + 0.0] += 1
            likely = [key for key in expected if expected[key] > 0]
            assert_evenly(np.array([found[key] for key in likely]), [expected[key] for key in likely])

    @pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 1.3, 4.0, 60.0])
    def test_shares_are_beta_distributed(self, alpha):
        theirs = np.random.default_rng(0).beta(alpha, alpha, 50000)
        assert distance(symmetric_beta(alpha, keys(500)), theirs) < 2.69 * math.sqrt(1 / 500 + 1 / 50000)

    def test_cut_mix_boxes(self, v2):
        import torch

        image = torch.zeros(2, 3, 64, 48)
        transform = v2.CutMix(num_classes=3)
        theirs = [transform.make_params([image]) for _ in range(COUNT)]
        ours = drawn(feeder.CutMix(num_classes=3))
        for edge in range(4):
            assert distance(ours["box"][:, edge], np.array([params["box"][edge] for params in theirs])) < BOUND
        assert distance(ours["lam"], np.array([params["lam_adjusted"] for params in theirs])) < BOUND


class TestMagnitudes:
    @pytest.mark.parametrize("size", [(1, 1), (32, 32), (224, 224), (331, 662), (97, 500)], ids=str)
    @pytest.mark.parametrize("bins", [2, 10, 31, 100])
    def test_tables_are_torchvisions_to_the_bit(self, v2, size, bins):
        for strengths, name in ((NARROW, "AutoAugment"), (NARROW, "RandAugment"), (WIDE, "TrivialAugmentWide")):
            table = strengths.magnitudes(bins, *size)
            for operation, (function, _) in getattr(v2, name)._AUGMENTATION_SPACE.items():
                theirs = function(bins, *size)
                if theirs is not None:
                    assert table[OPERATIONS.index(operation)].tolist() == theirs.tolist(), operation


class TestStreams:
    def test_what_one_draws_does_not_depend_on_the_others(self):
        jitter, blur, invert = feeder.ColorJitter(0.4), feeder.GaussianBlur(3), feeder.RandomInvert()
        alone = operation_keys([jitter], keys(5))[0]
        assert np.array_equal(operation_keys([blur, jitter, invert], keys(5))[1], alone)

    def test_two_of_a_name_draw_differently(self):
        first, second = operation_keys([feeder.RandomInvert(), feeder.RandomInvert(0.1)], keys(100))
        assert not np.isin(first, second).any()

    def test_draws_do_not_depend_on_which_images_are_drawn_together(self):
        for transform in (feeder.ColorJitter(0.4, hue=0.1), feeder.RandomErasing(), feeder.RandAugment()):
            together, alone = drawn(transform, count=20), transform.draw(keys(20)[7:8], 64, 48)
            for name, values in together.items():
                assert np.array_equal(values[7:8], alone[name]), name

    def test_bits_are_pinned(self):
        """Written once; a difference would change every run's pixels."""
        found = {
            str(transform): {
                name: values.tolist()
                if values.dtype.kind != "f"
                else [value.hex() for value in values.ravel().tolist()]
                for name, values in transform.draw(keys(3), 224, 192).items()
            }
            for transform in PINNED
        }
        assert found == json.loads(GOLDEN.read_text())


PINNED = [
    feeder.ColorJitter(0.4, 0.4, 0.2, 0.1),
    feeder.GaussianBlur(23),
    feeder.RandomGrayscale(0.2),
    feeder.RandomErasing(p=0.9, value="random"),
    feeder.RandAugment(),
    feeder.TrivialAugmentWide(),
    feeder.AutoAugment(),
    feeder.RandomApply([feeder.ColorJitter(0.8), feeder.RandomSolarize(128)], p=0.8),
    feeder.RandomChoice([feeder.MixUp(alpha=0.2, num_classes=10), feeder.CutMix(num_classes=10)], p=[0.3, 0.7]),
    feeder.MixUp(alpha=3.0, num_classes=10),
]
