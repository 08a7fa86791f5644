"""Builds with image rules: what is written, counted and recorded, whatever the images are."""

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from feeder.shards.building.packing import ShardTask, write_shard
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from feeder.shards.formats.index import index_name
from feeder.shards.images.headers import MAX_PIXELS, check_image
from feeder.shards.images.rules import ImageRules, Resize, apply
from feeder.shards.names import PathTable
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.table import Places, SampleTable
from tests.images import encoded, picture
from tests.shards.images.test_exif import with_orientation

FORMATS = ["tar", "arrow"]
RULES = ImageRules(resize=Resize.parse("shorter=24"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images_of(dataset: Path) -> dict[str, bytes]:
    """Return the image of each sample by its key, after holding index and manifest against the bytes."""
    assert verify(dataset, "full").problems == []
    reader = open_dataset(dataset)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    for i, data in enumerate(images):
        assert check_image(data) == (rows.formats[i], rows.widths[i], rows.heights[i])
    return dict(zip(rows.keys, images, strict=True))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# The whole build


@pytest.mark.parametrize("format", FORMATS)
def test_without_rules_images_pass_and_the_manifest_says_so(format: str, image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "out", BuildOptions(format=format))
    assert load_manifest(tmp_path / "out").build["images"] is None
    for key, data in images_of(tmp_path / "out").items():
        assert data == (image_folder / f"{key}.jpg").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_images_that_need_no_change_give_the_shards_of_a_build_without_rules(
    format: str, image_folder: Path, tmp_path: Path
) -> None:
    rules = ImageRules(resize=Resize.parse("shorter=200"), orientation="apply", colour="rgb", quality=1, min_side=2)
    build(image_folder, tmp_path / "plain", BuildOptions(format=format))
    build(image_folder, tmp_path / "ruled", BuildOptions(format=format, images=rules))
    plain, ruled = files_of(tmp_path / "plain"), files_of(tmp_path / "ruled")
    assert plain.pop("manifest.json") != ruled.pop("manifest.json")
    assert plain == ruled


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_workers_writes_the_same_bytes(format: str, image_folder: Path, tmp_path: Path) -> None:
    options = BuildOptions(format=format, shard_samples=5, images=RULES)
    build(image_folder, tmp_path / "one", options)
    build(image_folder, tmp_path / "two", options, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert load_manifest(tmp_path / "one").build["images"]["resize"] == "shorter=24"
    for key, data in images_of(tmp_path / "one").items():
        source = (image_folder / f"{key}.jpg").read_bytes()
        assert data == apply(RULES, source, check_image(source))[0]
        assert min(opened(data).size) == 24


def test_what_filters_leave_out_is_listed_but_is_no_failure(image_folder: Path, tmp_path: Path) -> None:
    sizes = {path: opened(path.read_bytes()).size for path in image_folder.rglob("*.jpg")}
    small = {str(path.relative_to(image_folder)) for path, size in sizes.items() if min(size) < 60}
    assert 10 < len(small) < len(sizes)
    for on_error in ("skip", "fail", "keep"):
        options = BuildOptions(images=ImageRules(min_side=60), max_bad_fraction=0, on_error=on_error)
        report = build(image_folder, tmp_path / on_error, options)
        assert report.bad_by_cause == {"too small": len(small)}
        assert {image.source for image in report.bad} == small
        assert report.num_samples == len(sizes) - len(small)


def test_filters_that_leave_nothing_say_so(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="36 too small"):
        build(image_folder, tmp_path / "out", BuildOptions(images=ImageRules(min_side=600)))


def test_bad_images_still_count_among_what_is_filtered(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "bee" / "empty.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"too many bad images: 1 of 37 so far .*bee/empty\.jpg: it has no bytes;"):
        build(image_folder, tmp_path / "out", BuildOptions(images=ImageRules(min_side=60), max_bad_fraction=0))


# Images of every sort


def half_a_png() -> bytes:
    """Return a PNG without half of its pixels: header, checksums and end are in order, so only decoding tells."""
    data = encoded(3, size=(90, 90), format="PNG")
    at = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, at - 4)
    half = data[at : at + 4 + length // 2]
    return data[: at - 4] + struct.pack(">I", length // 2) + half + struct.pack(">I", zlib.crc32(half)) + data[-12:]


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Images as they are found in the wild, and things that are none."""
    whole = encoded(3, size=(90, 80))
    files = {
        "bad/empty.jpg": b"",
        "bad/text.jpg": b"<html>404</html>",
        "bad/cut.jpg": whole[: len(whole) // 2],
        "bad/half.png": half_a_png(),
        "odd/dot.png": encoded(1, size=(1, 1), format="PNG"),
        "odd/strip.png": encoded(1, size=(1, 20_000), format="PNG"),
        "odd/strip2.png": encoded(1, size=(2000, 30), format="PNG"),
        "odd/deep.png": encoded(1, size=(60, 50), mode="I;16", format="PNG"),
        "odd/grey.jpg": encoded(1, size=(60, 50), mode="L"),
        "odd/cmyk.jpg": encoded(1, size=(60, 50), mode="CMYK"),
        "odd/bit.png": encoded(1, size=(60, 50), mode="1", format="PNG"),
        "odd/alpha.png": encoded(1, size=(60, 50), mode="RGBA", format="PNG"),
        "odd/palette.png": png(picture(1, size=(60, 50)).quantize(16), transparency=2),
        "odd/first.gif": encoded(1, size=(60, 50), format="GIF"),
        **{f"turned/{value}.png": with_orientation(value, "PNG") for value in range(1, 9)},
        **{f"turned/{value}-jpeg.jpg": with_orientation(value, "JPEG") for value in range(1, 9)},
    }
    for name, data in files.items():
        path = tmp_path / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert b"Adobe" in files["odd/cmyk.jpg"]
    return tmp_path / "odd"


@pytest.mark.parametrize("format", FORMATS)
def test_odd_images_are_scaled_kept_or_named(format: str, odd_folder: Path, tmp_path: Path) -> None:
    report = build(odd_folder, tmp_path / "out", BuildOptions(format=format, images=RULES))
    assert {(image.source, image.cause) for image in report.bad} == {
        ("bad/empty.jpg", "empty"),
        ("bad/text.jpg", "not an image"),
        ("bad/cut.jpg", "truncated"),
        ("bad/half.png", "undecodable"),
    }
    images = images_of(tmp_path / "out")
    for name in ("odd/dot.png", "odd/strip.png"):
        assert images[name.removesuffix(".png")] == (odd_folder / name).read_bytes()
    assert opened(images["odd/strip2"]).size == (1600, 24)
    modes = {
        "deep": "I;16",
        "grey": "L",
        "cmyk": "CMYK",
        "bit": "L",
        "alpha": "RGBA",
        "palette": "RGBA",
        "first": "RGB",
    }
    for name, mode in modes.items():
        image = opened(images[f"odd/{name}"])
        assert (name, image.size, image.mode) == (name, (29, 24), mode)
    for value in range(1, 9):
        image = opened(images[f"turned/{value}"])
        assert image.size == (32, 24)
        assert image.getexif().get(274, 1) == value


@pytest.mark.parametrize("format", FORMATS)
def test_odd_images_become_upright_rgb_of_the_right_pixels(format: str, odd_folder: Path, tmp_path: Path) -> None:
    rules = dataclasses.replace(RULES, orientation="apply", colour="rgb")
    build(odd_folder, tmp_path / "out", BuildOptions(format=format, images=rules))
    for key, data in images_of(tmp_path / "out").items():
        image = opened(data)
        assert (key, image.mode) == (key, "RGB")
        assert image.getexif().get(274, 1) == 1
    images = images_of(tmp_path / "out")
    stored = opened((odd_folder / "turned" / "1.png").read_bytes()).resize((32, 24), Image.Resampling.LANCZOS)
    for value in range(1, 9):
        tagged = Image.Exif()
        tagged[274] = value
        expected = ImageOps.exif_transpose(opened(png(stored, exif=tagged)))
        assert np.array_equal(opened(images[f"turned/{value}"]), expected)
        assert opened(images[f"turned/{value}-jpeg"]).size == expected.size


def test_kept_images_that_cannot_be_decoded_stay_as_they_are(odd_folder: Path, tmp_path: Path) -> None:
    rules = dataclasses.replace(RULES, colour="rgb")
    build(odd_folder, tmp_path / "out", BuildOptions(images=rules, on_error="keep"))
    reader = open_dataset(tmp_path / "out")
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    by_key = dict(zip(rows.keys, images, strict=True))
    for name in ("text.jpg", "half.png"):
        assert by_key[f"bad/{name.partition('.')[0]}"] == (odd_folder / "bad" / name).read_bytes()
    assert opened(by_key["odd/cmyk"]).mode == "RGB"


# Several image fields


def table_with_masks(folder: Path, images: list[bytes], masks: list[bytes | None]) -> SampleTable:
    """Return a table of files written below the folder; a sample may have no mask."""
    stored, names = {}, [f"{i:02}.jpg" for i in range(len(images))]
    for field, column in (("image", images), ("mask", masks)):
        sizes = []
        for name, data in zip(names, column, strict=True):
            (folder / f"{field}-{name}").write_bytes(data or b"")
            sizes.append(-2 if data is None else len(data))
        files = PathTable([f"{field}-{name}" for name in names])
        stored[field] = Places(files=files, sizes=np.array(sizes, np.int64))
    return SampleTable(
        root=str(folder),
        names=PathTable(names),
        labels=np.full(len(images), -1, np.int64),
        fields={"image": Field(type="image"), "mask": Field(type="image")},
        stored=stored,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_masks_follow_their_images_into_the_shard(format: str, tmp_path: Path) -> None:
    labels = [Image.fromarray((np.arange(50 * 70).reshape(50, 70) % (5 + n)).astype(np.uint8)) for n in range(3)]
    table = table_with_masks(
        tmp_path, [encoded(n, size=(70, 50)) for n in range(4)], [*(png(one) for one in labels), None]
    )
    name = f"shard-000000.{format}"
    task = ShardTask(
        folder=LocalDestination(tmp_path), name=name, format=format, table=table, max_pixels=MAX_PIXELS, images=RULES
    )
    written = write_shard(task)
    assert written.bad == []
    columns = pa.ipc.open_file(tmp_path / index_name(name)).read_all()
    for field in ("image", "mask"):
        assert columns[f"{field}.width"].to_pylist()[:3] == [34] * 3
        assert columns[f"{field}.height"].to_pylist()[:3] == [24] * 3
    shard = (tmp_path / name).read_bytes()
    places = zip(columns["mask.offset"].to_pylist(), columns["mask.size"].to_pylist(), strict=True)
    masks = [shard[offset : offset + size] for offset, size in places if size >= 0]
    assert len(masks) == 3
    for mask, label in zip(masks, labels, strict=True):
        assert np.array_equal(opened(mask), label.resize((34, 24), Image.Resampling.NEAREST))


def test_a_sample_whose_mask_cannot_be_decoded_is_bad(tmp_path: Path) -> None:
    table = table_with_masks(tmp_path, [encoded(n, size=(90, 90)) for n in range(2)], [half_a_png(), None])
    task = ShardTask(
        folder=LocalDestination(tmp_path),
        name="shard-000000.tar",
        format="tar",
        table=table,
        max_pixels=MAX_PIXELS,
        images=RULES,
    )
    written = write_shard(task)
    assert [(image.source, image.cause) for image in written.bad] == [("00.jpg", "undecodable")]
    assert written.bad[0].reason.startswith("its mask: it cannot be decoded as png: ")
    assert written.shard is not None
    assert written.shard.samples == 1
