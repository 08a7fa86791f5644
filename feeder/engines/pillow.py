"""The reference engine: Pillow, or pillow-simd, which is the same with vector instructions.

Each image is decoded once, whole; its windows are cut from it. ``draft`` (decoding at half size) would be faster and is
not used: it changes pixels. Pillow releases the GIL in the decoder and the filter.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from feeder.engines import check_arguments
from feeder.engines.formats import SIXTEEN_BIT_MODES, BadImageError, load_image
from feeder.windows import Windows

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_MASK_MODES = frozenset({"1", "L", "P"})
_MAX_RESIZED_PIXELS = 2**24  # 64 MiB in Pillow; only images 255 times as long as wide exceed it at 256 pixels a side


@dataclass(frozen=True, slots=True)
class PillowEngine:
    """See `feeder.engines.Engine` for its duties and for the pixel contract, of which it is the reference."""

    name: str = "pillow"

    def decode(
        self, images: Sequence[bytes], windows: Sequence[Windows], out: Sequence[NDArray[np.uint8]]
    ) -> dict[int, str]:
        """Decode n images, each once, and write their windows; see `feeder.engines.Engine.decode`."""
        check_arguments(images, windows, out)

        def cut(image: Image.Image, index: int) -> None:
            for one, array in zip(windows, out, strict=True):
                _cut(image, one, index, array[index], _FILTERS[one.interpolation], _to_rgb)

        return _decode_each(images, windows[0].sizes, out, cut)


def decode_masks(
    images: Sequence[bytes], windows: Sequence[Windows], out: Sequence[NDArray[np.uint8]]
) -> dict[int, str]:
    """Decode n masks, each once, and write their windows, each pixel a stored value: a palette's index, or a grey.

    Masks have the geometry of the image they belong to, and nearest as their filter, whatever that of the image.

    Args:
        images: n encoded files, of the sizes that the windows name.
        windows: what to cut, one entry for each size of output.
        out: for each of these (n, V, H, W) uint8; every element is written.

    Returns:
        Why masks could not be decoded, as `feeder.engines.Engine.decode` does.
    """

    def cut(image: Image.Image, index: int) -> None:
        if image.mode not in _MASK_MODES:
            raise BadImageError(f"has pixels of mode {image.mode}; a mask has one value of 8 bits a pixel")
        for one, array in zip(windows, out, strict=True):
            _cut(image, one, index, array[index], Image.Resampling.NEAREST, _to_values)

    return _decode_each(images, windows[0].sizes, out, cut)


def _decode_each(
    images: Sequence[bytes],
    sizes: NDArray[np.int32],
    out: Sequence[NDArray[np.uint8]],
    cut: Callable[[Image.Image, int], None],
) -> dict[int, str]:
    """Decode images and hand each to ``cut``; return why some failed, whose rows are zeros."""
    failures: dict[int, str] = {}
    for index, (data, (width, height)) in enumerate(zip(images, sizes.tolist(), strict=True)):
        try:
            cut(load_image(data, width, height), index)
        except BadImageError as error:
            failures[index] = str(error)
            for array in out:
                array[index] = 0
    return failures


def _cut(
    image: Image.Image,
    windows: Windows,
    index: int,
    out: NDArray[np.uint8],
    resample: Image.Resampling,
    convert: Callable[[Image.Image], Image.Image],
) -> None:
    """Write the windows of one decoded image into out, (V, H, W, …) uint8."""
    size = out.shape[2], out.shape[1]
    boxes: list[tuple[float, float, float, float]] = windows.boxes[index].tolist()
    if windows.clipped:  # conversion is pixel by pixel, so that only the boxes need be converted
        pieces: Iterable[Image.Image] = (_crop(image, box, convert).resize(size, resample) for box in boxes)
    else:
        resized = None if windows.resized is None else windows.resized[index].tolist()
        pieces = _read_beyond(image, boxes, size, resample, resized, convert)
    for view, (piece, flip) in enumerate(zip(pieces, windows.flips[index], strict=True)):
        # Eight times as fast here as a reversed copy in NumPy, which moves single bytes.
        mirrored = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else piece
        out[view] = np.frombuffer(mirrored.tobytes(), np.uint8).reshape(out.shape[1:])


def _read_beyond(
    image: Image.Image,
    boxes: list[tuple[float, float, float, float]],
    size: tuple[int, int],
    resample: Image.Resampling,
    resized: list[int] | None,
    convert: Callable[[Image.Image], Image.Image],
) -> Iterator[Image.Image]:
    """Yield the windows of an image, converted, whose filter may read beyond the boxes.

    Where the size of the resized whole image is known and not excessive, that image is made and cut, in twice the time
    of resampling the box alone: so pixels equal torchvision's to the bit. ``resize(box=)`` takes the box in single
    precision and chooses the order of its passes by the box's shape: bicubic pixels are off by up to 2 in Pillow 12, 15
    in Pillow 13.
    """
    image = convert(image)
    if resized is None or resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
        for box in boxes:
            yield image.resize(size, resample, box=box)
        return
    whole = image.resize((resized[0], resized[1]), resample)
    for x0, y0, _, _ in boxes:
        left, top = round(x0 * resized[0] / image.width), round(y0 * resized[1] / image.height)
        yield whole if whole.size == size else _crop(whole, (left, top, left + size[0], top + size[1]), convert)


def _crop(
    image: Image.Image,
    box: tuple[float, float, float, float],
    convert: Callable[[Image.Image], Image.Image],
) -> Image.Image:
    """Return the box, at whole numbers, of an image, converted."""
    width, height = round(box[2] - box[0]), round(box[3] - box[1])
    if Image.MAX_IMAGE_PIXELS is None or width * height <= Image.MAX_IMAGE_PIXELS:
        return convert(image.crop(box))
    # ``crop`` would warn here, or raise; this copies the same pixels.
    return convert(image).transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.NEAREST)


def _to_values(image: Image.Image) -> Image.Image:
    """Return the stored values of a mask as greys: indexes into a palette, not its colours; 0 and 1 of one bit."""
    return image if image.mode == "L" else Image.fromarray(np.asarray(image).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, pixel by pixel, as the pixel contract in `feeder.engines` says."""
    if image.mode in SIXTEEN_BIT_MODES:
        # The high byte, as readers give it for 16-bit colour; Pillow's conversion would clip at 255 instead.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
