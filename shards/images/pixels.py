"""Decoding, scaling, turning and encoding one image with Pillow, as `feeder.shards.images.rules` says.

Pillow's readers are called directly, one class a format: ``PIL.Image.open`` would warn about large images, whose size
was checked, and parse EXIF blocks, which are often damaged.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from feeder.errors import ConfigError
from feeder.shards.errors import BadImageError
from feeder.shards.images.exif import UPRIGHT, orientation_block, upright_tiff
from feeder.shards.images.headers import ImageHeader
from feeder.shards.images.rules import Change

_DECODED_TIMES = 2  # a JPEG is decoded at no less than so many times its final size; see `_reduce`
_PNG_LEVEL = 1  # on photographs a third of the time of Pillow's 6, for 6 % more bytes
_PNG_LEVEL_OF_MASKS = 6  # areas of one value compress in no time
_REASON_CHARACTERS = 120  # some readers quote the bytes they stumbled over

_SIXTEEN_BITS = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})  # "I": 16 bits in 32, as of PGM
_ALPHA = frozenset({"LA", "PA", "RGBA"})
_USABLE = _SIXTEEN_BITS | _ALPHA | {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}
_ENCODED = {
    "jpeg": frozenset({"L", "RGB", "CMYK"}),
    "webp": frozenset({"RGB", "RGBA"}),
    "png": frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}),
}
_PROFILE_SPACES = {"1": b"GRAY", "L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "CMYK": b"CMYK"}  # of others, RGB

# As PIL.ImageOps.exif_transpose; EXIF 2.32, section 4.6.4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Jpeg(JpegImageFile):
    """Reads no EXIF block, where Pillow would look for a resolution, and warn about damage."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


_READERS: dict[str, type[ImageFile]] = {
    "jpeg": _Jpeg,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "ppm": PpmImageFile,
}


def rewrite(data: bytes, header: ImageHeader, change: Change) -> bytes | None:
    """Return the image changed and encoded anew; None where it was only to become RGB, and is.

    Raises:
        BadImageError: it cannot be decoded, or has pixels that cannot be kept.
        ConfigError: the installed Pillow lacks what the format needs.
    """
    lossless = change.nearest or _is_lossless(data, header.format)
    with _silent(header.format):
        image = _open(data, header)
        profile = image.info.get("icc_profile")
        scaled = image.size != change.size
        if not scaled and change.turn == UPRIGHT and _is_rgb(image):
            return None
        if change.nearest and _is_deep(image):
            raise BadImageError("undecodable", "it has 16 bits in each of several channels, of which 8 would be lost")
        box = _reduce(image, change.size) if scaled else None
        _load(image, header.format, len(data))
        target = header.format if header.format in _ENCODED else "png"
        pixels = _converted(image, change, target, scaled=scaled)
        if scaled:
            filters = Image.Resampling.NEAREST if change.nearest else Image.Resampling.LANCZOS
            pixels = pixels.resize(change.size, filters, box)
        if change.turn != UPRIGHT:
            pixels = pixels.transpose(_TURNS[change.turn])
        return _encode(pixels, target, change, profile, lossless=lossless)


@contextlib.contextmanager
def _silent(kind: str) -> Iterator[None]:
    """Keep Pillow's warnings about TIFF tags and PNG chunks off the terminal; its JPEG reader has none left."""
    if kind == "jpeg":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes, header: ImageHeader) -> ImageFile:
    """Return the image, not decoded yet."""
    if header.format == "webp" and not features.check("webp"):
        raise ConfigError(
            "the installed Pillow was built without WebP, and a WebP image is to be changed; "
            "use a complete build: pip install --force-reinstall pillow"
        )
    try:
        image = _READERS[header.format](BytesIO(upright_tiff(data) if header.format == "tiff" else data))
    except MemoryError:
        raise
    except Exception as error:
        raise _bad_or_unable(header.format, error) from error
    if image.size != (header.width, header.height):
        raise BadImageError("undecodable", f"its decoder finds {image.width}×{image.height} pixels in it")
    if image.mode not in _USABLE:
        raise BadImageError("undecodable", f"its pixels are of mode {image.mode}, which has no agreed range in 8 bits")
    return image


def _load(image: ImageFile, kind: str, size_bytes: int) -> None:
    """Decode the image."""
    try:
        image.decodermaxblock = size_bytes  # one call of the decoder, where 64 kB at a time would copy
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _bad_or_unable(kind, error) from error


def _bad_or_unable(kind: str, error: Exception) -> Exception:
    """Return what to raise for an exception of a reader: that the image is bad, or that a decoder is missing here."""
    text = " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)).split()).rstrip(".")[:_REASON_CHARACTERS]
    if isinstance(error, OSError) and re.fullmatch(r"decoder \w+ not available", text):
        return ConfigError(
            f"the installed Pillow has no {text.split()[1]} decoder, which a {kind} image to be changed needs; "
            "use a complete build: pip install --force-reinstall pillow"
        )
    if not isinstance(error, OSError | ValueError | SyntaxError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return BadImageError("undecodable", f"it cannot be decoded as {kind}: {text}")


def _reduce(image: ImageFile, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8, by its own transform, while that is twice the final size.

    Returns the box of the reduced image that is the whole: its last pixels may reach beyond.

    Against Lanczos alone, at 256 pixels of 12 megapixels: PSNR 50 dB, 41 instead of 65 ms. The encoding at quality 90
    that follows costs 31 dB. With three times the size it would be 55 dB and 49 ms; with once, 39 dB and 35 ms.
    """
    if not isinstance(image, JpegImageFile):
        return None
    reduced = image.draft(None, (size[0] * _DECODED_TIMES, size[1] * _DECODED_TIMES))
    return reduced[1] if reduced else None


def _is_rgb(image: ImageFile) -> bool:
    """Return whether an image has three channels of 8 bits, and nothing transparent."""
    return image.mode == "RGB" and "transparency" not in image.info and not _is_deep(image)


def _is_deep(image: ImageFile) -> bool:
    """Return whether an image, not decoded yet, has channels of 16 bits of which Pillow will keep 8."""
    if image.mode in _SIXTEEN_BITS or not image.tile:
        return False
    match image.tile[0].args:
        case (str(), int(greatest)):  # of Netpbm
            return greatest > 255
        case args:
            return ";16" in str(args)


def _converted(image: ImageFile, change: Change, target: str, *, scaled: bool) -> Image.Image:
    """Return the decoded image in a mode that can be scaled and encoded; of its metadata only transparency is left."""
    deep = image.mode in _SIXTEEN_BITS
    transparent = image.mode in _ALPHA or ("transparency" in image.info and not deep)
    pixels: Image.Image = _sixteen_bits(image) if deep else image
    if change.rgb:
        if transparent:
            pixels = pixels.convert("RGBA")
            pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
        pixels = (_high_bytes(pixels) if deep else pixels).convert("RGB")
    elif scaled and not change.nearest and not deep:
        if pixels.mode in ("1", "L", "LA"):
            pixels = pixels.convert("LA" if transparent else "L")
        elif transparent or pixels.mode == "P":
            pixels = pixels.convert("RGBA" if transparent else "RGB")
    if pixels.mode not in _ENCODED[target]:
        pixels = pixels.convert("RGBA" if transparent else "RGB")
    kept = pixels.info.get("transparency") if pixels.mode in ("1", "L", "P", "RGB") and not change.rgb else None
    pixels.info = {} if kept is None else {"transparency": kept}
    return pixels


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Return an image of one channel as 16 bits in the machine's order."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BadImageError("undecodable", "its values need more than 16 bits, the most that PNG holds")
    return Image.fromarray(values.astype(np.uint16))


def _high_bytes(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8 bits, as readers give 16-bit colour; Pillow's conversion would clip at 255 instead."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _is_lossless(data: bytes, kind: str) -> bool:
    """Return whether the first frame of a WebP image is lossless; its chunk is the first of the two."""
    if kind != "webp":
        return False
    lossless, lossy = data.find(b"VP8L"), data.find(b"VP8 ")
    return lossless >= 0 and (lossy < 0 or lossless < lossy)


def _encode(pixels: Image.Image, target: str, change: Change, profile: bytes | None, *, lossless: bool) -> bytes:
    """Return the pixels encoded: every setting is given, so that no default of a release decides it."""
    options: dict[str, Any] = {}
    if target == "jpeg":
        options = {"quality": change.quality, "subsampling": "4:2:0", "optimize": False, "progressive": False}
    elif target == "webp":
        options = {"quality": change.quality, "lossless": lossless, "method": 4, "exact": change.nearest}
    else:
        options = {"compress_level": _PNG_LEVEL_OF_MASKS if change.nearest else _PNG_LEVEL}
    if profile and profile[16:20] == _PROFILE_SPACES.get(pixels.mode, b"RGB "):
        options["icc_profile"] = profile
    if change.keep != UPRIGHT:
        options["exif"] = orientation_block(change.keep)
    buffer = BytesIO()
    pixels.save(buffer, target, **options)
    return buffer.getvalue()
