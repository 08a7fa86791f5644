"""The reference engine: Pillow, or pillow-simd, which is the same with vector instructions.

Each image is decoded once, whole; its windows are cut from it. ``draft`` (decoding at half size) would be faster and is
not used: it changes pixels. Pillow releases the GIL in the decoder and the filter.
"""

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class PillowEngine:
    """See `feeder.engines.Engine` for its duties and for the pixel contract, of which it is the reference."""

    name: str = "pillow"

    def decode(self, images: Sequence[bytes], windows: Windows, out: NDArray[np.uint8]) -> dict[int, str]:
        """Decode n images and write their V windows; see `feeder.engines.Engine.decode`."""
        check_arguments(images, windows, out)
        failures: dict[int, str] = {}
        sizes = windows.sizes.tolist()
        for index, data in enumerate(images):
            try:
                image = load_image(data, *sizes[index])
            except BadImageError as error:
                failures[index] = str(error)
                out[index] = 0
                continue
            _cut(image, windows, index, out[index])
        return failures


def _cut(image: Image.Image, windows: Windows, index: int, out: NDArray[np.uint8]) -> None:
    """Write the windows of one decoded image into out, (V, H, W, 3) uint8."""
    height, width = out.shape[1:3]
    resample = _FILTERS[windows.interpolation]
    if not windows.clipped:
        image = _to_rgb(image)
    for view, (box, flip) in enumerate(zip(windows.boxes[index].tolist(), windows.flips[index], strict=True)):
        if windows.clipped:  # conversion is per pixel, so that only the box need be converted
            piece = _to_rgb(image.crop(box)).resize((width, height), resample)
        else:
            piece = image.resize((width, height), resample, box=box)
        if flip:  # 8 times as fast here as a reversed copy in NumPy, which moves single bytes
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out[view] = np.frombuffer(piece.tobytes(), np.uint8).reshape(height, width, 3)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, pixel by pixel, as the pixel contract in `feeder.engines` says."""
    if image.mode in SIXTEEN_BIT_MODES:
        # The high byte, as readers give it for 16-bit colour; Pillow's conversion would clip at 255 instead.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
