"""Windows: which box of each stored image becomes which output image, drawn before a byte of the image is read.

Everything here is a pure function of keys and image sizes, vectorised over the batch, and **bit-identical on every
machine**: only operations that IEEE 754 defines to the last bit are used (+, −, ×, ÷, sqrt, rounding to an integer and
scaling by a power of two). NumPy's ``exp``, ``log`` and ``power`` are not among them: they come from the C library or
from SIMD variants chosen by the processor, and differ in the last bit. So `exact_exp` is a fixed polynomial, and the
logarithms of constants come from `decimal`, which rounds correctly.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from feeder.keyed import UInt64Array, uniform

Interpolation = Literal["bilinear", "bicubic", "nearest"]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TRIES = 10  # random boxes tried before the central one; torchvision's number

# Numbers of the draws in the stream of a (sample, copy, view). New uses take new numbers and never renumber old ones.
FLIP_DRAW = 0
AREA_DRAW, RATIO_DRAW, TOP_DRAW, LEFT_DRAW = 1, 2, 3, 4  # of try 0; try t adds 4·t, so tries end at draw 40
_DRAWS_PER_TRY = 4

_UNREADABLE_BOX = (0.0, 0.0, 1.0, 1.0)  # stands in where the index knows no size; the engine reports such a sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """The boxes of n images, V of each.

    Attributes:
        sizes: (n, 2) int32, width and height of the stored images as the index knows them; 0 where it does not.
        boxes: (n, V, 4) float64, (x0, y0, x1, y1) in pixels of the stored image, x1 and y1 exclusive.
        flips: (n, V) bool, whether the output is mirrored left to right, after the box was cut.
        clipped: whether the filter sees only pixels inside the box (boxes are then whole numbers), as in
            ``image.crop(box).resize(size)``, or reads neighbours beyond it, as in ``image.resize(size, box=box)``.
        interpolation: the filter; bilinear and bicubic are antialiased.
        resized: where boxes may read beyond, (n, 2) int64, width and height of the whole image after resizing: the
            window is then a crop of that image at whole numbers, and an engine may cut it there. None when clipped.
    """

    sizes: NDArray[np.int32]
    boxes: FloatArray
    flips: NDArray[np.bool_]
    clipped: bool
    interpolation: Interpolation
    resized: IntArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomBoxes:
    """Random boxes as torchvision's ``RandomResizedCrop`` draws them.

    Attributes:
        scale: least and greatest part of the image's area, drawn uniformly.
        ratio: least and greatest width / height, drawn uniformly in the logarithm.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def boxes(self, keys: UInt64Array, widths: IntArray, heights: IntArray) -> FloatArray:
        """Return (n, V, 4) boxes of images of (n,) sizes ≥ 1, for (n, V) keys.

        Of ten tries (area uniform in scale, ratio log-uniform, sides rounded half to even) the first that fits into the
        image counts, at a uniform whole-number offset; when none fits, the central box of the nearest allowed ratio.
        Source: torchvision.transforms.v2.RandomResizedCrop.make_params.
        """
        full_width, full_height = widths[:, None, None], heights[:, None, None]
        tries = np.arange(TRIES, dtype=np.uint64) * np.uint64(_DRAWS_PER_TRY)
        area_draws = uniform(keys[:, :, None], tries + np.uint64(AREA_DRAW))
        ratio_draws = uniform(keys[:, :, None], tries + np.uint64(RATIO_DRAW))

        least, greatest = self.scale
        areas = (full_width * full_height).astype(np.float64) * (least + area_draws * (greatest - least))
        low, high = (exact_log(side) for side in self.ratio)
        ratios = exact_exp(low + ratio_draws * (high - low))
        box_widths = np.rint(np.sqrt(areas * ratios))
        box_heights = np.rint(np.sqrt(areas / ratios))
        fits = (box_widths > 0) & (box_widths <= full_width) & (box_heights > 0) & (box_heights <= full_height)

        chosen = fits.argmax(axis=2)[:, :, None]  # the first that fits; 0 when none does
        width, height = (np.take_along_axis(sides, chosen, axis=2)[:, :, 0] for sides in (box_widths, box_heights))
        start = chosen[:, :, 0].astype(np.uint64) * np.uint64(_DRAWS_PER_TRY)
        # A draw u ≤ 1 − 2**-53, so u·(k + 1) rounds to less than k + 1: floor gives 0 … k, each as likely.
        top = np.floor(uniform(keys, start + np.uint64(TOP_DRAW)) * (heights[:, None] - height + 1))
        left = np.floor(uniform(keys, start + np.uint64(LEFT_DRAW)) * (widths[:, None] - width + 1))
        drawn = np.stack((left, top, left + width, top + height), axis=2)
        none_fits = np.logical_not(fits.any(axis=2, keepdims=True))
        return np.where(none_fits, self._central(widths, heights)[:, None], drawn)

    def _central(self, widths: IntArray, heights: IntArray) -> FloatArray:
        """Return the (n, 4) central boxes of the nearest allowed ratio, at least one pixel a side."""
        narrowest, widest = self.ratio
        ratios = widths / heights
        too_narrow, too_wide = ratios < narrowest, ratios > widest
        width = np.where(too_wide, np.maximum(np.rint(heights * widest), 1), widths)
        height = np.where(too_narrow, np.maximum(np.rint(widths / narrowest), 1), heights)
        left, top = np.floor((widths - width) / 2), np.floor((heights - height) / 2)
        return np.stack((left, top, left + width, top + height), axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizedBoxes:
    """Boxes that, resampled, equal resizing the whole image and cutting its centre, as torchvision does on PIL images.

    Attributes:
        resize: the length of the shorter side after resizing, or (height, width).
        crop: (height, width) of the central crop, or None for the whole resized image, which needs (height, width).
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int] | None

    def resized(self, widths: IntArray, heights: IntArray) -> IntArray:
        """Return (n, 2) widths and heights of the whole images after resizing, for (n,) sizes ≥ 1.

        Source: torchvision.transforms.v2.functional, ``_compute_resized_output_size``: the longer side is truncated.
        """
        if isinstance(self.resize, int):
            longer = self.resize * np.maximum(widths, heights) // np.minimum(widths, heights)
            sides = np.where(widths <= heights, self.resize, longer), np.where(widths <= heights, longer, self.resize)
        else:
            sides = np.full_like(widths, self.resize[1]), np.full_like(widths, self.resize[0])
        return np.stack(sides, axis=1)

    def boxes(self, widths: IntArray, heights: IntArray, resized: IntArray) -> FloatArray:
        """Return (n, 4) boxes in the stored images, given what `resized` returned.

        Source: torchvision.transforms.v2.functional, ``_center_crop_compute_crop_anchor``: offsets are rounded half
        to even.
        """
        new_width, new_height = resized[:, 0], resized[:, 1]
        crop_height, crop_width = self.crop or (new_height, new_width)
        left = np.rint((new_width - crop_width) / 2.0)
        top = np.rint((new_height - crop_height) / 2.0)
        edges = (
            left * widths / new_width,
            top * heights / new_height,
            (left + crop_width) * widths / new_width,
            (top + crop_height) * heights / new_height,
        )
        return np.stack(edges, axis=1)


def fill_unreadable(boxes: FloatArray, readable: NDArray[np.bool_]) -> None:
    """Overwrite, in (n, V, 4) boxes, those of images whose size the index does not know with a valid box."""
    boxes[~readable] = _UNREADABLE_BOX


def exact_log(value: float) -> float:
    """Return the natural logarithm of a positive number, correctly rounded, the same on every machine."""
    with localcontext() as context:
        context.prec = 40  # digits; a double holds 17, so that the second rounding does no harm
        return float(Decimal(value).ln())


def _ln2_parts() -> tuple[float, float]:
    """Return ln 2 as a leading part with 32 trailing zero bits, so that small multiples are exact, and the rest."""
    with localcontext() as context:
        context.prec = 60
        ln2 = Decimal(2).ln()
        leading = float(int(ln2 * 2**21)) / 2**21
        return leading, float(ln2 - Decimal(leading))


_LN2_HIGH, _LN2_LOW = _ln2_parts()
_PER_LN2 = 1.4426950408889634  # 1 / ln 2; only chooses k below, any nearby value would do
_TAYLOR = tuple(1.0 / math.factorial(k) for k in range(15))  # 0.35**15 / 15! is below 2**-60


def exact_exp(x: FloatArray) -> FloatArray:
    """Return e**x to 1e-15 relative, bit-identical on every machine, for |x| < 700.

    x = k·ln 2 + r with |r| ≤ ln 2 / 2 (Cody and Waite's reduction in two steps), a Taylor polynomial for e**r by
    Horner's rule, and an exact scaling by 2**k. NumPy evaluates each operation on its own, so no multiply-add is fused.
    """
    k = np.rint(x * _PER_LN2)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    power = np.full_like(r, _TAYLOR[-1])
    for coefficient in reversed(_TAYLOR[:-1]):
        power = power * r + coefficient
    return np.ldexp(power, k.astype(np.int32))
