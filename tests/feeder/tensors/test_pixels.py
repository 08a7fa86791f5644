"""Pixels on tensors: equal, for the same parameters, to those of the CPU's kernels, which are torchvision's."""

import numpy as np
import pytest

import feeder
from feeder.errors import ConfigError
from tests.contracts.pixels import BLURS, CASES, SIZES, keys, pictures
from tests.peers import peer

POLICIES = [
    feeder.RandAugment(3, 20, fill=(3, 200, 77)),
    feeder.TrivialAugmentWide(),
    feeder.AutoAugment(),
    feeder.AutoAugment("cifar10"),
    feeder.AutoAugment("svhn"),
    feeder.RandomApply([feeder.ColorJitter(0.4, 0.4, 0.4, 0.1), feeder.RandomErasing(value="random")], p=0.7),
]


def on_tensors(transform, images, params, *, channels_last=True):
    """Return (n, H, W, 3) images changed as tensors: views in channels_last memory, as batches are, or planes."""
    torch = peer("torch")
    from feeder.tensors import pixels

    tensors = torch.from_numpy(images.copy()).movedim(-1, 1)
    made = pixels.apply(transform, tensors if channels_last else tensors.contiguous(), params)
    return made.movedim(1, -1).numpy()


@pytest.mark.parametrize("size", [size for size in SIZES if size != (224, 224)], ids=str)
@pytest.mark.parametrize("transform", [*(case for case, _ in CASES), *POLICIES], ids=str)
def test_pixels_are_equal_to_the_cpus(transform, size):
    images = pictures(24, size)
    params = transform.draw(keys(24, 5), *size)
    found = on_tensors(transform, images, params, channels_last=size[0] != 3)
    transform.apply(images, params)
    assert np.array_equal(found, images)


@pytest.mark.parametrize("transform", [*(case for case, _ in CASES[:4]), *POLICIES[:2]], ids=str)
def test_photographs_are_equal_to_the_cpus(transform, photos):
    images = pictures(8, (224, 224), photographs=sorted(photos.rglob("*.JPEG"))[:6])
    params = transform.draw(keys(8), 224, 224)
    found = on_tensors(transform, images, params)
    transform.apply(images, params)
    assert np.array_equal(found, images)


@pytest.mark.parametrize("transform", [case for case, _ in BLURS], ids=str)
def test_blurred_pixels_are_equal_to_the_cpus(transform):
    images = pictures(8, (41, 36))
    params = transform.draw(keys(8), 41, 36)
    found = on_tensors(transform, images, params)
    transform.apply(images, params)
    assert np.array_equal(found, images)


def test_bilinear_policies_differ_from_the_cpus_by_one_at_most():
    transform = feeder.TrivialAugmentWide(interpolation="bilinear", fill=99)
    images = pictures(60, (51, 40))
    params = transform.draw(keys(60), 51, 40)
    found = on_tensors(transform, images, params)
    transform.apply(images, params)
    difference = np.abs(found.astype(int) - images)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("value", [0.5, "random"])
def test_erased_floats_are_equal_to_the_cpus(value):
    transform = feeder.RandomErasing(p=0.8, value=value)
    images = np.random.default_rng(0).normal(size=(40, 20, 24, 3)).astype(np.float32)
    params = transform.draw(keys(40), 20, 24)
    found = on_tensors(transform, images, params)
    transform.apply(images, params)
    assert np.array_equal(found, images)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mixer", [feeder.MixUp(num_classes=5), feeder.CutMix(num_classes=5)], ids=str)
def test_mixed_batches_are_equal_to_the_cpus(mixer, dtype):
    torch = peer("torch")
    from feeder.tensors import pixels

    mixer = feeder.RandomChoice([mixer])
    labels, valid = np.array([4, 1, -1, 0, 3, 2, -100]), np.arange(7) < 6
    for seed in range(4):
        images = pictures(7, (30, 24)).astype(dtype)
        params = mixer.draw(keys(1, seed), 30, 24)
        tensors = torch.from_numpy(images.copy()).movedim(-1, 1)
        targets = pixels.mix(mixer, tensors, labels, valid, params)
        assert np.array_equal(targets, mixer.mix(images, labels, valid, params))
        assert np.array_equal(tensors.movedim(1, -1).numpy(), images)


def test_floats_for_what_works_on_levels_are_one_sentence():
    with pytest.raises(ConfigError) as caught:
        on_tensors(feeder.RandomInvert(), np.zeros((1, 4, 4, 3), np.float32), {"apply": np.ones(1, bool)})
    assert str(caught.value) == (
        "RandomInvert got a batch of torch.float32; it works on uint8 pixels: put it before Normalize"
    )


def test_a_transform_of_another_is_one_sentence():
    peer("torch")
    from feeder.tensors import pixels

    class Sepia:
        pass

    for run in (
        lambda: on_tensors(Sepia(), pictures(2, (4, 4)), {}),
        lambda: pixels.mix(Sepia(), None, None, None, {}),
    ):
        with pytest.raises(ConfigError) as caught:
            run()
        assert str(caught.value) == "Sepia has no form for tensors; let it run on the CPU"
