"""Encoded images without decoding them: what their headers say, and whether their end is there.

The parsers read a few fields straight from the bytes, in microseconds and without a decoder library, and agree with
Pillow on format, width and height. EXIF orientation is not applied: width and height are those of the stored image.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from feeder.shards.errors import BadImageError

FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm")  # an index stores positions: new formats go to the end
UNKNOWN_FORMAT = 255  # stands in an index for the format of an image whose header cannot be parsed
FORMAT_NAMES = FORMATS + ("",) * (UNKNOWN_FORMAT + 1 - len(FORMATS))  # by the number that an index holds
EXTENSIONS = dict(zip(FORMATS, ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm"), strict=True))  # of tar members
FILE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)

CAUSES = {
    "missing": "the sample has no image",
    "empty": "the file has no bytes",
    "unreadable": "the file cannot be read",
    "not an image": "the bytes are of no known image format",
    "damaged": "the header contradicts itself",
    "truncated": "the end of the image is missing",
    "too large": "more pixels or bytes than allowed",
    "undecodable": "the decoder cannot make pixels of it",
    "too small": "the shorter side or the pixels are fewer than asked for",
    "too long": "the longer side is more than asked for",
    "too narrow": "the aspect ratio is more than asked for",
}

MAX_PIXELS = 178_956_970  # where Pillow, too, takes an image for a decompression bomb (2 × its MAX_IMAGE_PIXELS)
MAX_IMAGE_BYTES = 0x7FFF_F000  # the most that one read of Linux gives
_MAX_SIDE = 2**31 - 1  # pixels: what indexes hold, and PNG allows
HEADER_BYTES = 65_536  # enough for the header of nearly every image; large EXIF or ICC blocks need the whole file


class ImageHeader(NamedTuple):
    """Format, width and height (pixels) of an encoded image."""

    format: str
    width: int
    height: int


NO_HEADER = ImageHeader("", 0, 0)  # of what cannot be parsed


class _CutHeaderError(Exception):
    """The bytes end before the header does."""


def read_header(data: bytes) -> ImageHeader:
    """Return what the header of an encoded image says; a beginning of the image suffices if it holds the header.

    Raises:
        BadImageError: empty, of no known format, damaged, or cut within the header.
    """
    if not data:
        raise BadImageError("empty", "it has no bytes")
    kind = image_format(data)
    try:
        width, height = _SIZES[kind](data)
    except (_CutHeaderError, struct.error, IndexError) as error:
        raise BadImageError("truncated", f"its {len(data)} bytes end within the {kind} header") from error
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise BadImageError("damaged", f"its {kind} header says {width}×{height} pixels")
    return ImageHeader(kind, width, height)


def parsed_header(data: bytes) -> ImageHeader:
    """Return what a header says, or `NO_HEADER` where it cannot be parsed."""
    try:
        return read_header(data)
    except BadImageError:
        return NO_HEADER


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Return the header of a whole encoded image, after checking it without decoding.

    Checked are the header, the number of pixels, and that the end of the image is there; bytes that follow the end are
    tolerated, as decoders do.

    Raises:
        BadImageError: it names the cause, one of `CAUSES`.
    """
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise BadImageError(
            "too large", f"its header says {header.width}×{header.height} pixels, more than the {max_pixels} allowed"
        )
    try:
        whole = _ENDS[header.format](data, header)
    except (struct.error, IndexError):
        whole = False
    if not whole:
        raise BadImageError("truncated", f"its {len(data)} bytes lack the end of the {header.format} image")
    return header


def image_format(data: bytes) -> str:
    """Return the format that the first bytes of an image tell; its file name plays no part."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:2] == b"BM" and len(data) >= 18 and data[14:18] in _BMP_HEADERS:
        return "bmp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in b" \t\r\n#":
        return "ppm"
    shown = data[:8].hex(" ")
    raise BadImageError("not an image", f"its first bytes ({shown}) are of no known image format")


# JPEG: ITU-T T.81, annex B

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF markers; the others are DHT, JPG and DAC
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


def _jpeg_frame(data: bytes) -> int:
    """Return the position after the marker of the frame header, stepping over the segments before it."""
    position, end = 2, len(data)
    while position + 4 <= end:
        if data[position] != 0xFF:
            position = data.find(b"\xff", position)  # stray bytes between segments: decoders skip them, too
            if position < 0:
                break
            continue
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_FRAMES:
            return position + 2
        elif marker in _JPEG_BARE or marker == 0x00:
            position += 2
        elif marker == 0xD9 or marker == 0xDA:
            raise BadImageError("damaged", "its JPEG data begin before a frame header")
        else:
            length = data[position + 2] << 8 | data[position + 3]
            position += 2 + max(length, 2)
    raise _CutHeaderError


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = _jpeg_frame(data)
    height, width = struct.unpack_from(">HH", data, position + 3)
    return width, height


def _jpeg_ends(data: bytes, _: ImageHeader) -> bool:
    """Look for the end of image marker after the start of scan; one in a thumbnail, before it, does not count."""
    frame = _jpeg_frame(data)
    scan = data.find(b"\xff\xda", frame)
    return scan >= 0 and data.rfind(b"\xff\xd9", scan) >= 0


# PNG: ISO/IEC 15948, clause 11


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise BadImageError("damaged", "its PNG header does not begin with IHDR")
    return struct.unpack_from(">II", data, 16)


def _png_ends(data: bytes, _: ImageHeader) -> bool:
    return data.rfind(b"IEND\xaeB`\x82") >= 0  # the chunk's name and its CRC, which is always the same


# WebP: RFC 9649


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(_exactly(data, 24, 3), "little"), 1 + int.from_bytes(_exactly(data, 27, 3), "little")
    if kind == b"VP8L":
        bits = int.from_bytes(_exactly(data, 21, 4), "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if len(data) < 16:
        raise _CutHeaderError
    raise BadImageError("damaged", f"its WebP header has an unknown chunk {kind!r}")


def _webp_ends(data: bytes, _: ImageHeader) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") <= len(data)


# GIF: version 89a, sections 18 to 22


def _gif_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", data, 6)


def _gif_ends(data: bytes, _: ImageHeader) -> bool:
    """Walk the blocks to the end of the first frame, the one that decoders give."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while True:
        kind = data[position]
        if kind == 0x21:  # extension: label, then sub-blocks
            position = _gif_sub_blocks(data, position + 2)
        elif kind == 0x2C:  # image: descriptor, local colours, code size, sub-blocks
            flags = data[position + 9]
            position += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0) + 1
            return _gif_sub_blocks(data, position) <= len(data)
        else:
            return False


def _gif_sub_blocks(data: bytes, position: int) -> int:
    while size := data[position]:
        position += 1 + size
    return position + 1


# BMP: Windows headers of 40 bytes and more, and the OS/2 header of 12

_BMP_HEADERS = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))
_BMP_PLAIN = (0, 3, 6)  # compression: none, bit fields


def _bmp_size(data: bytes) -> tuple[int, int]:
    if data[14] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: rows run from the top down


def _bmp_ends(data: bytes, header: ImageHeader) -> bool:
    start = struct.unpack_from("<I", data, 10)[0]
    if data[14] == 12:
        bits, compression, stated = data[24], 0, 0
    else:
        bits, compression, stated = struct.unpack_from("<HII", data, 28)
    rows = (header.width * bits + 31) // 32 * 4 * header.height
    return bool(start + (rows if compression in _BMP_PLAIN else stated) <= len(data))


# TIFF: revision 6.0, section 2

_TIFF_TYPES = {1: (1, "B"), 3: (2, "H"), 4: (4, "I")}  # BYTE, SHORT, LONG: bytes and struct code
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_DATA = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the integer tags of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(order + "I", data, 4)[0]
    tags = {}
    for entry in range(struct.unpack_from(order + "H", data, start)[0]):
        position = start + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, position)
        if kind in _TIFF_TYPES and (tag in (_TIFF_WIDTH, _TIFF_HEIGHT) or any(tag in pair for pair in _TIFF_DATA)):
            size, code = _TIFF_TYPES[kind]
            if count * size > len(data):
                raise _CutHeaderError
            at = position + 8 if count * size <= 4 else struct.unpack_from(order + "I", data, position + 8)[0]
            tags[tag] = struct.unpack_from(f"{order}{count}{code}", data, at)
    return tags


def _tiff_size(data: bytes) -> tuple[int, int]:
    tags = _tiff_tags(data)
    if not tags.get(_TIFF_WIDTH) or not tags.get(_TIFF_HEIGHT):
        raise BadImageError("damaged", "its TIFF directory has no width or height")
    return tags[_TIFF_WIDTH][0], tags[_TIFF_HEIGHT][0]


def _tiff_ends(data: bytes, _: ImageHeader) -> bool:
    tags = _tiff_tags(data)
    for offsets, counts in _TIFF_DATA:
        if offsets in tags and counts in tags:
            return all(o + c <= len(data) for o, c in zip(tags[offsets], tags[counts], strict=False))
    return True  # no byte counts: nothing to hold against the size


# PBM, PGM, PPM: the Netpbm formats, plain (P1 to P3) and raw (P4 to P6)

_PPM_HEADER = re.compile(rb"P([1-6])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:(?:\s|#[^\n]*\n)+(\d+))?")


def _ppm_header(data: bytes) -> re.Match[bytes]:
    match = _PPM_HEADER.match(data[:4096])
    if not match:
        raise BadImageError("damaged", "its Netpbm header has no width and height")
    return match


def _ppm_size(data: bytes) -> tuple[int, int]:
    match = _ppm_header(data)
    return int(match[2]), int(match[3])


def _ppm_ends(data: bytes, header: ImageHeader) -> bool:
    match = _ppm_header(data)
    kind = int(match[1])
    if kind < 4:
        return True  # plain text: only decoding would count the numbers
    if kind == 4:
        return len(data) > match.end(3) + (header.width + 7) // 8 * header.height
    sample_bytes = 2 if int(match[4] or 0) > 255 else 1
    return len(data) > match.end() + header.width * header.height * (3 if kind == 6 else 1) * sample_bytes


def _exactly(data: bytes, offset: int, size: int) -> bytes:
    if len(data) < offset + size:
        raise _CutHeaderError
    return data[offset : offset + size]


_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "jpeg": _jpeg_size,
    "png": _png_size,
    "webp": _webp_size,
    "gif": _gif_size,
    "bmp": _bmp_size,
    "tiff": _tiff_size,
    "ppm": _ppm_size,
}
_ENDS: dict[str, Callable[[bytes, ImageHeader], bool]] = {
    "jpeg": _jpeg_ends,
    "png": _png_ends,
    "webp": _webp_ends,
    "gif": _gif_ends,
    "bmp": _bmp_ends,
    "tiff": _tiff_ends,
    "ppm": _ppm_ends,
}
