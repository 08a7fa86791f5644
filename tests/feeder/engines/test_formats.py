"""Opening images: what is refused and how it is said, silence, and hostile bytes."""

import logging
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image, features

from feeder.engines import formats
from feeder.engines.formats import MAX_PIXELS, BadImageError, load_image
from feeder.errors import ConfigError
from tests.images import encoded, picture


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Every warning is an error, and nothing may reach the user's stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reason(data: bytes, width: int = 64, height: int = 48) -> str:
    with pytest.raises(BadImageError) as caught:
        load_image(data, width, height)
    return str(caught.value)


class TestRefusals:
    def test_no_bytes_and_no_image(self) -> None:
        assert reason(b"") == "is empty"
        assert reason(b"<svg></svg>") == "is not an image of a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM)"

    @pytest.mark.parametrize("options", [{}, {"progressive": True}])
    def test_truncated_jpeg(self, options: dict[str, Any]) -> None:
        data = saved(picture(1, size=(256, 192)), "JPEG", **options)
        for kept in (len(data) // 2, len(data) - 40, len(data) - 2):
            assert reason(data[:kept], 256, 192).startswith("cannot be decoded as JPEG: image file is truncated (")

    @pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "PPM"])
    def test_truncated(self, format: str) -> None:
        data = encoded(1, format=format)
        for kept in range(1, len(data) // 2, 97):
            assert reason(data[:kept])

    def test_size_that_is_not_the_indexs(self) -> None:
        assert reason(encoded(1), 64, 49) == "is 64×48 but the index says 64×49"

    def test_size_beyond_the_limit_is_refused_before_memory_is_taken(self) -> None:
        header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
        assert reason(data, 50_000, 50_000) == f"has 50000×50000 pixels, more than the limit of {MAX_PIXELS}"

    def test_floating_point_pixels(self) -> None:
        data = saved(Image.fromarray(np.zeros((48, 64), np.float32)), "TIFF")
        assert reason(data) == "has floating-point pixels, which have no agreed range; convert it to 8 bits"

    def test_pixels_of_a_colour_space_without_one_conversion(self) -> None:
        data = saved(picture(1).convert("LAB"), "TIFF") if features.check("littlecms2") else lab_tiff()
        assert reason(data) == "has pixels of mode LAB, which do not become RGB in one agreed way"

    def test_quoted_bytes_are_cut(self) -> None:
        assert len(reason(b"P5 64 48 255 " + b"9" * 500)) < 200
        assert len(reason(b"P2 64 48 255 " + b"x" * 5000)) < 200

    def test_a_missing_decoder_is_no_fault_of_the_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: object) -> None:
            raise OSError("decoder libtiff not available")

        monkeypatch.setattr(formats._Tiff, "load", fail)
        with pytest.raises(ConfigError) as caught:
            load_image(encoded(1, format="TIFF"), 64, 48)
        assert str(caught.value) == (
            "the installed Pillow has no libtiff decoder, which a TIFF image of the dataset needs; "
            "use a complete build: pip install --force-reinstall pillow"
        )

    def test_webp_without_webp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "check", lambda name: False)
        with pytest.raises(ConfigError) as caught:
            load_image(b"RIFF\x24\0\0\0WEBPVP8 ", 64, 48)
        assert str(caught.value) == (
            "the installed Pillow was built without WebP, and the dataset holds WebP images; "
            "use a complete build: pip install --force-reinstall pillow"
        )


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))


def lab_tiff() -> bytes:
    """Return an RGB TIFF relabelled as CIELAB (photometric interpretation 8)."""
    data = bytearray(saved(picture(1), "TIFF"))
    entry = struct.pack("<HHI", 262, 3, 1)
    at = data.index(entry) + len(entry)
    data[at : at + 2] = struct.pack("<H", 8)
    return bytes(data)


class TestModes:
    @pytest.mark.parametrize(
        ("stored", "options"),
        [
            (picture(1, mode="L"), {"transparency": 3}),
            (picture(1, mode="RGB"), {"transparency": (1, 2, 3)}),
            (picture(1, mode="P"), {"transparency": 3}),
            (picture(1, mode="P"), {"transparency": bytes(range(200))}),
        ],
    )
    def test_transparency_is_dropped_in_silence(self, stored: Image.Image, options: dict[str, Any]) -> None:
        image = load_image(saved(stored, "PNG", **options), 64, 48)
        assert image.convert("RGB").tobytes() == stored.convert("RGB").tobytes()

    def test_an_animation_gives_its_first_frame(self) -> None:
        first, second = picture(1, mode="P"), picture(2, mode="P")
        data = saved(first, "GIF", save_all=True, append_images=[second])
        assert load_image(data, 64, 48).convert("RGB").tobytes() == first.convert("RGB").tobytes()
        data = saved(picture(1), "PNG", save_all=True, append_images=[picture(2)])
        assert load_image(data, 64, 48).tobytes() == picture(1).tobytes()

    def test_a_multi_picture_file_gives_its_first_picture(self) -> None:
        data = saved(picture(1), "MPO", save_all=True, append_images=[picture(2)])
        assert load_image(data, 64, 48).tobytes() == Image.open(BytesIO(data)).tobytes()

    def test_big_endian_sixteen_bits(self) -> None:
        stored = (np.arange(48 * 64) * 21).astype(">u2").reshape(48, 64)
        image = load_image(saved(Image.frombytes("I;16B", (64, 48), stored.tobytes()), "TIFF"), 64, 48)
        assert np.array_equal(np.asarray(image), stored)


class TestSilence:
    @pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
    @pytest.mark.parametrize("orientation", [3, 6])
    def test_orientation_is_ignored(self, format: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain, turned = saved(picture(1), format), saved(picture(1), format, exif=exif)
        assert load_image(turned, 64, 48).tobytes() == load_image(plain, 64, 48).tobytes()

    def test_damaged_exif_in_a_photograph(self) -> None:
        exif = Image.Exif()
        exif[0x010F] = "a camera's maker"
        exif[0x011A] = 72.0
        block = exif.tobytes()
        for cut in (block[:-20], block[:20], block[:8]):
            data = saved(picture(1), "JPEG", exif=cut)
            assert load_image(data, 64, 48).mode == "RGB"

    @pytest.mark.parametrize(
        "entry",
        [
            struct.pack("<HHII", 270, 2, 9000, 8),  # a description beyond the end of the file
            struct.pack("<HHII", 296, 3, 2, 2),  # two resolution units where the specification has one
        ],
    )
    def test_odd_entries_of_a_tiff(self, entry: bytes) -> None:
        plain = saved(picture(1), "TIFF")
        assert load_image(with_tiff_entry(plain, entry), 64, 48).tobytes() == picture(1).tobytes()

    def test_broken_animation_control(self) -> None:
        plain = encoded(1, format="PNG")
        for control in (chunk(b"acTL", struct.pack(">II", 0, 0)), chunk(b"acTL", struct.pack(">II", 1, 0)) * 2):
            data = plain[:33] + control + plain[33:]
            assert reason(data) == "cannot be decoded as PNG: its animation control chunk is not valid"


def with_tiff_entry(data: bytes, entry: bytes) -> bytes:
    """Return a little-endian TIFF with one entry more in its directory, moved to the end of the file."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = [data[directory + 2 + 12 * i : directory + 14 + 12 * i] for i in range(count)]
    ordered = b"".join(sorted([*entries, entry], key=lambda item: struct.unpack_from("<H", item)))
    moved = struct.pack("<H", count + 1) + ordered + struct.pack("<I", 0)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + moved


FUZZED = {
    "JPEG": lambda: saved(picture(1, size=(32, 24)), "JPEG"),
    "JPEG, progressive": lambda: saved(picture(1, size=(32, 24)), "JPEG", progressive=True),
    "JPEG, CMYK": lambda: saved(picture(1, size=(32, 24), mode="CMYK"), "JPEG"),
    "PNG": lambda: saved(picture(1, size=(32, 24)), "PNG"),
    "PNG, palette": lambda: saved(picture(1, size=(32, 24), mode="P"), "PNG", transparency=b"\1\2\3"),
    "PNG, animated": lambda: saved(
        picture(1, size=(32, 24)), "PNG", save_all=True, append_images=[picture(2, size=(32, 24))]
    ),
    "GIF": lambda: saved(picture(1, size=(32, 24), mode="P"), "GIF"),
    "GIF, animated": lambda: saved(
        picture(1, size=(32, 24), mode="P"), "GIF", save_all=True, append_images=[picture(2, mode="P")], disposal=2
    ),
    "BMP": lambda: saved(picture(1, size=(32, 24), mode="P"), "BMP"),
    "TIFF": lambda: saved(picture(1, size=(32, 24)), "TIFF"),
    "TIFF, 16 bits": lambda: saved(picture(1, size=(32, 24), mode="I;16"), "TIFF"),
    "PPM": lambda: saved(picture(1, size=(32, 24)), "PPM"),
    "PPM, text": lambda: b"P3 32 24 255 " + b"1 20 200 " * (32 * 24),
    "WebP": lambda: saved(picture(1, size=(32, 24)), "WEBP"),
}


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_bytes_are_an_image_or_a_reason(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bits flipped, bytes replaced and dropped, ends cut off: an image of the right size or one clause, never more."""
    if name == "WebP" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    caplog.set_level(logging.CRITICAL, "PIL")  # its TIFF reader logs what it finds: the user's choice
    sound = FUZZED[name]()
    random = np.random.default_rng(list(name.encode()))
    assert load_image(sound, 32, 24).size == (32, 24)
    for _ in range(400):
        data = damaged(sound, random)
        try:
            image = load_image(data, 32, 24)
        except BadImageError as error:
            text = str(error)
        except ConfigError as error:
            text = str(error).partition(" image of the dataset needs")[0]
            assert text == "the installed Pillow has no libtiff decoder, which a TIFF"
        else:
            text = "fine"
            assert image.size == (32, 24)
        assert text
        assert " at 0x" not in text
        assert len(text) < 200
    if name.startswith("TIFF"):
        capfd.readouterr()  # libtiff, where Pillow has it, writes to stderr by itself


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Return the data with one to seven faults, half of them near its beginning, where headers are."""
    damaged = bytearray(data)
    for _ in range(random.integers(1, 8)):
        reach = len(damaged) if random.random() < 0.5 else min(len(damaged), 200)
        at = int(random.integers(0, reach))
        kind = random.random()
        if kind < 0.6:
            damaged[at] ^= 1 << int(random.integers(8))
        elif kind < 0.9:
            damaged[at] = int(random.integers(256))
        else:
            del damaged[at : at + int(random.integers(1, 9))]
    if random.random() < 0.1:
        del damaged[int(random.integers(len(damaged))) :]
    return bytes(damaged)
