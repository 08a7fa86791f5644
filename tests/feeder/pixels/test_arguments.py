"""Arguments: torchvision's are taken, what cannot work is refused in one sentence when the description is made."""

import pickle

import numpy as np
import pytest

import feeder
from feeder.errors import ConfigError
from feeder.pixels import is_mixer, is_pixel_transform
from tests.contracts.pixels import BLURS, CASES, keys
from tests.peers import torchvision_transforms

REFUSED = [
    (lambda: feeder.ColorJitter(-0.1), "ColorJitter got brightness=-0.1; give a number from 0, or (least, greatest)"),
    (
        lambda: feeder.ColorJitter(hue=0.6),
        "ColorJitter got hue=0.6; give a number from 0 up to 0.5, or (least, greatest)",
    ),
    (
        lambda: feeder.ColorJitter(hue=(-0.6, 0.1)),
        "ColorJitter got hue=(-0.6, 0.1); give (least, greatest), from -0.5 to 0.5",
    ),
    (
        lambda: feeder.ColorJitter(contrast=(2, 1)),
        "ColorJitter got contrast=(2, 1); give (least, greatest), from 0",
    ),
    (
        lambda: feeder.GaussianBlur(4),
        "GaussianBlur got kernel_size=4; give an odd side, or (width, height), in pixels",
    ),
    (
        lambda: feeder.GaussianBlur((3, 5, 7)),
        "GaussianBlur got kernel_size=(3, 5, 7); give an odd side, or (width, height), in pixels",
    ),
    (lambda: feeder.GaussianBlur(3, 0), "GaussianBlur got sigma=0; give (least, greatest), above 0"),
    (lambda: feeder.RandomGrayscale(1.5), "RandomGrayscale got p=1.5; give a probability from 0 to 1"),
    (lambda: feeder.RandomInvert("often"), "RandomInvert got p='often'; give a probability from 0 to 1"),
    (lambda: feeder.RandomSolarize(256), "RandomSolarize got threshold=256; give a number from 0 to 255"),
    (lambda: feeder.RandomPosterize(9), "RandomPosterize got bits=9; a value has 8: give 0 to 8"),
    (lambda: feeder.RandomPosterize(2.5), "RandomPosterize: bits is 2.5; it must be an integer of at least 0"),
    (
        lambda: feeder.RandomAdjustSharpness(-1),
        "RandomAdjustSharpness got sharpness_factor=-1; give a number of at least 0",
    ),
    (
        lambda: feeder.RandomErasing(scale=(0.5, 1.5)),
        "RandomErasing got scale=(0.5, 1.5); give (least, greatest), from 0 to 1",
    ),
    (
        lambda: feeder.RandomErasing(ratio=(0, 1)),
        "RandomErasing got ratio=(0, 1); give (least, greatest), above 0",
    ),
    (
        lambda: feeder.RandomErasing(value="noise"),
        "RandomErasing got value='noise'; give a number, three for R, G and B, or 'random'",
    ),
    (
        lambda: feeder.RandAugment(magnitude=31),
        "RandAugment got magnitude=31 of num_magnitude_bins=31; give 0 to 30",
    ),
    (
        lambda: feeder.RandAugment(interpolation="bicubic"),
        "RandAugment got interpolation='bicubic'; give 'nearest' or 'bilinear'",
    ),
    (
        lambda: feeder.TrivialAugmentWide(fill=(1, 2)),
        "TrivialAugmentWide got fill=(1, 2); give a level from 0 to 255, or three, for R, G and B",
    ),
    (
        lambda: feeder.TrivialAugmentWide(1),
        "TrivialAugmentWide: num_magnitude_bins is 1; it must be an integer of at least 2",
    ),
    (
        lambda: feeder.AutoAugment("caltech"),
        "AutoAugment got policy='caltech'; give one of 'imagenet', 'cifar10', 'svhn'",
    ),
    (lambda: feeder.RandomApply([]), "RandomApply got []; give a list with at least one transform"),
    (
        lambda: feeder.RandomApply([feeder.RandomInvert]),
        "RandomApply got RandomInvert in its list; it takes pixel transforms, made with their arguments",
    ),
    (
        lambda: feeder.RandomApply([feeder.MixUp(num_classes=2)]),
        "RandomApply got MixUp in its list; it takes pixel transforms, made with their arguments",
    ),
    (
        lambda: feeder.RandomApply([feeder.RandomChoice([feeder.MixUp(num_classes=2)])]),
        "RandomApply got RandomChoice in its list; it takes pixel transforms, made with their arguments",
    ),
    (
        lambda: feeder.RandomChoice([feeder.MixUp(num_classes=2), feeder.RandomInvert()]),
        (
            "RandomChoice got RandomInvert in its list; it takes either pixel transforms, or MixUp and CutMix, "
            "made with their arguments"
        ),
    ),
    (
        lambda: feeder.RandomChoice([feeder.MixUp(num_classes=2), feeder.CutMix(num_classes=3)]),
        "RandomChoice got mixers of 2, 3 classes; targets have one length: give one number",
    ),
    (
        lambda: feeder.RandomChoice([feeder.RandomInvert()], p=[0.0]),
        "RandomChoice got p=[0.0] for 1 transforms; give as many weights, not all 0",
    ),
    (lambda: feeder.MixUp(alpha=0, num_classes=2), "MixUp got alpha=0; give a number above 0"),
    (lambda: feeder.CutMix(num_classes=0), "CutMix: num_classes is 0; it must be an integer of at least 1"),
    (
        lambda: feeder.GaussianBlur(23).draw(keys(1), 11, 40),
        (
            "GaussianBlur has kernel_size=(23, 23) for images of 40 x 11 pixels; borders are reflected, so half the "
            "kernel must be smaller than the image: take a smaller kernel"
        ),
    ),
]
MIXERS = [feeder.MixUp(num_classes=3), feeder.CutMix(alpha=0.2, num_classes=3)]
POLICIES = [feeder.RandAugment(), feeder.TrivialAugmentWide(), feeder.AutoAugment("svhn", fill=(1, 2, 3))]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_cannot_work_is_one_sentence(make, sentence):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == sentence


def test_torchvisions_enumerations_are_taken():
    v2 = torchvision_transforms()
    assert feeder.RandAugment(interpolation=v2.InterpolationMode.BILINEAR) == feeder.RandAugment(
        interpolation="bilinear"
    )
    assert feeder.AutoAugment(v2.AutoAugmentPolicy.SVHN).policy == "svhn"


def test_arguments_and_defaults_are_torchvisions():
    """All but those that only torchvision has use for: where labels are found."""
    import inspect

    v2 = torchvision_transforms()
    for name in feeder.pixels.__all__:
        if hasattr(v2, name) and name not in ("MixUp", "CutMix"):
            ours, theirs = (inspect.signature(getattr(home, name)).parameters for home in (feeder, v2))
            assert list(ours) == list(theirs), name
            for parameter, value in theirs.items():
                default = getattr(value.default, "value", value.default)
                assert ours[parameter].default == default, (name, parameter)


@pytest.mark.parametrize("item", [*(case for case, _ in CASES + BLURS), *POLICIES, *MIXERS], ids=str)
def test_descriptions_are_values(item):
    """They can be pickled, compared, and tell of what they are."""
    assert pickle.loads(pickle.dumps(item)) == item
    assert is_mixer(item) == (item in MIXERS)
    assert is_pixel_transform(item) != is_mixer(item)
    assert repr(item).startswith(f"{type(item).__name__}(")


def test_no_argument_of_color_jitter_changes_nothing():
    transform = feeder.ColorJitter(0, (1, 1), hue=0.0)
    assert transform == feeder.ColorJitter()
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    expected = images.copy()
    transform.apply(images, transform.draw(keys(3), 5, 4))
    assert np.array_equal(images, expected)
