"""Windows: the arithmetic that must not differ between machines, and the boxes, against plain models."""

import json
import math
import os
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.augment import compile_transforms
from feeder.transforms import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from feeder.windows import RandomBoxes, ResizedBoxes, exact_exp, exact_log

GOLDEN = Path(__file__).parent.parent / "golden" / "boxes.json"


def windows(transforms, sizes, *, seed=0, epoch=0, views=1, ids=None, copies=None):
    """Return the windows of images of (width, height), ids counted from 0."""
    sizes = np.asarray(sizes, dtype=np.int32).reshape(-1, 2)
    ids = np.arange(len(sizes)) if ids is None else np.asarray(ids)
    copies = np.zeros_like(ids) if copies is None else np.asarray(copies)
    geometry = compile_transforms(transforms, views=views)
    return geometry.windows(seed, epoch, ids, copies, sizes[:, 0], sizes[:, 1])


class TestExactArithmetic:
    def test_exp_is_right_to_1e_15(self):
        x = np.concatenate((np.linspace(-3, 3, 2001), np.linspace(-690, 690, 501), [0.0, -0.0, 1e-300]))
        with localcontext() as context:
            context.prec = 40
            true = [Decimal(float(value)).exp() for value in x]
            worst = max(abs(Decimal(float(got)) / want - 1) for got, want in zip(exact_exp(x), true, strict=True))
        assert worst < Decimal("1e-15")

    def test_exp_is_pinned_to_the_last_bit(self):
        """Where the machine's own exp would do, it may differ here; these are the bits that every machine must find."""
        found = [value.hex() for value in exact_exp(np.array([-0.2876820724517809, -0.1, 0.0, 0.123456789, 0.7]))]
        assert found == EXP_BITS

    def test_log_is_the_nearest_double(self):
        for value in (0.75, 4 / 3, 1.0, 0.08, 3.0, 1e-300, 1e300):
            assert exact_log(value) == pytest.approx(math.log(value), rel=3e-16, abs=0)


EXP_BITS = [
    "0x1.8000000000000p-1",
    "0x1.cf46d99d52b3ap-1",
    "0x1.0000000000000p+0",
    "0x1.21a380e17ced3p+0",
    "0x1.01c2a61268987p+1",
]


def model_random_resized_crop(random, width, height, scale, ratio):
    """torchvision's documented algorithm, one image at a time, with another source of random numbers."""
    area = width * height
    for _ in range(10):
        target = area * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
            return left, top, left + w, top + h
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class TestRandomBoxes:
    @pytest.mark.parametrize(
        ("size", "scale", "ratio"),
        [
            ((500, 375), (0.08, 1.0), (3 / 4, 4 / 3)),
            ((80, 400), (0.3, 0.9), (3 / 4, 4 / 3)),  # many tries fail, and some fall back to the centre
            ((37, 29), (0.5, 1.0), (0.5, 3.0)),  # rounding to whole pixels shows
        ],
    )
    def test_distributions_are_those_of_torchvisions_algorithm(self, size, scale, ratio):
        """Two-sample Kolmogorov-Smirnov tests of area, ratio and both offsets; the bound is that of p = 1e-6."""
        n = 6000
        random = np.random.default_rng(1)
        model = np.array([model_random_resized_crop(random, *size, scale, ratio) for _ in range(n)], dtype=float)
        ours = windows([RandomResizedCrop(8, scale, ratio)], [size] * n, seed=5).boxes[:, 0]
        for name, statistic in STATISTICS.items():
            distance = ks_distance(statistic(ours, *size), statistic(model, *size))
            assert distance < 2.69 * math.sqrt(2 / n), name

    def test_boxes_are_whole_numbers_inside_the_image(self):
        random = np.random.default_rng(2)
        sizes = np.concatenate((random.integers(1, 40, (500, 2)), random.integers(1, 5000, (500, 2)), [[1, 1]]))
        for ratio in ((3 / 4, 4 / 3), (0.01, 0.02), (50.0, 90.0), (1 / 65536, 65536), (1.0, 1.0)):
            boxes = windows([RandomResizedCrop(8, ratio=ratio)], sizes, views=2).boxes
            assert np.array_equal(boxes, np.rint(boxes))
            assert (boxes[..., :2] >= 0).all()
            assert (boxes[..., 2:] <= sizes[:, None]).all()
            assert (boxes[..., 2:] > boxes[..., :2]).all()

    def test_fallback_is_central_and_clipped_to_the_ratio_range(self):
        boxes = windows([RandomResizedCrop(8)], [(1, 500), (500, 1), (10, 900)]).boxes[:, 0]
        assert boxes.tolist() == [[0, 249, 1, 250], [249, 0, 250, 1], [0, 443, 10, 456]]

    def test_fallback_keeps_the_image_when_only_its_area_never_fits(self):
        boxes = RandomBoxes(scale=(1.0, 1.0), ratio=(1.0, 1.0)).boxes(
            np.zeros((1, 1), np.uint64), np.array([30]), np.array([30])
        )
        assert boxes.tolist() == [[[0, 0, 30, 30]]]

    def test_every_offset_is_equally_likely(self):
        boxes = windows([RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1.0, 1.0))], [(6, 6)] * 8000).boxes[:, 0]
        counts = np.bincount((boxes[:, 0] * 4 + boxes[:, 1]).astype(int), minlength=16)
        assert np.abs(counts - 500).max() < 6 * math.sqrt(500)


STATISTICS = {
    "area": lambda b, w, h: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) / (w * h),
    "ratio": lambda b, w, h: (b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]),
    "left": lambda b, w, h: b[:, 0] / np.maximum(w - (b[:, 2] - b[:, 0]), 1),
    "top": lambda b, w, h: b[:, 1] / np.maximum(h - (b[:, 3] - b[:, 1]), 1),
}


def ks_distance(a, b):
    """Return the greatest distance between two empirical distributions."""
    points = np.sort(np.concatenate((a, b)))
    below_a, below_b = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b))
    return np.abs(below_a - below_b).max()


def model_resize_center_crop(width, height, side, crop):
    """torchvision's rules in Python's own integers: the resized size, and the crop's corner in it."""
    short, long = min(width, height), max(width, height)
    new_long = int(side * long / short)
    new_width, new_height = (side, new_long) if width <= height else (new_long, side)
    return (new_width, new_height), (round((new_width - crop[1]) / 2.0), round((new_height - crop[0]) / 2.0))


class TestResizedBoxes:
    @settings(max_examples=300, deadline=None)
    @given(
        size=st.tuples(st.integers(1, 70_000), st.integers(1, 70_000)),
        side=st.integers(1, 600),
        crop=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    )
    def test_box_and_size_follow_torchvisions_integers(self, size, side, crop):
        crop = (min(crop[0], side), min(crop[1], side))
        (new_width, new_height), (left, top) = model_resize_center_crop(*size, side, crop)
        found = windows([Resize(side), CenterCrop(crop)], [size])
        assert found.resized.tolist() == [[new_width, new_height]]
        x0, y0, x1, y1 = found.boxes[0, 0].tolist()
        assert round(x0 * new_width / size[0]) == left
        assert round(y0 * new_height / size[1]) == top
        assert (x1 - x0) * new_width / size[0] == pytest.approx(crop[1], rel=1e-9)
        assert (y1 - y0) * new_height / size[1] == pytest.approx(crop[0], rel=1e-9)
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]

    def test_offset_of_half_a_pixel_goes_to_the_even_number(self):
        found = windows([Resize(10), CenterCrop(7)], [(10, 10), (12, 12)])  # (10 − 7) / 2 = 1.5 → 2
        assert found.boxes[0, 0].tolist() == [2, 2, 9, 9]
        found = windows([Resize(10), CenterCrop(5)], [(10, 10)])  # 2.5 → 2
        assert found.boxes[0, 0].tolist() == [2, 2, 7, 7]

    def test_whole_image_to_a_fixed_size(self):
        found = windows([Resize((30, 50))], [(7, 9), (500, 1)])
        assert found.boxes[:, 0].tolist() == [[0, 0, 7, 9], [0, 0, 500, 1]]
        assert found.resized.tolist() == [[50, 30], [50, 30]]
        assert not found.clipped

    def test_fixed_size_and_central_crop(self):
        found = windows([Resize((40, 80)), CenterCrop((20, 40))], [(160, 40)])
        assert found.boxes[0, 0].tolist() == [40, 10, 120, 30]

    def test_nothing_of_it_is_random(self):
        boxes = ResizedBoxes(resize=(4, 4), crop=None)
        widths = np.array([3])
        assert boxes.boxes(widths, widths, boxes.resized(widths, widths)).tolist() == [[0, 0, 3, 3]]


class TestDraws:
    TRAIN = (RandomResizedCrop(224), RandomHorizontalFlip())

    def test_the_same_arguments_give_the_same_windows_in_any_company(self):
        sizes = np.random.default_rng(3).integers(100, 600, (50, 2))
        together = windows(self.TRAIN, sizes, seed=7, epoch=2)
        for i in (0, 17, 49):
            alone = windows(self.TRAIN, sizes[i], seed=7, epoch=2, ids=[i])
            assert np.array_equal(alone.boxes[0], together.boxes[i])
            assert np.array_equal(alone.flips[0], together.flips[i])

    @pytest.mark.parametrize("change", [{"seed": 8}, {"epoch": 3}, {"ids": [1] * 20}, {"copies": [1] * 20}])
    def test_seed_epoch_id_and_copy_each_change_the_draws(self, change):
        base = {"seed": 7, "epoch": 2, "ids": [0] * 20, "copies": [0] * 20}
        a, b = (windows(self.TRAIN, [(500, 375)] * 20, **{**base, **c}) for c in ({}, change))
        assert not np.array_equal(a.boxes, b.boxes)

    def test_next_epoch_of_a_seed_is_not_an_epoch_of_the_next_seed(self):
        a = windows(self.TRAIN, [(500, 375)], seed=42, epoch=1)
        b = windows(self.TRAIN, [(500, 375)], seed=43, epoch=0)
        assert not np.array_equal(a.boxes, b.boxes)

    def test_views_have_draws_of_their_own_and_the_first_is_the_single_one(self):
        one, three = (windows(self.TRAIN, [(500, 375)] * 30, views=views) for views in (1, 3))
        assert three.boxes.shape == (30, 3, 4)
        assert three.flips.shape == (30, 3)
        assert np.array_equal(three.boxes[:, :1], one.boxes)
        assert not np.array_equal(three.boxes[:, 0], three.boxes[:, 1])

    @pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
    def test_flips_come_with_probability_p(self, p):
        flips = windows([RandomResizedCrop(8), RandomHorizontalFlip(p)], [(9, 9)] * 10_000).flips
        assert abs(flips.mean() - p) <= 5 * math.sqrt(p * (1 - p) / 10_000)

    def test_flips_do_not_depend_on_boxes(self):
        found = windows(self.TRAIN, [(500, 500)] * 10_000)
        right, wide = found.boxes[:, 0, 0] > 100, found.boxes[:, 0, 2] - found.boxes[:, 0, 0] > 300
        for half in (right, ~right, wide, ~wide):
            assert abs(found.flips[half, 0].mean() - 0.5) < 5 * 0.5 / math.sqrt(half.sum())

    def test_a_flip_before_the_crop_takes_the_box_from_the_mirrored_image(self):
        after = windows([Resize(10), CenterCrop(7), RandomHorizontalFlip(1.0)], [(10, 10)])
        before = windows([RandomHorizontalFlip(1.0), Resize(10), CenterCrop(7)], [(10, 10)])
        assert after.boxes[0, 0].tolist() == [2, 2, 9, 9]
        assert before.boxes[0, 0].tolist() == [1, 2, 8, 9]
        assert after.flips.all()
        assert before.flips.all()

    def test_unknown_sizes_get_a_valid_box(self):
        for transforms in (self.TRAIN, [Resize(256), CenterCrop(224)], [RandomHorizontalFlip(1.0), Resize((5, 5))]):
            found = windows(transforms, [(0, 0), (100, 0), (50, 60)])
            assert found.boxes[:2, 0].tolist() == [[0, 0, 1, 1]] * 2
            assert found.sizes.tolist() == [[0, 0], [100, 0], [50, 60]]
            assert found.sizes.dtype == np.int32

    def test_no_samples(self):
        for transforms in (self.TRAIN, [Resize(256), CenterCrop(224)]):
            found = windows(transforms, [], views=2)
            assert found.boxes.shape == (0, 2, 4)
            assert found.flips.shape == (0, 2)


GOLDEN_CASES = {
    "train": ([RandomResizedCrop(224), RandomHorizontalFlip()], {"seed": 42, "epoch": 1}),
    "train, next seed": ([RandomResizedCrop(224), RandomHorizontalFlip()], {"seed": 43, "epoch": 0}),
    "two views of copies": (
        [RandomHorizontalFlip(0.3), RandomResizedCrop((96, 128), (0.2, 0.6), (0.5, 3.0))],
        {"seed": -1, "views": 2, "copies": [0, 1, 2, 0, 0, 0, 0, 0]},
    ),
    "evaluation": ([Resize(256), CenterCrop(224)], {}),
    "fixed size": ([Resize((100, 200)), CenterCrop((90, 101)), RandomHorizontalFlip()], {"seed": 1}),
}
GOLDEN_SIZES = [(500, 375), (375, 500), (1, 1), (1, 500), (4000, 37), (255, 257), (0, 0), (65535, 65535)]


def test_boxes_are_pinned():
    """Run with FEEDER_UPDATE_GOLDEN=1 to write the file anew; raise `feeder.engines.PIXEL_CONTRACT` when it changes."""
    found = {}
    for name, (transforms, arguments) in GOLDEN_CASES.items():
        result = windows(transforms, GOLDEN_SIZES, **arguments)
        boxes = [[[edge.hex() for edge in box] for box in boxes] for boxes in result.boxes.tolist()]
        found[name] = {"boxes": boxes, "flips": result.flips.astype(int).tolist()}
    if os.environ.get("FEEDER_UPDATE_GOLDEN"):
        lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in found.items()]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert json.loads(GOLDEN.read_text()) == found
