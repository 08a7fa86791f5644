"""MixUp and CutMix: torchvision's batches for the same share, and what is never mixed."""

import numpy as np
import pytest

import feeder
from feeder.errors import ConfigError
from feeder.pixels.mixers import mixed_rows
from tests.contracts.pixels import keys, pictures
from tests.peers import torchvision_transforms

LABELS = np.array([2, 0, 1, 4, 2, 3])
VALID = np.ones(6, bool)


def batches(dtype):
    images = pictures(6, (20, 16))
    return images if dtype == np.uint8 else images.astype(np.float32) / 64 - 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mixer", [feeder.MixUp(num_classes=5), feeder.CutMix(num_classes=5)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_batches_are_torchvisions(mixer, dtype, seed):
    """What torchvision gives for the batch in the order of the ring, which it takes as it stands.

    torchvision cannot mix uint8 images by MixUp at all; there the floats, rounded half up, are the reference.
    """
    v2 = torchvision_transforms()
    import torch

    images = batches(dtype)
    params = mixer.draw(keys(1, seed), 20, 16)
    theirs = getattr(v2, type(mixer).__name__)(num_classes=5)
    ring = mixed_rows(LABELS, VALID, 5, params)
    tensor = torch.from_numpy(images[ring].astype(np.float32)).permute(0, 3, 1, 2)
    labels = torch.from_numpy(LABELS[ring])
    lam = float(params["lam"][0])
    given = {"labels": labels, "batch_size": 6, "lam": lam, "lam_adjusted": lam}
    if "box" in params:
        given["box"] = tuple(params["box"][0].tolist())
    expected = theirs.transform(tensor, given).permute(0, 2, 3, 1).numpy()
    expected_labels = theirs.transform(labels, given).numpy()
    targets = mixer.mix(images, LABELS, VALID, params)[ring]
    images = images[ring]
    if dtype == np.uint8:
        assert np.array_equal(images, np.floor(expected + 0.5).astype(np.uint8))
    else:
        assert np.allclose(images, expected, atol=1e-6)
    assert targets.dtype == np.float32
    assert np.allclose(targets, expected_labels, atol=1e-7)


@pytest.mark.parametrize("mixer", [feeder.MixUp(num_classes=5), feeder.CutMix(num_classes=5)], ids=str)
def test_rows_without_a_label_and_padding_are_left_out_of_the_ring(mixer):
    images = batches(np.uint8)
    labels = np.array([2, -1, 1, -100, 4, 3])
    valid = np.array([True, True, True, False, False, True])
    params = mixer.draw(keys(1, 3), 20, 16)
    alone, whole = images[[0, 2, 5]].copy(), images.copy()
    expected = mixer.mix(alone, labels[[0, 2, 5]], np.ones(3, bool), params)
    targets = mixer.mix(whole, labels, valid, params)
    assert np.array_equal(whole[[0, 2, 5]], alone)
    assert np.array_equal(whole[[1, 3, 4]], images[[1, 3, 4]])
    assert np.array_equal(targets[[0, 2, 5]], expected)
    assert not targets[[1, 3, 4]].any()
    assert np.allclose(targets[[0, 2, 5]].sum(1), 1)


@pytest.mark.parametrize("valid", [np.zeros(6, bool), np.arange(6) == 3])
def test_none_or_one_to_mix_is_no_mixing(valid):
    mixer = feeder.RandomChoice([feeder.MixUp(num_classes=5), feeder.CutMix(num_classes=5)])
    for seed in range(4):
        images = batches(np.float32)
        targets = mixer.mix(images, LABELS, valid, mixer.draw(keys(1, seed), 20, 16))
        assert np.allclose(images, batches(np.float32), atol=1e-6)
        assert np.allclose(targets, np.eye(5)[LABELS] * valid[:, None], atol=1e-6)


def test_views_are_mixed_with_the_views_of_the_one_before():
    mixer = feeder.CutMix(num_classes=5)
    images = np.stack((batches(np.uint8), batches(np.uint8)[::-1]), axis=1)
    first, second = images[:, 0].copy(), images[:, 1].copy()
    params = mixer.draw(keys(1), 20, 16)
    for part in (images, first, second):
        mixer.mix(part, LABELS, VALID, params)
    assert np.array_equal(images, np.stack((first, second), axis=1))


def test_a_choice_of_mixers_does_what_the_chosen_does():
    mixers = [feeder.MixUp(num_classes=5), feeder.CutMix(num_classes=5)]
    choice = feeder.RandomChoice(mixers)
    for seed in range(6):
        params = choice.draw(keys(1, seed), 20, 16)
        images, expected = batches(np.uint8), batches(np.uint8)
        index = params["choice"][0]
        targets = choice.mix(images, LABELS, VALID, params)
        part = feeder.pixels.protocol.part_of(params, index)
        assert np.array_equal(targets, mixers[index].mix(expected, LABELS, VALID, part))
        assert np.array_equal(images, expected)
    assert choice.num_classes == 5


def test_a_label_beyond_the_classes_is_one_sentence():
    with pytest.raises(ConfigError) as caught:
        feeder.MixUp(num_classes=4).mix(batches(np.uint8), LABELS, VALID, {"lam": np.array([0.5]), "ring": keys(1)})
    assert str(caught.value) == "a label is 4, and MixUp or CutMix has num_classes=4; give at least 5"


def test_labels_that_are_no_numbers_of_classes_are_one_sentence():
    with pytest.raises(ConfigError) as caught:
        feeder.MixUp(num_classes=4).mix(batches(np.uint8), np.eye(6), VALID, {"lam": np.array([0.5]), "ring": keys(1)})
    assert str(caught.value) == (
        "MixUp and CutMix need one whole number a sample as label; got float64 of shape (6, 6)"
    )


def test_partners_are_drawn_and_not_neighbours():
    mixer = feeder.CutMix(num_classes=5)
    labels = np.zeros(64, np.int64)
    rings = [mixed_rows(labels, np.ones(64, bool), 5, mixer.draw(keys(1, seed), 20, 16)) for seed in range(20)]
    assert all(sorted(ring) == list(range(64)) for ring in rings)
    neighbours = [np.mean(np.abs(np.diff(ring)) == 1) for ring in rings]
    assert np.mean(neighbours) < 0.06  # of 64 rows, two are neighbours of a row: a chance of 1 in 32
