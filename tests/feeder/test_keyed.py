"""Keyed random numbers are pinned, and look random."""

import numpy as np
import pytest

from feeder.keyed import derive_key, draw, permute, uniform


def test_draws_are_the_published_splitmix64_sequence():
    # the first outputs of splitmix64 seeded with 0, from Vigna's reference implementation
    assert [hex(int(number)) for number in draw(0, np.arange(3))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_keys_are_pinned():
    assert derive_key("order.segments", 0) == 14274870004104181766
    assert derive_key("a", 1, 2) != derive_key("a", 2, 1)
    assert derive_key("a", -1) != derive_key("a", 2**64 - 1)


def test_seed_42_epoch_1_is_not_seed_43_epoch_0():
    assert derive_key("order", 42, 1) != derive_key("order", 43, 0)
    assert not np.array_equal(
        draw(derive_key("order", 42, 1), np.arange(8)), draw(derive_key("order", 43, 0), np.arange(8))
    )


def test_keys_and_counters_broadcast():
    keys = draw(7, np.arange(3))
    grid = draw(keys[:, None], np.arange(4))
    assert grid.shape == (3, 4)
    assert grid[2, 1] == draw(int(keys[2]), 1)


def test_uniform_lies_in_the_half_open_unit_interval():
    numbers = uniform(derive_key("u"), np.arange(100_000))
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 100, 4095, 4096, 4097, 8193])
def test_permute_is_a_bijection(size):
    images = permute(derive_key("p", size), size, np.arange(size))
    assert sorted(images.tolist()) == list(range(size))


def test_permute_asks_only_for_what_it_needs():
    size = 2**40 + 12345
    positions = np.array([0, 1, size - 1])
    together = permute(99, size, positions)
    assert all(0 <= image < size for image in together)
    assert [int(permute(99, size, positions[i : i + 1])[0]) for i in range(3)] == together.tolist()


@pytest.mark.parametrize("size", [3, 5, 12, 4097, 5000, 8191])
def test_permute_sends_every_position_everywhere_alike(size):
    cells, keys = min(size, 16), 4000
    counts = np.zeros((cells, cells))
    positions = np.arange(cells) * size // cells
    ends = -(-np.arange(1, cells + 1) * size // cells)
    for key in range(keys):
        images = permute(derive_key("chi", key), size, positions)
        counts[np.arange(cells), np.searchsorted(ends, images, side="right")] += 1
    expected = keys * np.diff(ends, prepend=0) / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = cells * (cells - 1)
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)
