"""EXIF orientation: how a stored image is to be turned for display, read and written without a decoder.

======  =======================  ======  =================================
value   the stored image is      value   the stored image is
======  =======================  ======  =================================
1       upright                  5       transposed
2       mirrored                 6       upright after a turn to the right
3       upside down              7       mirrored along the other diagonal
4       mirrored upside down     8       upright after a turn to the left
======  =======================  ======  =================================

Tag 274 (0x0112) of the first directory: EXIF 2.32 (CIPA DC-008), section 4.6.4; the block is a TIFF file within the
image. It lies in JPEG's segment APP1, PNG's chunk eXIf and WebP's chunk EXIF; a TIFF image is its own. Where there is
none, or its value is not one of these, the image is upright. Tags of XMP do not count: browsers and libraries ignore
them, too.
"""

import struct
from collections.abc import Callable

UPRIGHT = 1
_ORIENTATION = 274
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # TIFF types BYTE, SHORT, LONG; the specification has SHORT, some writers do not
_SHORT = 3
_PREFIX = b"Exif\0\0"


def orientation(data: bytes, kind: str) -> int:
    """Return the orientation, 1 to 8, of an encoded image of a format of `feeder.shards.images.headers.FORMATS`."""
    start = _blocks[kind](data) if kind in _blocks else -1
    if start < 0:
        return UPRIGHT
    try:
        value = _read(data, start)[0]
    except struct.error:  # damaged blocks are common in photographs, and no reason to refuse one
        return UPRIGHT
    return value if UPRIGHT <= value <= 8 else UPRIGHT


def swaps_sides(value: int) -> bool:
    """Return whether width and height change places when an image of this orientation is turned upright."""
    return value >= 5


def orientation_block(value: int) -> bytes:
    """Return an EXIF block that says the orientation and nothing else, as the payload of a JPEG segment."""
    entry = struct.pack("<HHIHH", _ORIENTATION, _SHORT, 1, value, 0)
    return _PREFIX + struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + bytes(4)


def upright_tiff(data: bytes) -> bytes:
    """Return a TIFF image that says it is upright: readers that apply the tag by themselves give the stored pixels."""
    try:
        value, position, code = _read(data, 0)
    except struct.error:
        return data
    if value == UPRIGHT:
        return data
    return data[:position] + struct.pack(code, UPRIGHT) + data[position + struct.calcsize(code) :]


def _read(data: bytes, start: int) -> tuple[int, int, str]:
    """Return the orientation in the TIFF block at ``start``, its position in the data, and its struct code."""
    order = "<" if data[start : start + 2] == b"II" else ">"
    directory = start + struct.unpack_from(order + "I", data, start + 4)[0]
    for entry in range(struct.unpack_from(order + "H", data, directory)[0]):
        position = directory + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, position)
        if tag == _ORIENTATION and kind in _INTEGERS and count == 1:
            code = order + _INTEGERS[kind]
            return struct.unpack_from(code, data, position + 8)[0], position + 8, code
    return UPRIGHT, -1, order


# Where the block starts: after its prefix; −1 where there is none.


def _in_jpeg(data: bytes) -> int:
    position = 2
    while 0 <= position < len(data) - 4:
        if data[position] != 0xFF:
            position = data.find(b"\xff", position)  # stray bytes between segments
            continue
        marker = data[position + 1]
        if marker == 0xDA or marker == 0xD9:  # the image's data begin
            break
        if marker == 0xE1 and data.startswith(_PREFIX[:5], position + 4):  # some writers end it with another byte
            return position + 4 + len(_PREFIX)
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
        else:
            position += 2 + max(data[position + 2] << 8 | data[position + 3], 2)
    return -1


def _in_png(data: bytes) -> int:
    if b"eXIf" not in data:  # it may stand behind thousands of chunks of pixels
        return -1
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return position + 8
        position += 12 + length
    return -1


def _in_webp(data: bytes) -> int:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return position + 8 + (len(_PREFIX) if data.startswith(_PREFIX, position + 8) else 0)
        position += 8 + length + length % 2
    return -1


_blocks: dict[str, Callable[[bytes], int]] = {
    "jpeg": _in_jpeg,
    "png": _in_png,
    "webp": _in_webp,
    "tiff": lambda data: 0,
}
