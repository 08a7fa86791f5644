"""Opening encoded images with Pillow's readers: by signature, silently, and with the stored orientation.

``PIL.Image.open`` is not used: it warns on stderr about large images, odd EXIF blocks and broken multi-picture files,
and silencing that (``warnings.catch_warnings``) is not safe in threads. Its readers, one class a format, are called
directly, and the causes of their warnings are removed beforehand: EXIF is not parsed, and the few structures that
readers complain about are checked or blanked here.
"""

import re
import struct
from collections.abc import Callable
from io import BytesIO

from PIL import Image, TiffTags, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from feeder.errors import ConfigError

MAX_PIXELS = 178_956_970  # width × height, 683 MiB in Pillow, which takes more for a decompression bomb


class BadImageError(ValueError):
    """The bytes are no image that can be used; the message is one clause, to stand after the image's name."""


class _WithoutExif(ImageFile):
    """Reads no EXIF block: orientation is ignored, and damaged blocks, common in photographs, cause no warning."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _Jpeg(_WithoutExif, JpegImageFile):
    pass


class _Tiff(_WithoutExif, TiffImageFile):
    def load_prepare(self) -> None:
        ImageFile.load_prepare(self)  # TIFF's own would first warn about a large image, whose size was checked here


def _open_png(data: bytes) -> ImageFile:
    _check_animation(data)
    return PngImageFile(BytesIO(data))


def _open_webp(data: bytes) -> ImageFile:
    if not features.check("webp"):
        raise ConfigError(
            "the installed Pillow was built without WebP, and the dataset holds WebP images; "
            "use a complete build: pip install --force-reinstall pillow"
        )
    return WebPImageFile(BytesIO(data))


# Format by signature. JPEG covers multi-picture files, of which the first picture counts.
_FORMATS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes], ImageFile]], ...] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), lambda data: _Jpeg(BytesIO(data))),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), _open_png),
    ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL), _open_webp),
    ("GIF", re.compile(rb"GIF8[79]a"), lambda data: GifImageFile(BytesIO(data))),
    ("BMP", re.compile(rb"BM"), lambda data: BmpImageFile(BytesIO(data))),
    ("TIFF", re.compile(rb"II\*\x00|MM\x00\*"), lambda data: _Tiff(BytesIO(_blank_tiff_entries(data)))),
    ("PPM", re.compile(rb"P[1-6]"), lambda data: PpmImageFile(BytesIO(data))),
)
FORMATS = tuple(name for name, _, _ in _FORMATS)


def load_image(data: bytes, width: int, height: int) -> Image.Image:
    """Return the decoded image, in the mode in which it is stored.

    Args:
        data: an encoded image.
        width: of the stored image in pixels, as the index knows it; 0 where it does not.
        height: likewise.

    Raises:
        BadImageError: the bytes are not an image of that size. Every exception of a reader counts, but not running out
            of memory, which depends on the machine.
        ConfigError: this installation lacks the format's decoder.
    """
    found = next(((name, opener) for name, signature, opener in _FORMATS if signature.match(data)), None)
    if found is None:
        raise BadImageError(f"is not an image of a known format ({', '.join(FORMATS)})" if data else "is empty")
    name, opener = found
    try:
        image = opener(data)
        _check_size(image.size, width, height)
        _check_mode(image.mode)
        image.decodermaxblock = len(data)  # one call of the decoder, where 64 kB at a time would copy and take the GIL
        image.load()
    except (ConfigError, BadImageError, MemoryError):
        raise
    except Exception as error:
        raise _bad_or_unable(name, error) from error
    # A palette's transparency, as a table, would make conversion to RGB warn; alpha is dropped anyway.
    image.info.pop("transparency", None)
    return image


def _check_size(size: tuple[int, int], width: int, height: int) -> None:
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        raise BadImageError(f"has {size[0]}×{size[1]} pixels, more than the limit of {MAX_PIXELS}")
    if size != (width, height):
        raise BadImageError(f"is {size[0]}×{size[1]} but the index says {width}×{height}")


SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})  # "I": 16 bits in 32, of older readers
_USABLE_MODES = SIXTEEN_BIT_MODES | {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def _check_mode(mode: str) -> None:
    if mode == "F":
        raise BadImageError("has floating-point pixels, which have no agreed range; convert it to 8 bits")
    if mode not in _USABLE_MODES:
        raise BadImageError(f"has pixels of mode {mode}, which do not become RGB in one agreed way")


_REASON_CHARACTERS = 120  # some readers quote the bytes they stumbled over


def _bad_or_unable(name: str, error: Exception) -> Exception:
    """Return what to raise for an exception of a reader: its clause, or that this installation lacks a decoder."""
    text = " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)).split()).rstrip(".")[:_REASON_CHARACTERS]
    if isinstance(error, OSError) and re.fullmatch(r"decoder \w+ not available", text):
        return ConfigError(
            f"the installed Pillow has no {text.split()[1]} decoder, which a {name} image of the dataset needs; "
            "use a complete build: pip install --force-reinstall pillow"
        )
    if not isinstance(error, OSError | ValueError | SyntaxError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return BadImageError(f"cannot be decoded as {name}: {text}")


def _check_animation(data: bytes) -> None:
    """Raise BadImageError for an animated PNG whose control chunk Pillow would warn about."""
    if b"acTL" not in data:
        return
    position, seen = 8, False
    while position + 12 <= len(data):
        length, kind, frames = struct.unpack_from(">I4sI", data, position)
        if kind == b"acTL":
            if seen or not 0 < frames <= 2**31:
                raise BadImageError("cannot be decoded as PNG: its animation control chunk is not valid")
            seen = True
        position += 12 + length


_TIFF_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TIFF_STRINGS = (1, 2, 7)  # bytes, text and undefined bytes: one value however long
_TIFF_ORIENTATION = 274


def _blank_tiff_entries(data: bytes) -> bytes:
    """Return a TIFF file without the entries that Pillow would warn about, and without its orientation.

    An entry is blanked by giving it the type 0, which readers skip: values beyond the end of the file, several values
    where the specification has one, and the orientation, which Pillow would apply while loading.
    """
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        raise BadImageError("cannot be decoded as TIFF: image file is truncated")
    (directory,) = struct.unpack_from(order + "I", data, 4)
    entries = int.from_bytes(data[directory : directory + 2], "little" if order == "<" else "big")
    if directory + 2 + 12 * entries + 4 > len(data):
        raise BadImageError("cannot be decoded as TIFF: its directory lies beyond the end of the file")
    blanked = bytearray(data)
    for position in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from(order + "HHII", data, position)
        size = count * _TIFF_VALUE_BYTES.get(kind, 0)
        beyond = size > 4 and value + size > len(data)
        several = count > 1 and kind not in _TIFF_STRINGS and TiffTags.lookup(tag).length == 1
        if beyond or several or tag == _TIFF_ORIENTATION:
            blanked[position + 2 : position + 4] = b"\0\0"
    return bytes(blanked)
