"""Images for tests: deterministic, small, and with enough detail that a wrong box or filter shows."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, *, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """Return picture ``number``: a gradient whose direction and colours depend on the number, with noise on top.

    Args:
        number: equal numbers give equal pixels.
        size: (width, height), as in Pillow.
        mode: a mode of Pillow; "I;16" and "I" get 16-bit values, alpha varies over the picture.
    """
    width, height = size
    random = np.random.default_rng(number)
    x = np.linspace(0, 1, width)[None, :, None]
    y = np.linspace(0, 1, height)[:, None, None]
    corner, across, down = random.uniform(0, 255, (3, 3))
    pixels = corner * (1 - x) + across * x * (1 - y) + down * x * y + random.normal(0, 12, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(Image.fromarray(np.broadcast_to(255 * x[..., 0], (height, width)).astype(np.uint8), "L"))
    if mode in ("I;16", "I"):
        sixteen = np.asarray(image.convert("L")).astype(np.uint16) * 257  # 255 becomes 65535
        return Image.fromarray(sixteen if mode == "I;16" else sixteen.astype(np.int32))
    return image.convert(mode)


def encoded(
    number: int, *, size: tuple[int, int] = (64, 48), mode: str = "RGB", format: str = "JPEG", quality: int = 85
) -> bytes:
    """Return picture ``number`` as the bytes of an image file; ``quality`` counts where the format has one."""
    buffer = io.BytesIO()
    picture(number, size=size, mode=mode).save(buffer, format, quality=quality)
    return buffer.getvalue()


def write_image_folder(
    root: Path, *, classes: tuple[str, ...] = ("ant", "bee", "cat"), per_class: int = 12, first: int = 0
) -> Path:
    """Write class folders with JPEGs of varying sizes below ``root`` (made if need be) and return it.

    Picture number ``first + i`` is the i-th file: ``ant/ant-00.jpg`` and so on, 40 to 103 pixels wide and high.
    """
    number = first
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            size = (40 + number * 37 % 64, 40 + number * 23 % 64)
            (folder / f"{name}-{i:02}.jpg").write_bytes(encoded(number, size=size))
            number += 1
    return root
