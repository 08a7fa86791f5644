"""EXIF orientation, read without a decoder, against Pillow's own reading."""

import io
import struct

import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from feeder.shards.images.exif import orientation, orientation_block, upright_tiff
from tests.images import picture


def with_orientation(value: int, format: str, *, order: str = "<", kind: int = 3) -> bytes:
    """Return a small image whose EXIF block has the given orientation, with other tags around it."""
    tags = [(270, 2, 4, b"abc\0"), (274, kind, 1, struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], value))]
    block = b"Exif\0\0" + (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    for tag, tag_kind, count, payload in tags:
        block += struct.pack(order + "HHI", tag, tag_kind, count) + payload
    buffer = io.BytesIO()
    picture(1).save(buffer, format, exif=block + bytes(4))
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("format", "kind"), [("JPEG", "jpeg"), ("PNG", "png")])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_the_one_that_pillow_reads(value: int, format: str, kind: str, order: str) -> None:
    data = with_orientation(value, format, order=order)
    assert Image.open(io.BytesIO(data)).getexif()[274] == value
    assert orientation(data, kind) == value


@pytest.mark.parametrize("kind", [1, 4])
def test_other_integer_types_are_understood(kind: int) -> None:
    assert orientation(with_orientation(6, "JPEG", kind=kind), "jpeg") == 6


@pytest.mark.parametrize("value", [0, 9, 60000])
def test_values_that_mean_nothing_are_upright(value: int) -> None:
    assert orientation(with_orientation(value, "JPEG"), "jpeg") == 1


def test_a_damaged_block_is_upright_wherever_it_is_cut_or_altered() -> None:
    data = with_orientation(6, "JPEG")
    start = data.index(b"Exif") + 6
    for position in range(start, start + 34):
        for byte in (0, 255):
            assert 1 <= orientation(data[:position] + bytes([byte]) + data[position + 1 :], "jpeg") <= 8
        assert 1 <= orientation(data[:position], "jpeg") <= 8


def test_images_without_a_block_are_upright() -> None:
    for format, kind in (("JPEG", "jpeg"), ("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tiff")):
        buffer = io.BytesIO()
        picture(1).save(buffer, format)
        assert orientation(buffer.getvalue(), kind) == 1


def test_a_block_in_webp_is_found_with_and_without_its_prefix() -> None:
    block = orientation_block(8)
    for payload in (block, block[6:]):
        chunks = b"VP8X" + struct.pack("<I", 10) + bytes(10)
        chunks += b"VP8L" + struct.pack("<I", 5) + bytes(6)  # an odd length is padded
        chunks += b"EXIF" + struct.pack("<I", len(payload)) + payload
        assert orientation(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks, "webp") == 8


def test_the_written_block_is_read_by_pillow_and_says_nothing_else() -> None:
    buffer = io.BytesIO()
    picture(1).save(buffer, "JPEG", exif=orientation_block(5))
    assert dict(Image.open(buffer).getexif()) == {274: 5}


def test_an_upright_tiff_is_the_same_but_for_its_orientation() -> None:
    buffer = io.BytesIO()
    picture(1, size=(30, 20)).save(buffer, "TIFF", tiffinfo={274: 6})
    data = buffer.getvalue()
    assert orientation(data, "tiff") == 6
    changed = upright_tiff(data)
    assert sum(a != b for a, b in zip(data, changed, strict=True)) == 1
    assert TiffImageFile(io.BytesIO(changed)).size == (30, 20)
    assert upright_tiff(changed) is changed
