"""Headers and ends of encoded images, against Pillow and against damage."""

import base64
import io
import pickle
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from feeder.shards.errors import BadImageError
from feeder.shards.images.headers import FORMATS, check_image, image_format, read_header
from tests.images import encoded, picture

PILLOW_NAMES = {name: name.upper() for name in FORMATS}
WRITABLE = [name for name in FORMATS if name != "webp" or features.check("webp")]  # Pillow may come without WebP

# 23 × 14 pixels, written by Pillow: lossy, lossless, and lossy with alpha
WEBP = {
    "VP8 ": "UklGRjoAAABXRUJQVlA4IC4AAADQAgCdASoXAA4AP3Ggxli0q6ejsAgCkC4JQBadBaSAAP7eD7fvtt78PNX4NUAA",
    "VP8L": "UklGRiIAAABXRUJQVlA4TBYAAAAvFkADAAdQjyKXp/8BgCD8pyuI6H+K",
    "VP8X": "UklGRl4AAABXRUJQVlA4WAoAAAAQAAAAFgAADQAAQUxQSAoAAAABB1CtiAhERP8DVlA4IC4AAADQAgCdASoXAA4AP3Ggxli0q6ejsAg"
    "CkC4JQBadBaSAAP7eD7fvtt78PNX4NUAA",
}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (333, 7), (3, 501)])
def test_header_agrees_with_pillow(kind: str, size: tuple[int, int]) -> None:
    data = encoded(5, size=size, format=PILLOW_NAMES[kind])
    header = check_image(data)
    assert header == (kind, *size)
    opened = Image.open(io.BytesIO(data))
    assert opened.size == (header.width, header.height)
    assert opened.format == PILLOW_NAMES[kind]


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(200_000)}),
        ("JPEG", "RGB", {"comment": b"\xff\xd9" * 100}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"exif": b"Exif\0\0" + bytes(100)}),
        ("GIF", "P", {}),
        ("BMP", "L", {}),
        ("BMP", "1", {}),
        ("TIFF", "I;16", {}),
        ("TIFF", "1", {}),
        ("PPM", "L", {}),
        ("PPM", "1", {}),
        ("PPM", "I;16", {}),
    ],
)
def test_variants_of_formats_are_whole(kind: str, mode: str, options: dict[str, object]) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("Pillow was compiled without WebP")
    data = saved(picture(3, size=(61, 45), mode=mode), kind, **options)
    assert check_image(data)[1:] == (61, 45)
    assert check_image(data + b"trailing bytes")[1:] == (61, 45)


def test_animations_count_by_their_first_frame() -> None:
    frames = [picture(i, mode="P") for i in range(3)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert check_image(data)[1:] == (64, 48)


@pytest.mark.parametrize("chunk", WEBP)
def test_each_kind_of_webp_has_its_size_and_its_end(chunk: str) -> None:
    data = base64.b64decode(WEBP[chunk])
    assert data[12:16].decode() == chunk
    assert check_image(data + b"trailing bytes") == ("webp", 23, 14)
    for length in range(12, len(data)):
        with pytest.raises(BadImageError) as caught:
            check_image(data[:length])
        assert caught.value.cause == "truncated"


def test_jpeg_sizes_come_from_the_image_not_from_its_thumbnail() -> None:
    thumbnail = encoded(1, size=(16, 16))
    exif = b"Exif\0\0" + thumbnail
    data = saved(picture(2, size=(90, 70)), "JPEG", exif=exif)
    assert read_header(data) == ("jpeg", 90, 70)
    with pytest.raises(BadImageError, match="lack the end of the jpeg image"):
        check_image(data[:-300])  # the thumbnail's end of image marker is no end of the image


@pytest.mark.parametrize("kind", WRITABLE)
def test_a_cut_image_is_truncated(kind: str) -> None:
    data = encoded(7, size=(80, 60), format=PILLOW_NAMES[kind])
    for length in (len(data) // 3, len(data) // 2, len(data) - 20):
        with pytest.raises(BadImageError) as caught:
            check_image(data[:length])
        assert caught.value.cause == "truncated"
        assert f"its {length} bytes lack the end of the {kind} image" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(WRITABLE), st.data())
def test_no_damage_makes_the_parsers_fail_in_another_way(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(9, size=(24, 18), format=PILLOW_NAMES[kind]))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 200)))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        header = check_image(cut)
    except BadImageError:
        return
    assert header.format in FORMATS
    assert header.width > 0
    assert header.height > 0


@given(st.binary(max_size=64))
def test_other_bytes_are_no_image(data: bytes) -> None:
    try:
        found = image_format(data)
    except BadImageError as error:
        found = error.cause
    assert found in (*FORMATS, "not an image")


def test_an_empty_file_and_text_are_refused_with_a_sentence() -> None:
    with pytest.raises(BadImageError, match="^it has no bytes$") as caught:
        check_image(b"")
    assert caught.value.cause == "empty"
    with pytest.raises(BadImageError) as caught:
        check_image(b"<html><body>404</body></html>")
    assert str(caught.value) == "its first bytes (3c 68 74 6d 6c 3e 3c 62) are of no known image format"
    assert caught.value.cause == "not an image"


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header names a huge image."""
    data = bytearray(encoded(1, format="PNG"))
    data[16:24] = struct.pack(">II", width, height)
    return bytes(data)


def test_more_pixels_than_allowed_are_refused_from_the_header_alone() -> None:
    with pytest.raises(BadImageError) as caught:
        check_image(huge_png(50_000, 50_000))
    assert str(caught.value) == "its header says 50000×50000 pixels, more than the 178956970 allowed"
    assert caught.value.cause == "too large"
    assert check_image(encoded(1), max_pixels=64 * 48)
    with pytest.raises(BadImageError, match="more than the 3071 allowed"):
        check_image(encoded(1), max_pixels=64 * 48 - 1)


def test_a_header_without_pixels_is_damaged() -> None:
    with pytest.raises(BadImageError, match="^its png header says 0×48 pixels$") as caught:
        read_header(huge_png(0, 48))
    assert caught.value.cause == "damaged"


def test_a_header_with_more_than_indexes_hold_is_damaged() -> None:
    for data in (huge_png(2**31, 1), b"P6 99999999999999 1 255\n"):
        with pytest.raises(BadImageError, match=r"header says \d+×1 pixels$") as caught:
            read_header(data)
        assert caught.value.cause == "damaged"
    assert read_header(huge_png(2**31 - 1, 1)).width == 2**31 - 1


def test_a_bad_image_survives_a_pickle_with_its_cause() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("empty", "it has no bytes")))
    assert (error.cause, str(error)) == ("empty", "it has no bytes")


def test_real_photographs_agree_with_pillow(photos: Path) -> None:
    for path in sorted(photos.rglob("*.JPEG"))[::10]:
        data = path.read_bytes()
        assert check_image(data)[1:] == Image.open(io.BytesIO(data)).size
