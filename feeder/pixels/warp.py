"""Affine maps of an image onto itself on the CPU: Pillow's, without the GIL."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from feeder.optional import load
from feeder.pixels.checks import Interpolation

Matrix = tuple[
    float, float, float, float, float, float
]  # (a, b, c, d, e, f): source x = a·x + b·y + c, y = d·x + e·y + f

_NEAREST, _BILINEAR, _AFFINE = 0, 2, 0  # Pillow's constants, Image.Resampling and Image.Transform


def matrix(operation: str, magnitude: float, height: int, width: int) -> Matrix:
    """Return the map of a shear, about the upper left corner, or of a rotation, about the centre.

    Source: torchvision.transforms.v2, ``_apply_image_or_video_transform``; of the rotation ``PIL.Image.Image.rotate``,
    whose rounding to 15 digits also makes all mathematical libraries agree.

    Args:
        operation: "ShearX", "ShearY" or "Rotate".
        magnitude: pixels a pixel, or degrees counter-clockwise.
        height: of the image in pixels.
        width: likewise.
    """
    if operation == "ShearX":
        return (1.0, magnitude, 0.0, 0.0, 1.0, 0.0)
    if operation == "ShearY":
        return (1.0, 0.0, 0.0, magnitude, 1.0, 0.0)
    angle = -math.radians(magnitude)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y)


def translate(image: NDArray[np.uint8], right: int, down: int, fill: Sequence[int]) -> None:
    """Shift an (H, W, 3) image by whole pixels, in place; what comes in is ``fill``."""
    height, width, _ = image.shape
    shifted = np.empty_like(image)
    shifted[...] = fill
    to_y, from_y = _overlap(down, height)
    to_x, from_x = _overlap(right, width)
    shifted[to_y, to_x] = image[from_y, from_x]
    image[...] = shifted


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Return where the pixels of a line end up that stay within, and where they come from."""
    kept = max(0, side - abs(shift))
    start = min(max(shift, 0), side)
    source = min(max(-shift, 0), side)
    return slice(start, start + kept), slice(source, source + kept)


def affine(image: NDArray[np.uint8], matrix: Matrix, interpolation: Interpolation, fill: Sequence[int]) -> None:
    """Map an (H, W, 3) image, in place; pixels from outside are ``fill``.

    Pillow's "nearest" counts in 2**-16 pixels; its "bilinear" repeats the border where a neighbour lies outside.
    """
    height, width, _ = image.shape
    source = load("pillow").frombuffer("RGB", (width, height), np.ascontiguousarray(image), "raw", "RGB", 0, 1)
    resample = _NEAREST if interpolation == "nearest" else _BILINEAR
    mapped = source.transform((width, height), _AFFINE, matrix, resample, fillcolor=tuple(fill))
    image[...] = np.frombuffer(mapped.tobytes(), np.uint8).reshape(image.shape)
