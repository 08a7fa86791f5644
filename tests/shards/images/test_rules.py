"""Image rules: what is left out, what passes byte for byte, and what scaling, turning and converting give."""

import contextlib
import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from feeder.errors import ConfigError
from feeder.shards.errors import BadImageError
from feeder.shards.images import pixels
from feeder.shards.images import rules as recoding
from feeder.shards.images.headers import CAUSES, ImageHeader, check_image
from feeder.shards.images.rules import FILTERED, ImageRules, Resize, apply, apply_to_sample
from tests.images import encoded, picture
from tests.shards.images.test_exif import with_orientation

SHORTER = ImageRules(resize=Resize.parse("shorter=32"))
APPLY = ImageRules(orientation="apply")
RGB = ImageRules(colour="rgb")


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def applied(rules: ImageRules, data: bytes, **options: Any) -> bytes:
    """Apply the rules; the new header must be what the new bytes say."""
    new, header = apply(rules, data, check_image(data), **options)
    assert header == check_image(new)
    return new


def refused(rules: ImageRules, data: bytes, **options: Any) -> tuple[str, str]:
    with pytest.raises(BadImageError) as caught:
        apply(rules, data, check_image(data), **options)
    assert caught.value.cause in CAUSES
    return caught.value.cause, str(caught.value)


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# Rules


@pytest.mark.parametrize("text", ["shorter=256", "longer=1", "fit=640x480"])
def test_a_size_is_said_as_it_was_read(text: str) -> None:
    assert str(Resize.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "256", "shorter=0", "shorter=-3", "fit=640", "fit=0x4", "longer=2147483648", "a=1"]
)
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Resize.parse(text)
    assert str(caught.value) == (
        f"resize is {text!r}, expected shorter=256, longer=512 or fit=640x480 (width x height)"
    )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"orientation": "exif"}, "orientation is 'exif', expected 'keep' or 'apply'"),
        ({"colour": "grey"}, "colour is 'grey', expected 'keep' or 'rgb'"),
        ({"colour": "rgb", "quality": 0}, "quality is 0, expected an integer from 1 to 100"),
        (
            {"quality": 80},
            (
                "quality is 80, but nothing encodes images anew, and they pass byte for byte; give resize, orientation "
                "'apply' or colour 'rgb', too"
            ),
        ),
        ({"min_side": 0}, "min_side is 0, expected at least 1"),
        ({"max_aspect": 0.5}, "max_aspect is 0.5, expected a number of at least 1"),
        ({"max_aspect": float("nan")}, "max_aspect is nan, expected a number of at least 1"),
        ({"min_side": 9, "max_side": 8}, "min_side is 9 and max_side 8, which leaves no image"),
    ],
)
def test_rules_that_cannot_be_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageRules(**wrong)
    assert str(caught.value) == sentence


def test_settings_say_the_rules_that_were_given() -> None:
    assert ImageRules().settings() is None
    assert ImageRules(resize=Resize.parse("longer=64"), min_side=3).settings() == {
        "resize": "longer=64",
        "quality": 90,
        "orientation": "keep",
        "colour": "keep",
        "min_side": 3,
        "max_side": None,
        "min_pixels": None,
        "max_aspect": None,
    }
    only_filters = ImageRules(max_side=9).settings()
    assert only_filters is not None
    assert only_filters["quality"] is None


# Sizes

sides = st.integers(1, 60_000)


@given(sides, sides, st.integers(1, 4000))
def test_shorter_bounds_the_shorter_side_and_keeps_the_aspect(width: int, height: int, side: int) -> None:
    new = Resize("shorter", side, side).size(width, height)
    assert min(new) == min(side, width, height)
    _check_proportions((width, height), new)


@given(sides, sides, st.integers(1, 4000))
def test_longer_bounds_the_longer_side_and_keeps_the_aspect(width: int, height: int, side: int) -> None:
    new = Resize("longer", side, side).size(width, height)
    assert max(new) == min(side, max(width, height))
    _check_proportions((width, height), new)


@given(sides, sides, st.integers(1, 4000), st.integers(1, 4000))
def test_fit_is_the_largest_size_that_fits(width: int, height: int, most_wide: int, most_high: int) -> None:
    new = Resize("fit", most_wide, most_high).size(width, height)
    assert new[0] <= most_wide
    assert new[1] <= most_high
    if width <= most_wide and height <= most_high:
        assert new == (width, height)
    else:
        assert new[0] == most_wide or new[1] == most_high
    _check_proportions((width, height), new)


def _check_proportions(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Hold the new size against one factor for both sides: one side exact, the other within half a pixel."""
    assert new[0] <= old[0]
    assert new[1] <= old[1]
    factors = (new[0] / old[0], new[1] / old[1])
    off = [max(1.0, old[i] * factors[1 - i]) - new[i] for i in (0, 1)]
    assert min(map(abs, off)) <= 0.5 + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["shorter=32", "longer=32", "fit=40x24", "fit=1x90"]),
    st.sampled_from(["JPEG", "PNG"]),
)
def test_the_encoded_image_has_the_size_that_was_asked_for(width: int, height: int, text: str, format: str) -> None:
    resize = Resize.parse(text)
    data = encoded(3, size=(width, height), format=format)
    new = applied(ImageRules(resize=resize), data)
    assert opened(new).size == resize.size(width, height)
    assert (new is data) == (opened(new).size == (width, height))


def test_a_strip_keeps_at_least_one_pixel() -> None:
    data = encoded(1, size=(1, 20_000), format="PNG")
    assert opened(applied(ImageRules(resize=Resize.parse("longer=512")), data)).size == (1, 512)
    assert applied(ImageRules(resize=Resize.parse("shorter=256")), data) is data


# Pass through


@pytest.mark.parametrize(
    "rules",
    [
        ImageRules(),
        ImageRules(min_side=2, max_side=9999, min_pixels=4, max_aspect=9),
        ImageRules(resize=Resize.parse("shorter=48")),
        ImageRules(resize=Resize.parse("fit=64x48"), orientation="apply", colour="rgb", quality=10),
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_an_image_that_needs_no_change_is_the_same_object(rules: ImageRules, format: str) -> None:
    data = encoded(1, format=format)
    header = check_image(data)
    new, new_header = apply(rules, data, header)
    assert new is data
    assert new_header is header


def test_without_rules_pillow_is_not_even_imported() -> None:
    program = (
        "import sys\n"
        "from feeder.shards.images.rules import ImageRules, apply, Resize\n"
        "from feeder.shards.images.headers import ImageHeader\n"
        "header = ImageHeader('jpeg', 9, 9)\n"
        "for rules in (ImageRules(), ImageRules(min_side=3), ImageRules(resize=Resize.parse('shorter=9'))):\n"
        "    apply(rules, b'these are no pixels', header)\n"
        "assert 'PIL' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_pillow_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="pip install 'shardfeed\\[pillow\\]'"):
        apply(SHORTER, encoded(1), ImageHeader("jpeg", 64, 48))


# Filters


@pytest.mark.parametrize(
    ("rules", "cause", "reason"),
    [
        (ImageRules(min_side=49), "too small", "it has 64×48 pixels, its shorter side less than 49"),
        (ImageRules(min_pixels=3073), "too small", "it has 64×48 pixels, fewer than 3073"),
        (ImageRules(max_side=63), "too long", "it has 64×48 pixels, its longer side more than 63"),
        (ImageRules(max_aspect=1.3), "too narrow", "it has 64×48 pixels, one side more than 1.3 times the other"),
    ],
)
def test_filters_leave_images_out_and_say_which_rule(rules: ImageRules, cause: str, reason: str) -> None:
    assert refused(rules, encoded(1)) == (cause, reason)
    assert cause in FILTERED <= CAUSES.keys()


def test_filters_take_what_is_exactly_at_their_bounds_and_look_at_the_size_before_scaling() -> None:
    rules = ImageRules(min_side=48, max_side=64, min_pixels=3072, max_aspect=64 / 48)
    data = encoded(1)
    assert applied(rules, data) is data
    assert opened(applied(ImageRules(min_side=48, resize=Resize.parse("shorter=8")), data)).size == (11, 8)


def test_masks_are_not_filtered() -> None:
    data = encoded(1, format="PNG")
    assert applied(ImageRules(min_side=49), data, interpolation="nearest") is data


# Pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_png_is_scaled_by_lanczos_and_stays_png_with_its_transparency(mode: str) -> None:
    image = picture(4, mode=mode)
    new = opened(applied(SHORTER, saved(image)))
    assert (new.format, new.mode) == ("PNG", mode)
    assert np.array_equal(np.asarray(new), np.asarray(image.resize((43, 32), Image.Resampling.LANCZOS)))


def test_sixteen_bit_grey_stays_sixteen_bit() -> None:
    image = picture(4, mode="I;16")
    new = opened(applied(SHORTER, saved(image)))
    assert new.mode == "I;16"
    assert np.array_equal(np.asarray(new), np.asarray(image.resize((43, 32), Image.Resampling.LANCZOS)))


@pytest.mark.parametrize(("transparent", "mode"), [(False, "RGB"), (True, "RGBA")])
def test_a_palette_becomes_colours_to_be_scaled(transparent: bool, mode: str) -> None:
    palette = picture(4).quantize(32)
    data = saved(palette, transparency=3) if transparent else saved(palette)
    new = opened(applied(SHORTER, data))
    expected = opened(data).convert(mode).resize((43, 32), Image.Resampling.LANCZOS)
    assert new.mode == mode
    assert np.array_equal(np.asarray(new), np.asarray(expected))


@pytest.mark.parametrize("quality", [None, 40, 100])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_scaled_by_lanczos_and_saved_in_its_mode_at_the_quality(mode: str, quality: int | None) -> None:
    data = encoded(4, mode=mode)
    scaled = opened(data).resize((43, 32), Image.Resampling.LANCZOS)
    new = applied(ImageRules(resize=SHORTER.resize, quality=quality), data)
    assert new == saved(scaled, "JPEG", quality=quality or 90, subsampling="4:2:0")


@pytest.mark.parametrize(("width", "height"), [(640, 480), (641, 479), (333, 1000)])
@pytest.mark.parametrize("side", [160, 60, 21, 3])
def test_a_large_jpeg_is_reduced_by_its_decoder_to_nearly_the_same_pixels(width: int, height: int, side: int) -> None:
    """Compared are the pixels before they are encoded: what the encoder adds would hide a shift of half a pixel."""
    data = encoded(4, size=(width, height), quality=95)
    change = recoding.Change(
        size=Resize("shorter", side, side).size(width, height), turn=1, keep=1, rgb=False, nearest=False, quality=100
    )
    decoder = pixels._open(data, ImageHeader("jpeg", width, height))
    box = pixels._reduce(decoder, change.size)
    assert (decoder.width < width) == (side < 160)
    reduced = decoder.resize(change.size, Image.Resampling.LANCZOS, box)
    assert psnr(reduced, opened(data).resize(change.size, Image.Resampling.LANCZOS)) > 44


def test_photographs_are_reduced_by_their_decoder_to_nearly_the_same_pixels(photos: Path) -> None:
    for path in sorted(photos.glob("*/*"))[::60]:
        data = path.read_bytes()
        _, width, height = header = check_image(data)
        size = Resize("shorter", 64, 64).size(width, height)
        decoder = pixels._open(data, header)
        box = pixels._reduce(decoder, size)
        reduced = decoder.resize(size, Image.Resampling.LANCZOS, box)
        assert psnr(reduced, opened(data).resize(size, Image.Resampling.LANCZOS)) > 40


@pytest.mark.parametrize("format", ["GIF", "BMP", "PPM", "TIFF"])
def test_other_lossless_formats_become_png_of_the_same_pixels(format: str) -> None:
    image = picture(4)
    data = saved(image.quantize(32) if format == "GIF" else image, format)
    new = opened(applied(SHORTER, data))
    assert new.format == "PNG"
    expected = opened(data).convert("RGB").resize((43, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(new.convert("RGB")), np.asarray(expected))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [picture(n).quantize(32) for n in (1, 2, 3)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert applied(ImageRules(resize=Resize.parse("longer=64")), data) is data
    expected = opened(data).convert("RGB").resize((43, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(opened(applied(SHORTER, data))), np.asarray(expected))


# Metadata


def test_exif_goes_but_for_the_orientation_and_comments_go() -> None:
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "the maker"
    data = saved(picture(1), "JPEG", exif=exif, comment=b"a comment", xmp=b"<xmp/>")
    kept = opened(applied(SHORTER, data))
    assert dict(kept.getexif()) == {274: 6}
    assert kept.size == (43, 32)
    assert not {"comment", "xmp"} & kept.info.keys()
    upright = opened(applied(ImageRules(resize=SHORTER.resize, orientation="apply"), data))
    assert not upright.getexif()
    assert upright.size == (32, 43)


@pytest.mark.parametrize("space", [b"RGB ", b"CMYK"])
@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("JPEG", "CMYK")])
def test_a_colour_profile_is_kept_where_it_fits_the_pixels(space: bytes, format: str, mode: str) -> None:
    profile = bytes(16) + space + bytes(200)
    data = saved(picture(1, mode=mode), format, icc_profile=profile)
    assert opened(applied(SHORTER, data)).info.get("icc_profile") == (
        profile if space.strip() == mode.encode() else None
    )


def test_a_profile_for_other_colours_goes_with_the_conversion() -> None:
    data = saved(picture(1, mode="CMYK"), "JPEG", icc_profile=bytes(16) + b"CMYK" + bytes(200))
    assert "icc_profile" not in opened(applied(RGB, data)).info


# Orientation


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("value", range(1, 9))
def test_applied_orientation_gives_the_pixels_that_pillow_gives(value: int, format: str) -> None:
    data = with_orientation(value, format)
    new = applied(ImageRules(orientation="apply", quality=100), data)
    assert (new is data) == (value == 1)
    expected = ImageOps.exif_transpose(opened(data))
    assert opened(new).size == expected.size
    assert opened(new).getexif().get(274, 1) == 1
    if format == "PNG":
        assert np.array_equal(np.asarray(opened(new)), np.asarray(expected))
    else:
        assert psnr(opened(new), expected) > 30


def test_a_tiff_is_turned_once() -> None:
    image = picture(1)
    data = saved(image, "TIFF", tiffinfo={274: 6})
    assert opened(applied(APPLY, data)).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    kept = opened(applied(SHORTER, data))
    assert (kept.size, kept.getexif()[274]) == ((43, 32), 6)


def test_a_size_to_fit_is_that_of_the_upright_image_where_it_is_turned() -> None:
    data = with_orientation(6, "JPEG")  # 64×48 stored, 48×64 upright
    fit = Resize.parse("fit=24x64")
    assert opened(applied(ImageRules(resize=fit), data)).size == (24, 18)
    assert opened(applied(ImageRules(resize=fit, orientation="apply"), data)).size == (24, 32)


# Colour


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_rgb_converts_as_pillow_does(mode: str) -> None:
    data = saved(picture(4, mode=mode))
    new = opened(applied(RGB, data))
    assert (new.format, new.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(new), np.asarray(picture(4, mode=mode).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_rgb_converts_jpegs_by_pillows_formula_and_keeps_their_size(mode: str) -> None:
    data = encoded(4, mode=mode)
    expected = saved(opened(data).convert("RGB"), "JPEG", quality=90, subsampling="4:2:0")
    assert applied(RGB, data) == expected


def test_rgb_takes_the_high_byte_of_sixteen_bits() -> None:
    image = picture(4, mode="I;16")
    new = opened(applied(RGB, saved(image)))
    assert new.mode == "RGB"
    assert np.array_equal(np.asarray(new)[..., 1], np.asarray(image) >> 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_rgb_lays_transparency_on_white(mode: str) -> None:
    image = picture(4, mode=mode)
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    new = np.asarray(opened(applied(RGB, saved(image))))
    assert np.abs(new - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_rgb_lays_a_transparent_palette_entry_and_colour_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert np.asarray(opened(applied(RGB, saved(palette, transparency=1)))).tolist() == [[[10, 20, 30], [255] * 3]]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert np.asarray(opened(applied(RGB, saved(keyed, transparency=(1, 2, 3))))).tolist() == [[[255] * 3, [4, 5, 6]]]


# Masks


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_are_scaled_by_nearest_and_keep_their_values(mode: str) -> None:
    image = picture(4, mode=mode) if mode != "P" else picture(4).quantize(32)
    new = opened(applied(ImageRules(resize=SHORTER.resize, colour="rgb"), saved(image), interpolation="nearest"))
    assert new.mode == mode
    expected = image.resize((43, 32), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(new), np.asarray(expected))
    if mode == "P":
        assert np.array_equal(np.asarray(new.convert("RGB")), np.asarray(expected.convert("RGB")))


def test_masks_of_other_formats_become_png() -> None:
    mask = Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64) % 7)
    for format in ("GIF", "BMP", "TIFF", "PPM"):
        new = opened(applied(SHORTER, saved(mask, format), interpolation="nearest"))
        assert new.format == "PNG"
        assert np.array_equal(np.asarray(new.convert("L")), np.asarray(mask.resize((43, 32), Image.Resampling.NEAREST)))


def test_sixteen_bit_netpbm_depths_keep_their_values() -> None:
    depth = np.asarray(picture(4, mode="I;16"))
    data = b"P5 64 48 65535\n" + depth.astype(">u2").tobytes()
    new = opened(applied(SHORTER, data, interpolation="nearest"))
    assert new.mode == "I;16"
    assert set(np.unique(new)) <= set(np.unique(depth))


def test_masks_that_would_lose_half_their_bits_are_bad() -> None:
    data = b"P6 64 48 65535\n" + bytes(64 * 48 * 6)
    assert refused(SHORTER, data, interpolation="nearest") == (
        "undecodable",
        "it has 16 bits in each of several channels, of which 8 would be lost",
    )
    assert opened(applied(SHORTER, data)).mode == "RGB"


# Samples


def sample(**images: bytes) -> tuple[dict[str, bytes], dict[str, ImageHeader]]:
    return images, {field: check_image(data) for field, data in images.items()}


def test_a_mask_gets_the_size_of_its_image_and_keeps_its_values() -> None:
    mask = Image.fromarray((np.arange(640 * 479, dtype=np.uint32).reshape(479, 640) % 19).astype(np.uint8))
    images, headers = sample(image=encoded(1, size=(640, 479)), mask=saved(mask))
    new, new_headers = apply_to_sample(SHORTER, images, headers)
    assert new_headers == {"image": ImageHeader("jpeg", 43, 32), "mask": ImageHeader("png", 43, 32)}
    assert np.array_equal(opened(new["mask"]), mask.resize((43, 32), Image.Resampling.NEAREST))


@pytest.mark.parametrize("value", range(1, 9))
def test_a_mask_is_turned_with_its_image_if_it_was_as_large_as_the_stored_one(value: int) -> None:
    stored = picture(7, mode="L", size=(64, 48))
    images, headers = sample(image=with_orientation(value, "PNG"), mask=saved(stored))
    new, new_headers = apply_to_sample(APPLY, images, headers)
    assert new_headers["mask"][1:] == new_headers["image"][1:]
    turned = ImageOps.exif_transpose(opened(saved(stored, exif=_exif(value))))
    assert np.array_equal(opened(new["mask"]), turned)


def _exif(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def test_a_mask_that_was_upright_is_not_turned_again_but_follows_the_size() -> None:
    mask = saved(picture(7, mode="L", size=(48, 64)))
    images, headers = sample(image=with_orientation(6, "JPEG"), mask=mask)
    assert apply_to_sample(APPLY, images, headers)[0]["mask"] is mask
    rules = ImageRules(orientation="apply", resize=Resize.parse("fit=30x30"))
    new_headers = apply_to_sample(rules, images, headers)[1]
    assert new_headers["mask"][1:] == new_headers["image"][1:] == (23, 30)


def test_a_second_photograph_goes_by_its_own_size_and_orientation() -> None:
    images, headers = sample(image=with_orientation(6, "JPEG"), other=encoded(2), large=encoded(3, size=(100, 300)))
    new, new_headers = apply_to_sample(
        ImageRules(orientation="apply", resize=Resize.parse("longer=64")), images, headers
    )
    assert new_headers["image"][1:] == (48, 64)
    assert new["other"] is images["other"]
    assert new_headers["large"] == ImageHeader("jpeg", 21, 64)


def test_a_sample_passes_as_it_is_and_is_filtered_by_its_image_alone() -> None:
    images, headers = sample(image=encoded(1), mask=encoded(2, format="PNG", size=(3, 3)))
    new, new_headers = apply_to_sample(ImageRules(min_side=20), images, headers)
    assert new == images
    assert new_headers == headers
    with pytest.raises(BadImageError, match="it has 64×48 pixels"):
        apply_to_sample(ImageRules(min_side=49), images, headers)


def test_a_mask_that_cannot_be_decoded_is_named() -> None:
    mask = bytearray(encoded(2, format="PNG"))
    mask[60:80] = bytes(20)
    images, headers = sample(image=encoded(1), mask=bytes(mask))
    with pytest.raises(BadImageError, match=r"^its mask: it cannot be decoded as png: ") as caught:
        apply_to_sample(SHORTER, images, headers)
    assert caught.value.cause == "undecodable"


# Bad images, and the same bytes


def test_a_jpeg_that_is_cut_is_bad() -> None:
    data = encoded(1, size=(300, 200))
    cut = data[: len(data) // 2]
    with pytest.raises(BadImageError) as caught:
        apply(SHORTER, cut, ImageHeader("jpeg", 300, 200))
    assert caught.value.cause == "undecodable"
    assert str(caught.value).startswith("it cannot be decoded as jpeg: ")


def test_a_size_that_the_decoder_does_not_find_is_bad() -> None:
    with pytest.raises(BadImageError, match="^its decoder finds 64×48 pixels in it$"):
        apply(SHORTER, encoded(1), ImageHeader("jpeg", 65, 48))


def test_decompression_bombs_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(BadImageError) as caught:
        apply(SHORTER, encoded(1), ImageHeader("jpeg", 20_000, 20_000))
    assert (caught.value.cause, str(caught.value)) == (
        "too large",
        "it has 20000×20000 pixels, more than 178956970",
    )


def test_floating_point_pixels_are_bad() -> None:
    data = saved(Image.fromarray(np.zeros((48, 64), np.float32)), "TIFF")
    assert refused(SHORTER, data) == (
        "undecodable",
        "its pixels are of mode F, which has no agreed range in 8 bits",
    )


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_gives_an_image_or_a_bad_one_in_silence(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP"]))
    damaged = bytearray(encoded(1, format=format))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = check_image(bytes(damaged))
    except BadImageError:
        return
    rules = ImageRules(resize=Resize.parse("shorter=20"), orientation="apply", colour="rgb")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for interpolation in ("lanczos", "nearest"):
            with contextlib.suppress(BadImageError):
                new, new_header = apply(rules, bytes(damaged), header, interpolation=interpolation)
                assert check_image(new) == new_header


def test_a_missing_webp_decoder_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    data = b"RIFF" + (30).to_bytes(4, "little") + b"WEBPVP8L" + bytes(26)
    with pytest.raises(ConfigError) as caught:
        apply(SHORTER, data, ImageHeader("webp", 64, 48))
    assert str(caught.value) == (
        "the installed Pillow was built without WebP, and a WebP image is to be changed; "
        "use a complete build: pip install --force-reinstall pillow"
    )


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_stays_webp_and_lossless_where_it_was(lossless: bool) -> None:
    from PIL import features

    if not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    image = picture(1, mode="RGBA")
    data = saved(image, "WEBP", lossless=lossless, exact=True)
    new = opened(applied(SHORTER, data))
    expected = opened(data).resize((43, 32), Image.Resampling.LANCZOS)
    assert (new.format, new.mode) == ("WEBP", "RGBA")
    assert (psnr(new.convert("RGB"), expected.convert("RGB")) > 60) == lossless
    nearest = opened(applied(SHORTER, data, interpolation="nearest"))
    assert np.array_equal(np.asarray(nearest), np.asarray(opened(data).resize((43, 32), Image.Resampling.NEAREST)))


def test_another_process_writes_the_same_bytes() -> None:
    program = (
        "import hashlib\n"
        "from feeder.shards.images.headers import check_image\n"
        "from feeder.shards.images.rules import ImageRules, Resize, apply\n"
        "from tests.images import encoded\n"
        "digest = hashlib.sha256()\n"
        "for format in ('JPEG', 'PNG', 'GIF'):\n"
        "    data = encoded(1, format=format, size=(200, 150))\n"
        "    digest.update(apply(ImageRules(resize=Resize.parse('shorter=40')), data, check_image(data))[0])\n"
        "print(digest.hexdigest())\n"
    )
    root = Path(recoding.__file__).resolve().parents[2]
    digests = {
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=root).stdout
        for _ in range(2)
    }
    assert len(digests) == 1
