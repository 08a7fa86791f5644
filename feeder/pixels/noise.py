"""Noise that is a pure function of a key and a place: bit-identical on every machine, in NumPy and on a device."""

from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from feeder.keyed import draw

NORMAL_BITS = 16  # of a draw: which quantile
LEVEL_BITS = 8  # of a draw: which level of a byte


@cache
def normal_quantiles() -> NDArray[np.float32]:
    """Return the normal distribution as 65,536 equally likely values, in order.

    They are the quantiles at the middle of each step, in single precision; the last bits that libraries of
    mathematical functions disagree about are not in it.
    """
    inverse = NormalDist().inv_cdf
    count = 1 << NORMAL_BITS
    return np.array([inverse((number + 0.5) / count) for number in range(count)], np.float32)


def noise(
    key: int, top: int, left: int, height: int, width: int, image_width: int, *, normal: bool
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Return (height, width, 3) noise for a box of an image: float32 normal values, or uint8 levels, uniform.

    A value depends on the key and on its place (row, column, channel) in the image alone.
    """
    rows = np.arange(top, top + height)[:, None, None] * image_width
    places = (rows + np.arange(left, left + width)[:, None]) * 3 + np.arange(3)
    bits = draw(key, places)
    if normal:
        return normal_quantiles().take((bits >> np.uint64(64 - NORMAL_BITS)).astype(np.int64))
    return (bits >> np.uint64(64 - LEVEL_BITS)).astype(np.uint8)
