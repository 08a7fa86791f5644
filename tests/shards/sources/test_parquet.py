"""Parquet with images inside, as Hugging Face stores datasets."""

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.fetching import fetch
from feeder.shards.errors import BadImageError, DestinationError, SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.sources import SourceOptions, open_source
from feeder.shards.table import FORBIDDEN, UNREADABLE
from tests.images import encoded
from tests.servers.s3_server import S3Bucket

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["ant", "bee", "cat"]},
    "text": {"_type": "Value", "dtype": "string"},
}


def write(path: Path, rows: int, *, first: int = 0, paths: bool = False, **columns: Any) -> Path:
    """Write a file as `datasets` does; column ``image`` has pictures first, first + 1, …"""
    images = [
        {"bytes": encoded(number), "path": f"p/{number}.jpg" if paths else None}
        for number in range(first, first + rows)
    ]
    data = {
        "image": pa.array(images, IMAGE),
        "label": pa.array([number % 3 for number in range(first, first + rows)], pa.int64()),
        "text": pa.array([f"text {number}" for number in range(first, first + rows)]),
    } | columns
    table = pa.table(data).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path


def test_rows_are_samples(tmp_path: Path) -> None:
    (table,) = open_source(write(tmp_path / "data.parquet", 20), spool=tmp_path / "spool")
    assert table.fields == {"image": Field(type="image"), "label": LABEL, "text": Field(type="string")}
    assert (table.classes, table.labels.tolist()) == (("ant", "bee", "cat"), [row % 3 for row in range(20)])
    assert table.values["text"].to_pylist() == [f"text {row}" for row in range(20)]
    assert [sample["image"] for sample in fetch(table)] == [encoded(row) for row in range(20)]
    assert [table.key(row) for row in (0, 19)] == ["data/000000", "data/000019"]
    assert table.name(19) == "data/000019.jpg"
    assert (tmp_path / "spool").stat().st_size == sum(len(encoded(row)) for row in range(20))
    assert (tmp_path / "spool").stat().st_mtime_ns == (tmp_path / "data.parquet").stat().st_mtime_ns
    some = table.take(np.array([3, 17]))
    assert [sample["image"] for sample in fetch(some)] == [encoded(3), encoded(17)]


def test_files_of_splits(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", 5)
    write(tmp_path / "data" / "train-00001-of-00002.parquet", 4, first=5)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", 3, first=9)
    (tmp_path / "README.md").write_text("---")
    train, test = open_source(tmp_path, spool=tmp_path / "spool")
    assert [(part.split, len(part)) for part in (train, test)] == [("train", 9), ("test", 3)]
    assert [train.key(row) for row in (0, 5)] == ["train-00000-of-00002/000000", "train-00001-of-00002/000000"]
    assert [sample["image"] for sample in fetch(test)] == [encoded(row) for row in range(9, 12)]
    (pattern,) = open_source(f"{tmp_path}/data/train-0000{{0..1}}-of-00002.parquet", spool=tmp_path / "spool2")
    assert (pattern.split, len(pattern)) == (None, 9)


def test_paths_are_names_where_they_tell_samples_apart(tmp_path: Path) -> None:
    (table,) = open_source(write(tmp_path / "a.parquet", 4, paths=True), spool=tmp_path / "spool")
    assert list(table.names) == ["p/0.jpg", "p/1.jpg", "p/2.jpg", "p/3.jpg"]
    key = pa.array(["k0", "k 1", "k2", "k3"])
    (table,) = open_source(write(tmp_path / "b.parquet", 4, paths=True, key=key), spool=tmp_path / "spool")
    assert table.key(0) == "k0"
    assert table.key(1).startswith("k_1-")


def test_rows_without_bytes_point_to_their_path(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(7))
    rows = [
        {"bytes": None, "path": "x.jpg"},
        {"bytes": encoded(1), "path": "y.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": b"", "path": "e.jpg"},
        None,
    ]
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE)}), tmp_path / "a.parquet")
    (table,) = open_source(tmp_path / "a.parquet", spool=tmp_path / "spool")
    assert table.stored["image"].sizes[[2, 3]].tolist() == [UNREADABLE, 0]
    fetched = list(fetch(table))
    assert [sample.get("image") for sample in fetched[:2]] == [encoded(7), encoded(1)]
    assert "image" not in fetched[4]
    assert list(fetch(table.take(np.array([1, 0]))))[1]["image"] == encoded(7)


def test_further_images_and_bytes_are_stored(tmp_path: Path) -> None:
    mask = pa.array([{"bytes": b"m%d" % row, "path": None} for row in range(3)], IMAGE)
    latent = pa.array([b"abc", None, b"de"], pa.large_binary())
    path = write(tmp_path / "a.parquet", 3, mask=mask, latent=latent, sure=pa.array([True, None, False]))
    (table,) = open_source(path, spool=tmp_path / "spool")
    assert list(table.fields) == ["image", "mask", "latent", "label", "text", "sure"]
    assert table.fields["latent"] == Field(type="bytes", extension="latent")
    assert [(sample["mask"], sample.get("latent")) for sample in fetch(table)] == [
        (b"m0", b"abc"),
        (b"m1", None),
        (b"m2", b"de"),
    ]
    (table,) = open_source(path, SourceOptions(columns=["text"]), spool=tmp_path / "spool")
    assert list(table.fields) == ["image", "label", "text"]


def test_plain_bytes_and_one_class_label_of_any_name(tmp_path: Path) -> None:
    features = {"info": {"features": {"target": {"_type": "ClassLabel", "names": ["x", "y"]}}}}
    table = pa.table({"image": [encoded(1), encoded(2)], "target": [1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    (samples,) = open_source(tmp_path / "a.parquet", spool=tmp_path / "spool")
    assert (samples.classes, samples.labels.tolist()) == (("x", "y"), [1, 0])


def test_files_on_s3(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    write(tmp_path / "a.parquet", 6)
    fsspec.filesystem("s3").put(str(tmp_path / "a.parquet"), f"{s3_bucket.url}/set/data/train-0.parquet")
    for source in (f"{s3_bucket.url}/set", f"{s3_bucket.url}/set/data/train-0.parquet"):
        (table,) = open_source(source, spool=tmp_path / "spool")
        assert [sample["image"] for sample in fetch(table)] == [encoded(row) for row in range(6)]


def test_sentences(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 2)
    with pytest.raises(
        ConfigError, match="a.parquet holds images within Parquet files, which need a spool: a local file$"
    ):
        open_source(path)
    with pytest.raises(DestinationError) as caught:
        open_source(path, spool=tmp_path / "none" / "spool")
    assert str(caught.value) == (
        f"cannot write {tmp_path}/none/spool, where images are copied out of Parquet: No such file or directory; free "
        "space there, or choose another place"
    )
    other = write(tmp_path / "b.parquet", 2, extra=pa.array([1, 2]))
    with pytest.raises(SourceError) as error:
        open_source(f"{path}::{other}", spool=tmp_path / "spool")
    assert str(error.value) == (
        f"{other} has other columns than the files before it: image struct<bytes: binary, path: string>, label int64, "
        "text string, extra int64, expected image struct<bytes: binary, path: string>, label int64, text string; build "
        "them one by one"
    )
    with pytest.raises(
        SourceError, match="the column 'text' of .*a.parquet holds string, expected images as struct<bytes"
    ):
        open_source(path, SourceOptions(image_column="text"), spool=tmp_path / "spool")
    boxes = write(tmp_path / "c.parquet", 1, boxes=pa.array([[1, 2]]))
    with pytest.raises(SourceError, match="the column 'boxes' of .*c.parquet holds list<.*>, which no field can be"):
        open_source(boxes, spool=tmp_path / "spool")
    (tmp_path / "d.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"d.parquet is no whole Parquet file \("):
        open_source(tmp_path / "d.parquet")
    empty = write(tmp_path / "e.parquet", 0)
    with pytest.raises(SourceError, match="no samples in .*: its 1 Parquet files have no rows"):
        open_source(empty, spool=tmp_path / "spool")


def test_a_path_within_parquet_leads_nowhere_but_below_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(encoded(9))
    for name in ("data/a.jpg", "data/sub/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(1))
    outside = [str(tmp_path / "secret.jpg"), "../secret.jpg", "sub/../../secret.jpg", f"file://{tmp_path}/secret.jpg"]
    paths = ["a.jpg", "sub/b.jpg", "gone.jpg", *outside, "memory://secret.jpg"]
    images = pa.array([{"bytes": None, "path": path} for path in paths], IMAGE)
    pq.write_table(pa.table({"image": images}), tmp_path / "data" / "a.parquet")
    (table,) = open_source(tmp_path / "data" / "a.parquet", SourceOptions(kind="parquet"), spool=tmp_path / "spool")
    assert table.stored["image"].sizes[2:].tolist() == [UNREADABLE] + [FORBIDDEN] * 5
    fetched = [sample["image"] for sample in fetch(table)]
    assert fetched[:2] == [encoded(1)] * 2
    assert [str(image) for image in fetched[3:]] == [
        f"its path {path!r} leads out of the folder of the file that names it" for path in [*outside, paths[-1]]
    ]
    assert {image.cause for image in fetched[2:] if isinstance(image, BadImageError)} == {"unreadable"}


@pytest.mark.parametrize("paths", [False, True])
def test_an_estimate_is_the_source_without_its_bytes(tmp_path: Path, paths: bool) -> None:
    for number in range(3):
        name = f"data/{('train', 'train', 'test')[number]}-0000{number}-of-00003.parquet"
        extra = {"mask": pa.array([encoded(row) for row in range(20)]), "text.size": pa.array(range(20))}
        write(tmp_path / name, 20, first=20 * number, paths=paths, **extra)
    options = SourceOptions(image_columns={"mask": "mask"})
    scanned = open_source(tmp_path / "data", options, spool=tmp_path / "spool")
    estimated = open_source(tmp_path / "data", options, estimated=True)
    for table, estimate in zip(scanned, estimated, strict=True):
        assert (estimate.estimated, table.estimated) == (True, False)
        assert (estimate.fields, estimate.classes, estimate.split) == (table.fields, table.classes, table.split)
        assert [estimate.key(row) for row in range(len(estimate))] == [table.key(row) for row in range(len(table))]
        assert estimate.labels.tolist() == table.labels.tolist()
        assert estimate.values == table.values
        for field in table.stored:
            real = table.stored[field].sizes.sum()
            assert (
                real <= estimate.stored[field].sizes.sum() < 1.5 * real
            )  # a page names its least and its largest value, a few of so few rows


def test_an_estimate_of_plain_bytes_needs_no_other_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([encoded(row) for row in range(9)])}), tmp_path / "a.parquet")
    (table,) = open_source(tmp_path / "a.parquet", estimated=True)
    assert (len(table), table.key(8)) == (9, "a/000008")
