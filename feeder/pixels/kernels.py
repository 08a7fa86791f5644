"""Kernels of pixel operations on the CPU, in NumPy: one image at a time, in place.

They compute what ``torchvision.transforms.v2.functional`` computes on uint8 tensors, in the same single-precision
arithmetic, so that results are equal but where a sum is rounded in another order (±1). Hue is exact in another way, see
`hue`, and ±1 too. Most work on *planes*, (3, H, W) uint8: NumPy's loops are vectorised over contiguous memory, and
over single bytes they are several times faster than over floats. Every loop runs without the GIL.
"""

import math

import numpy as np
from numpy.typing import NDArray

from feeder.optional import load
from feeder.windows import exact_exp

UInt8Array = NDArray[np.uint8]
Float32Array = NDArray[np.float32]

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G and B
HUE_BITS = 6  # fractional bits of a hue: 255 · 2 · 2**6 is the most that int16 holds
BLUR_SIGMAS = 4.0  # a Gaussian holds 6e-5 of its mass beyond: 0.02 of the levels of a pixel


class Workspace:
    """Scratch memory for images of one size, for one thread: made once for a run of images, touched only where used."""

    def __init__(self, height: int, width: int) -> None:
        self.planes = np.empty((3, height, width), np.uint8)
        self.floats = np.empty((3, height, width), np.float32)
        self.grey = np.empty((height, width), np.float32)
        self.more_floats = np.empty((3, height, width), np.float32)
        self.integers = np.empty((6, height, width), np.int16)
        self.bytes = np.empty((3, height, width), np.uint8)
        self.marks = np.empty((height, width), np.bool_)

    def load(self, image: UInt8Array) -> UInt8Array:
        """Return the planes of an (H, W, 3) image, which last until the next call."""
        np.copyto(self.planes, image.transpose(2, 0, 1))
        return self.planes

    def save(self, image: UInt8Array) -> None:
        """Write the planes back into an (H, W, 3) image."""
        for channel, plane in enumerate(self.planes):  # four times as fast as one copy of all three
            image[..., channel] = plane


def _store(floats: Float32Array, pixels: UInt8Array) -> None:
    """Write floats as pixels, as torchvision does: clamped, and truncated."""
    np.clip(floats, np.float32(0), np.float32(255), out=floats)
    np.copyto(pixels, floats, casting="unsafe")


def _blended(pixels: UInt8Array, factor: float, other: Float32Array | np.float32, floats: Float32Array) -> None:
    """Overwrite pixels with factor · pixels + other."""
    np.multiply(pixels, np.float32(factor), out=floats)
    floats += other
    _store(floats, pixels)


def brightness(pixels: UInt8Array, factor: float, space: Workspace) -> None:
    """Multiply by the factor; any layout."""
    floats = space.floats.reshape(pixels.shape)
    np.multiply(pixels, np.float32(factor), out=floats)
    _store(floats, pixels)


def contrast(planes: UInt8Array, factor: float, space: Workspace) -> None:
    """Blend with the mean of the grey image."""
    grey = _grey(planes, space)
    mean = np.float32(grey.sum() / np.float32(grey.size))
    _blended(planes, factor, np.float32(1.0 - factor) * mean, space.floats)


def saturation(planes: UInt8Array, factor: float, space: Workspace) -> None:
    """Blend with the grey image."""
    grey = _grey(planes, space)
    grey *= np.float32(1.0 - factor)
    _blended(planes, factor, grey, space.floats)


def _grey(planes: UInt8Array, space: Workspace) -> Float32Array:
    """Return the (H, W) grey image in whole numbers, in the workspace."""
    grey, term = space.grey, space.floats[0]
    np.multiply(planes[0], np.float32(GREY_WEIGHTS[0]), out=grey)
    for plane, weight in zip(planes[1:], GREY_WEIGHTS[1:], strict=True):
        np.multiply(plane, np.float32(weight), out=term)
        grey += term
    return np.floor(grey, out=grey)


def greyscale(planes: UInt8Array, space: Workspace) -> None:
    np.copyto(planes, _grey(planes, space), casting="unsafe")


def hue_shift(factor: float) -> tuple[int, bool, float]:
    """Return a hue shift of ``factor`` turns as thirds of a turn, whether the rest is negative, and its size in sixths.

    A third of a turn permutes the channels; a negative shift is a positive one of the image with G and B exchanged.
    """
    sixths = 6.0 * factor
    thirds = round(sixths / 2)
    rest = sixths - 2 * thirds
    return thirds % 3, rest < 0, abs(rest)


def hue(planes: UInt8Array, factor: float, space: Workspace) -> None:
    """Turn the hue by ``factor`` of a full circle, with saturation and value kept (HSV hexcone).

    In HSV every channel is a trapezoid of the hue between the pixel's least value m and greatest V, with slopes of
    V − m = C a sixth of a turn. A shift by d ≤ 1 sixths moves along such a slope, so that no division is needed: with
    R, G, B for (x, y, z) and its cyclic permutations, x' = clip(x − y + (V − d·C if z is m else m + d·C), m, V).
    In 2**-6 levels all of it fits into int16.
    """
    thirds, mirrored, rest = hue_shift(factor)
    scale, one = np.int16(HUE_BITS), np.int16(1 << HUE_BITS)
    least, greatest, chroma = space.bytes
    np.minimum(np.minimum(planes[0], planes[1], out=least), planes[2], out=least)
    np.maximum(np.maximum(planes[0], planes[1], out=greatest), planes[2], out=greatest)
    np.subtract(greatest, least, out=chroma)

    low, high, rising, span, result, term = space.integers
    np.multiply(chroma, np.float32(rest * one), out=space.grey)
    np.rint(space.grey, out=space.grey)
    np.copyto(term, space.grey, casting="unsafe")  # d·C
    np.multiply(least, one, out=low)
    np.multiply(greatest, one, out=high)
    np.add(low, term, out=rising)
    np.subtract(high, term, out=span)
    span -= rising  # what turns m + d·C into V − d·C

    turned = space.more_floats.view(np.uint8).reshape(-1)[: planes.size].reshape(planes.shape)
    order = (0, 2, 1) if mirrored else (0, 1, 2)
    for index in range(3):
        x, y, z = (order[(index + step) % 3] for step in range(3))
        np.equal(planes[z], least, out=space.marks)
        np.multiply(span, space.marks, out=result)
        result += rising
        np.subtract(planes[x], planes[y], out=term, dtype=np.int16)
        np.left_shift(term, scale, out=term)
        result += term
        np.maximum(result, low, out=result)
        np.minimum(result, high, out=result)
        result += np.right_shift(result, np.int16(8), out=term)  # torchvision multiplies by 255.999 / 255
        np.right_shift(result, scale, out=result)
        np.copyto(turned[(x + thirds) % 3], result, casting="unsafe")
    np.copyto(planes, turned)


def least_solarized(threshold: float) -> int:
    """Return the least whole level that is at least the threshold in single precision, as torch compares them."""
    return math.ceil(np.float32(threshold))


def solarize(image: UInt8Array, threshold: float) -> None:
    """Invert what is at least the threshold of 0 … 255; any layout."""
    above = (image >= np.uint8(least_solarized(threshold))).view(np.uint8)
    image ^= np.negative(above, out=above)  # 255 where above


def posterize(image: UInt8Array, bits: int) -> None:
    """Keep the highest bits; any layout."""
    image &= np.uint8(0xFF & ~(0xFF >> bits))


def invert(image: UInt8Array) -> None:
    np.invert(image, out=image)


def autocontrast(planes: UInt8Array, space: Workspace) -> None:
    """Stretch each channel to the whole range."""
    floats = space.grey
    for plane in planes:
        least, greatest = np.float32(plane.min()), np.float32(plane.max())
        if least < greatest:
            np.subtract(plane, least, out=floats)
            floats /= (greatest - least) * np.float32(1 / 255)
            _store(floats, plane)


def equalize(image: UInt8Array) -> None:
    """Level the histogram of each channel of an (H, W, 3) image, with the table of Pillow's ``ImageOps.equalize``.

    Pillow counts and looks up: it takes 283 µs for 224 × 224 pixels, `numpy.bincount` and ``take`` 449 µs.
    """
    height, width, _ = image.shape
    source = load("pillow").frombuffer("RGB", (width, height), np.ascontiguousarray(image), "raw", "RGB", 0, 1)
    counts = np.array(source.histogram()).reshape(3, 256)
    greatest = 255 - (counts[:, ::-1] > 0).argmax(axis=1)
    step = (height * width - counts[np.arange(3), greatest])[:, None] // 255
    before = counts.cumsum(axis=1) - counts
    table = ((before + step // 2) // np.maximum(step, 1)).clip(0, 255)
    leveled = source.point(np.where(step > 0, table, np.arange(256)).ravel().tolist())
    image[...] = np.frombuffer(leveled.tobytes(), np.uint8).reshape(image.shape)


def sharpness(image: UInt8Array, factor: float, space: Workspace) -> None:
    """Blend an (H, W, 3) image with its 3 × 3 smoothing (5 in the middle, 1 around, over 13); the border stays."""
    height, width, _ = image.shape
    if min(height, width) <= 2:
        return
    rows = image.reshape(height, 3 * width)
    inner = rows[1:-1, 3:-3]
    sums = space.integers.reshape(-1)[: (height - 2) * 3 * width].reshape(height - 2, 3 * width)
    np.add(rows[:-2], rows[1:-1], out=sums, dtype=np.int16)
    sums += rows[2:]
    floats = space.floats.reshape(-1)[: inner.size].reshape(inner.shape)
    smooth = space.more_floats.reshape(-1)[: inner.size].reshape(inner.shape)
    np.multiply(inner, np.float32(4), out=floats)
    smooth[...] = sums[:, 3:-3]
    smooth += sums[:, :-6]
    smooth += sums[:, 6:]
    smooth += floats
    smooth *= np.float32(1 / 13)
    np.rint(smooth, out=smooth)
    np.copyto(floats, inner)
    smooth -= floats
    smooth *= np.float32(1.0 - factor)
    floats += smooth
    _store(floats, inner)


def blur_weights(kernel_size: int, sigma: float) -> NDArray[np.float64]:
    """Return the weights of a Gaussian from its middle outwards, (radius + 1,): those that can change a pixel.

    Source: torchvision.transforms.v2.functional, ``_get_gaussian_kernel1d``; weights beyond 4 σ are left out.
    """
    radius = min(kernel_size // 2, math.ceil(BLUR_SIGMAS * sigma))
    weights = exact_exp(np.arange(radius + 1) ** 2 / (-2.0 * sigma * sigma))
    return np.asarray(weights / (weights[0] + 2 * weights[1:].sum()))


def gaussian_blur(image: UInt8Array, kernel_size: tuple[int, int], sigma: float) -> None:
    """Blur an (H, W, 3) image with borders reflected, in single precision; rounded.

    Args:
        image: larger than half the kernel on each side.
        kernel_size: (width, height) of the kernel in pixels.
        sigma: standard deviation in pixels.
    """
    height, width, _ = image.shape
    across, down = (blur_weights(size, sigma) for size in kernel_size)
    left, above = across.size - 1, down.size - 1
    padded = np.empty((height + 2 * above, width + 2 * left, 3), np.float32)
    padded[above : above + height, left : left + width] = image
    middle = padded[above : above + height]
    middle[:, :left] = middle[:, 2 * left : left : -1]
    middle[:, left + width :] = middle[:, left + width - 2 : width - 2 : -1]
    padded[:above] = padded[2 * above : above : -1]
    padded[above + height :] = padded[above + height - 2 : height - 2 : -1]
    rows = padded.reshape(padded.shape[0], -1)
    blurred = _weighted(rows, down, height, 1, axis=0)
    blurred = _weighted(blurred, across, 3 * width, 3, axis=1)
    np.rint(blurred, out=blurred)
    np.copyto(image, blurred.reshape(image.shape), casting="unsafe")


def _weighted(rows: Float32Array, weights: NDArray[np.float64], length: int, step: int, *, axis: int) -> Float32Array:
    """Return the weighted sum of (H, 3 W) rows with themselves, shifted along an axis by multiples of a step."""
    radius = weights.size - 1

    def shifted(by: int) -> Float32Array:
        part = slice((radius + by) * step, (radius + by) * step + length)
        return rows[part] if axis == 0 else rows[:, part]

    total = shifted(0) * np.float32(weights[0])
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        np.add(shifted(-distance), shifted(distance), out=pair)
        pair *= np.float32(weights[distance])
        total += pair
    return total
