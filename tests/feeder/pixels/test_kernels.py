"""Pixels on the CPU: the contract, with and without odd memory, from many threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import feeder
from tests.contracts.pixels import CASES, PixelContract, keys, pictures


class TestKernels(PixelContract):
    def applied(self, transform, images, params):
        images = images.copy()
        transform.apply(images, params)
        return images


@pytest.mark.parametrize(("transform", "tolerance"), [*CASES, (feeder.RandAugment(), 1), (feeder.GaussianBlur(5), 1)])
def test_images_may_lie_in_any_memory(transform, tolerance):
    """A view of a larger array, as a batch of several views gives."""
    images = pictures(6, (24, 20))
    params = transform.draw(keys(6), 24, 20)
    whole = np.zeros((6, 2, 24, 20, 3), np.uint8)
    whole[:, 1] = images
    transform.apply(whole[:, 1], params)
    transform.apply(images, params)
    assert np.array_equal(whole[:, 1], images)
    assert not whole[:, 0].any()


def test_many_threads_give_the_pixels_of_one():
    transform = feeder.RandomApply([feeder.ColorJitter(0.4, 0.4, 0.4, 0.1), feeder.RandAugment()], p=0.8)
    images = pictures(16, (64, 64))
    params = transform.draw(keys(16), 64, 64)
    alone = images.copy()
    transform.apply(alone, params)

    def part(start):
        rows = slice(start, start + 2)
        transform.apply(images[rows], feeder.pixels.rows_of(params, rows))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(part, range(0, 16, 2)))
    assert np.array_equal(images, alone)
