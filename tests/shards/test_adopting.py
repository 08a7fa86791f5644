"""Adopting data in place: the same ids, pixels and fields as a build, nothing rewritten, and what is refused."""

import dataclasses
import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards import adopting, shard_table
from feeder.shards.adoptable import find_adoptable
from feeder.shards.adopted import FoundFields, tar_fields
from feeder.shards.adopting import adopt
from feeder.shards.destinations import lease
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError, SourceError
from feeder.shards.manifest import Manifest, load_manifest
from feeder.shards.reading import open_dataset
from feeder.shards.sequential import SequentialShard
from feeder.shards.sources import SourceOptions, open_source
from feeder.shards.verify import verify
from feeder.shards.writing import BuildOptions, build, build_tables
from tests.images import encoded, write_image_folder
from tests.mds_sets import write_mds
from tests.servers.s3_server import S3Bucket
from tests.tar_archives import add_member, write_tar


def everything(dataset: str | Path) -> tuple[Manifest, list[bytes], list[int], list[tuple[int, int, str]]]:
    """Return the manifest, the images, the labels and the headers of a dataset, in order."""
    reader = open_dataset(dataset)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    headers = list(zip(rows.widths.tolist(), rows.heights.tolist(), rows.formats, strict=True))
    return reader.manifest, images, rows.labels.tolist(), headers


def assert_same_samples(one: str | Path, other: str | Path) -> None:
    """Compare ids, images, labels and headers of two datasets."""
    assert everything(one)[1:] == everything(other)[1:]


def assert_whole(dataset: str | Path) -> None:
    """Verify a dataset to the last byte."""
    assert verify(dataset, "full").problems == []


def values(dataset: str | Path, field: str) -> list[Any]:
    reader = open_dataset(dataset)
    return reader.values(np.arange(reader.manifest.num_samples), field)


def samples_of(folder: Path) -> list[tuple[str, bytes, int]]:
    """Return (key, image, label) of an image folder, in order."""
    reader = open_dataset(folder)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    keys = [key.rpartition(".")[0] for key in rows.keys]
    return list(zip(keys, images, rows.labels.tolist(), strict=True))


def write_webdataset(folder: Path, image_folder: Path, kind: str = "gnu", per_tar: int = 10) -> Path:
    samples = samples_of(image_folder)
    for number, start in enumerate(range(0, len(samples), per_tar)):
        members = [
            member
            for key, image, label in samples[start : start + per_tar]
            for member in ((f"{key}.jpg", image), (f"{key}.cls", b"%d" % label))
        ]
        write_tar(folder / f"train-{number:06d}.tar", members, kind)
    return folder


@pytest.fixture
def built(image_folder: Path, tmp_path: Path) -> Path:
    """The image folder, built in the order of its names."""
    build(image_folder, tmp_path / "built", BuildOptions(shuffle=False))
    return tmp_path / "built"


def converted(source: Path, dest: Path) -> Path:
    """Build a dataset from any source, in its order."""
    build_tables(open_source(source), dest, BuildOptions(shuffle=False))
    return dest


# The same samples as a build ------------------------------------------------------------------------------------------


def test_an_image_folder_has_the_samples_of_its_build(image_folder: Path, built: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in image_folder.rglob("*.jpg")}
    report = adopt(image_folder, tmp_path / "out")
    assert_same_samples(tmp_path / "out", built)
    assert_same_samples(tmp_path / "out", image_folder)
    assert_same_samples(tmp_path / "out", converted(tmp_path / "out", tmp_path / "converted"))
    assert_whole(tmp_path / "out")
    manifest = report.datasets[0].manifest
    assert load_manifest(tmp_path / "out") == manifest
    assert (manifest.format, manifest.origin, manifest.shuffled) == ("folder", str(image_folder), False)
    assert manifest.classes == ("ant", "bee", "cat")
    assert open_dataset(tmp_path / "out").describe(np.array([0])).keys == ["ant/ant-00.jpg"]
    assert sorted(os.listdir(tmp_path / "out")) == ["files-000000.idx.arrow", "manifest.json"]
    assert {path: path.read_bytes() for path in image_folder.rglob("*.jpg")} == before


@pytest.mark.parametrize("kind", ["gnu", "pax", "ustar"])
def test_tar_archives_have_the_samples_of_the_build(kind: str, image_folder: Path, built: Path, tmp_path: Path) -> None:
    write_webdataset(tmp_path / "tars", image_folder, kind)
    report = adopt(str(tmp_path / "tars" / "train-{000000..000003}.tar"), tmp_path / "out")
    assert_same_samples(tmp_path / "out", built)
    assert_whole(tmp_path / "out")
    assert_same_samples(tmp_path / "out", converted(tmp_path / "tars", tmp_path / "converted"))
    assert_same_samples(tmp_path / "out", converted(tmp_path / "out", tmp_path / "converted-again"))
    manifest = report.datasets[0].manifest
    assert (manifest.format, manifest.origin, manifest.shuffled) == ("tar", str(tmp_path / "tars"), True)
    assert manifest.shards.names == [f"train-00000{number}.tar" for number in range(4)]
    assert manifest.classes == ("0", "1", "2")
    assert sorted(os.listdir(tmp_path / "tars")) == manifest.shards.names


def test_an_mds_set_has_the_samples_of_the_build(image_folder: Path, built: Path, tmp_path: Path) -> None:
    samples = [{"x": image, "y": label, "name": key} for key, image, label in samples_of(image_folder)]
    write_mds(tmp_path / "mds", {"x": "jpeg", "y": "int", "name": "str"}, samples)
    report = adopt(tmp_path / "mds", tmp_path / "out")
    assert_same_samples(tmp_path / "out", built)
    assert_whole(tmp_path / "out")
    assert_same_samples(tmp_path / "out", converted(tmp_path / "out", tmp_path / "converted"))
    assert values(tmp_path / "converted", "name") == [sample["name"] for sample in samples]
    manifest = report.datasets[0].manifest
    assert (manifest.format, manifest.origin, manifest.shuffled) == ("mds", str(tmp_path / "mds"), True)
    assert values(tmp_path / "out", "name") == [sample["name"] for sample in samples]
    assert open_dataset(tmp_path / "out").describe(np.array([12])).keys == ["shard-00001/000002"]


def test_photographs_in_place_are_those_of_the_build(photos: Path, tmp_path: Path) -> None:
    names = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:60]
    for path in names:
        target = tmp_path / "some" / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    build(tmp_path / "some", tmp_path / "built", BuildOptions(shuffle=False, shard_samples=25))
    adopt(tmp_path / "some", tmp_path / "folder")
    adopt(tmp_path / "built" / "shard-{000000..000002}.tar", tmp_path / "tars")
    assert_same_samples(tmp_path / "folder", tmp_path / "built")
    assert_same_samples(tmp_path / "tars", tmp_path / "built")


def test_splits_become_datasets_of_one_mapping(image_folder: Path, tmp_path: Path) -> None:
    write_webdataset(tmp_path / "wds" / "train", image_folder)
    write_tar(tmp_path / "wds" / "val" / "0.tar", [("a.jpg", encoded(1)), ("a.cls", b"1")])
    for split, label in (("train", 4), ("test", 2)):
        write_mds(tmp_path / "mds" / split, {"x": "png", "y": "int8"}, [{"x": encoded(1, format="PNG"), "y": label}])
    for split in ("train", "val"):
        write_image_folder(tmp_path / "folder" / split, per_class=2)
    for source, splits in (("wds", ["train", "val"]), ("mds", ["train", "test"]), ("folder", ["train", "val"])):
        report = adopt(tmp_path / source, tmp_path / "out" / source)
        assert [dataset.manifest.split for dataset in report.datasets] == splits
        assert len({dataset.manifest.classes for dataset in report.datasets}) == 1
        for split in splits:
            assert_whole(tmp_path / "out" / source / split)
            assert load_manifest(tmp_path / "out" / source / split).origin == str(tmp_path / source / split)


def test_names_of_archives_tell_splits_as_in_a_build(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, number in (("in1k-train-0.tar", 1), ("in1k-train-1.tar", 2), ("in1k-validation-0.tar", 3)):
        write_tar(data / name, [(f"{number}.jpg", encoded(number)), (f"{number}.cls", b"%d" % number)])
    build_tables(open_source(data), tmp_path / "built", BuildOptions(shuffle=False))
    for dest in (tmp_path / "out", data):
        adopt(data, dest)
        for split, names in (
            ("train", ["in1k-train-0.tar", "in1k-train-1.tar"]),
            ("validation", ["in1k-validation-0.tar"]),
        ):
            manifest = load_manifest(dest / split)
            assert (manifest.origin, manifest.shards.names, manifest.split) == (str(data), names, split)
            assert_same_samples(dest / split, tmp_path / "built" / split)
            assert_whole(dest / split)


def test_keys_that_two_archives_share_get_the_name_of_theirs(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / "data" / f"{number}.tar", [("a.jpg", encoded(number)), ("b.jpg", encoded(number + 2))])
    build_tables(open_source(tmp_path / "data"), tmp_path / "built", BuildOptions(shuffle=False))
    adopt(tmp_path / "data", tmp_path / "out")
    keys = open_dataset(tmp_path / "out").describe(np.arange(4)).keys
    assert keys == ["0/a", "0/b", "1/a", "1/b"]
    assert open_dataset(tmp_path / "built").describe(np.arange(4)).keys == keys
    assert_same_samples(tmp_path / "out", tmp_path / "built")
    assert_whole(tmp_path / "out")


def test_in_place_the_manifest_stands_beside_the_shards(image_folder: Path, built: Path, tmp_path: Path) -> None:
    write_webdataset(tmp_path / "tars", image_folder)
    assert adopt(tmp_path / "tars", tmp_path / "tars").datasets[0].manifest.origin is None
    moved = tmp_path / "moved"
    (tmp_path / "tars").rename(moved)
    assert_same_samples(moved, built)
    assert_whole(moved)
    with pytest.raises(SourceError, match="is a dataset already: it has a manifest; open it"):
        adopt(moved, moved)


def test_archives_in_several_folders_keep_their_paths(tmp_path: Path) -> None:
    for part in ("a", "b"):
        write_tar(tmp_path / "data" / part / "0.tar", [(f"{part}.jpg", encoded(ord(part)))])
    adopt(str(tmp_path / "data" / "{a,b}" / "0.tar"), tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.origin, manifest.shards.names) == (str(tmp_path / "data"), ["a/0.tar", "b/0.tar"])
    assert everything(tmp_path / "out")[1] == [encoded(ord("a")), encoded(ord("b"))]
    assert "label" not in manifest.fields
    assert_whole(tmp_path / "out")


PARTS = st.text(st.sampled_from("aB.é_- ~ſ1"), min_size=1, max_size=12) | st.sampled_from(["._a", "__m__", "x" * 200])
ENDS = st.sampled_from([".jpg", ".JPG", ".png", ".cls", ".txt", ".a.jpg", ".json", ".bin", ""])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(PARTS, PARTS | st.none(), ENDS), min_size=1, max_size=8), st.sampled_from(["gnu", "pax"]))
def test_any_names_give_the_samples_of_a_build_or_are_refused_by_both(
    names: list[tuple[str, str | None, str]], kind: str
) -> None:
    contents = {".cls": b"1", ".txt": b"text", ".json": b"{}"}
    members = [
        (f"{folder}/{name}{end}" if folder else f"{name}{end}", contents.get(end, encoded(number % 3)))
        for number, (name, folder, end) in enumerate(names)
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = write_tar(Path(directory, "data", "a.tar"), members, kind)
        table, problem, refusal = None, "", ""
        try:
            table = open_source(path)[0]
        except SourceError as error:
            problem = str(error)
        try:
            adopt(path, Path(directory, "out"))
        except SourceError as error:
            refusal = str(error)
        if refusal:
            assert problem or "has an image" in refusal
            return
        assert table is not None, problem
        present = table.stored["image"].sizes >= 0
        reader = open_dataset(Path(directory, "out"))
        ids = np.arange(reader.manifest.num_samples)
        data = path.read_bytes()
        offsets = table.stored["image"].offsets
        assert offsets is not None
        expected = [
            data[offset : offset + size]
            for offset, size in zip(offsets[present], table.stored["image"].sizes[present], strict=True)
        ]
        assert reader.read(ids)[1] == expected
        assert reader.describe(ids).labels.tolist() == table.labels[present].tolist()
        assert reader.manifest.fields.keys() == table.fields.keys()
        assert_whole(Path(directory, "out"))


# Fields ---------------------------------------------------------------------------------------------------------------


def test_members_become_fields_and_may_be_absent(tmp_path: Path) -> None:
    members = [
        ("0001.jpg", encoded(1)),
        ("0001.seg.png", encoded(1, format="PNG")),
        ("0001.txt", b"an ant"),
        ("0001.json", b'{"a": 1}'),
        ("0002.jpg", encoded(2)),
        ("0002.npy", b"array"),
        ("0003.png", encoded(3, format="PNG")),
        ("0003.cls", b"7"),
    ]
    write_tar(tmp_path / "data" / "a.tar", members[:4])
    write_tar(tmp_path / "data" / "b.tar", members[4:])
    adopt([tmp_path / "data" / "a.tar", tmp_path / "data" / "b.tar"], tmp_path / "out")
    reader = open_dataset(tmp_path / "out")
    ids = np.arange(3)
    kinds = {name: field.type for name, field in reader.manifest.fields.items()}
    assert kinds == {
        "image": "image",
        "label": "int64",
        "caption": "string",
        "json": "json",
        "npy": "bytes",
        "seg": "image",
    }
    assert reader.read(ids)[1] == [encoded(1), encoded(2), encoded(3, format="PNG")]
    assert reader.read(ids, "seg")[1] == [encoded(1, format="PNG"), b"", b""]
    assert reader.read(ids, "json")[1] == [b'{"a": 1}', b"", b""]
    assert reader.read(ids, "npy")[1] == [b"", b"array", b""]
    assert reader.values(ids, "caption") == ["an ant", None, None]
    assert reader.describe(ids).labels.tolist() == [-1, -1, 7]
    assert_whole(tmp_path / "out")
    build_tables(open_source(tmp_path / "data"), tmp_path / "built", BuildOptions(shuffle=False))
    other = open_dataset(tmp_path / "built")
    assert {name: field.type for name, field in other.manifest.fields.items()} == kinds
    for name, kind in kinds.items():
        if kind in ("image", "json", "bytes"):
            assert other.read(ids, name)[1] == reader.read(ids, name)[1]
    assert other.values(ids, "caption") == reader.values(ids, "caption")


def test_archives_of_img2dataset_bring_their_columns_and_statuses(tmp_path: Path) -> None:
    for shard in range(2):
        keys = [f"{shard:05d}{row:04d}" for row in range(5)]
        present = keys[:3]
        members = [
            member
            for key in present
            for member in (
                (f"{key}.jpg", encoded(int(key))),
                (f"{key}.json", json.dumps({"key": key}).encode()),
                (f"{key}.txt", f"caption {key}".encode()),
            )
        ]
        write_tar(tmp_path / "data" / f"{shard:05d}.tar", members)
        table = pa.table(
            {
                "url": [f"http://x/{key}" for key in reversed(keys)],
                "caption": [f"caption {key}" for key in reversed(keys)],
                "key": list(reversed(keys)),
                "status": ["success" if key in present else "failed_to_download" for key in reversed(keys)],
                "error_message": pa.array([None if key in present else "404" for key in reversed(keys)], pa.string()),
                "width": pa.array([64] * 5, pa.int32()),
                "similarity": pa.array([0.5] * 5, pa.float32()),
                "exif": ["{}"] * 5,
                "faces": pa.array([[1, 2]] * 5),
                "nothing": pa.nulls(5),
            }
        )
        pq.write_table(table, tmp_path / "data" / f"{shard:05d}.parquet")
        (tmp_path / "data" / f"{shard:05d}_stats.json").write_text('{"count": 5, "successes": 3}')
    adopt(tmp_path / "data", tmp_path / "out")
    reader = open_dataset(tmp_path / "out")
    ids = np.arange(6)
    keys = reader.describe(ids).keys
    assert keys == ["000000000", "000000001", "000000002", "000010000", "000010001", "000010002"]
    assert reader.values(ids, "url") == [f"http://x/{key}" for key in keys]
    assert reader.values(ids, "caption") == [f"caption {key}" for key in keys]
    assert reader.values(ids, "status") == ["success"] * 6
    assert reader.values(ids, "width") == [64] * 6
    assert reader.values(ids, "similarity") == [0.5] * 6
    assert reader.values(ids, "faces") == ["[1, 2]"] * 6
    assert reader.values(ids, "error_message") == reader.values(ids, "nothing") == [None] * 6
    assert_whole(tmp_path / "out")


def test_columns_of_an_mds_set_become_fields(tmp_path: Path) -> None:
    columns = {"image": "bytes", "label": "str", "meta": "json", "score": "float32", "raw": "pkl"}
    samples = [
        {"image": encoded(n), "label": "cb"[n % 2], "meta": {"n": n}, "score": n / 2, "raw": b"p" * n} for n in range(5)
    ]
    write_mds(tmp_path / "mds", columns, samples, per_shard=2)
    adopt(tmp_path / "mds", tmp_path / "out")
    reader = open_dataset(tmp_path / "out")
    ids = np.arange(5)
    assert reader.manifest.classes == ("b", "c")
    assert reader.describe(ids).labels.tolist() == [1, 0, 1, 0, 1]
    assert reader.values(ids, "score") == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [json.loads(data) for data in reader.read(ids, "meta")[1]] == [{"n": n} for n in range(5)]
    assert reader.read(ids, "raw")[1] == [b"p" * n for n in range(5)]


def test_classes_come_from_a_file(image_folder: Path, tmp_path: Path) -> None:
    write_webdataset(tmp_path / "tars", image_folder)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    options = SourceOptions(classes_file=str(tmp_path / "classes.txt"))
    adopt(tmp_path / "tars", tmp_path / "out", options)
    assert load_manifest(tmp_path / "out").classes == ("ant", "bee", "cat", "dog")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(SourceError, match="has the label 2, but there are 2 classes, so labels go to 1"):
        adopt(tmp_path / "tars", tmp_path / "short", options)


def test_all_samples_with_an_image_stay_and_the_others_are_counted(tmp_path: Path) -> None:
    members = [
        ("0.jpg", encoded(0)),
        ("1.jpg", b"no image at all"),
        ("2.cls", b"1"),
        ("3.jpg", encoded(3)[:30]),
        ("4.jpg", b""),
        ("5.jpg", encoded(5)),
    ]
    write_tar(tmp_path / "a.tar", members)
    report = adopt(tmp_path / "a.tar", tmp_path / "out")
    dataset = report.datasets[0]
    assert (dataset.manifest.num_samples, dataset.unreadable, dataset.dropped) == (5, 3, 1)
    _, images, labels, headers = everything(tmp_path / "out")
    assert images == [encoded(0), b"no image at all", encoded(3)[:30], b"", encoded(5)]
    assert [header for header in headers if header[2] == ""] == [(0, 0, "")] * 3
    assert labels == [-1] * 5
    assert_whole(tmp_path / "out")


def test_large_shards_get_segments(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_table, "MAX_WHOLE_BYTES", 30_000)
    monkeypatch.setattr(shard_table, "SEGMENT_BYTES", 15_000)
    write_webdataset(tmp_path / "tars", image_folder, per_tar=36)
    adopt(tmp_path / "tars", tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    segments = manifest.segments
    assert len(manifest.shards) == 1
    assert len(segments) > 2
    assert segments.samples.sum() == 36
    assert manifest.shards.segments[0] == tuple(segments.first_rows.tolist())


def test_labels_in_runs_are_noticed(image_folder: Path, tmp_path: Path) -> None:
    write_webdataset(tmp_path / "sorted", image_folder)
    assert adopt(tmp_path / "sorted", tmp_path / "a").datasets[0].labels_look_sorted
    members = [
        member for n in range(30) for member in ((f"{n}.jpg", encoded(0)), (f"{n}.cls", b"%d" % (n * n % 7 % 3)))
    ]
    write_tar(tmp_path / "mixed.tar", members)
    assert not adopt(tmp_path / "mixed.tar", tmp_path / "b").datasets[0].labels_look_sorted


# At scale -------------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_any_number_of_processes_gives_the_same_bytes(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_webdataset(tmp_path / "tars", image_folder)
    adopt(tmp_path / "tars", tmp_path / "one")
    monkeypatch.setattr(adopting, "BYTES_PER_WORKER", 1)
    seen: list[tuple[int, int]] = []

    def start(shards: int, size_bytes: int) -> Callable[[int, int], None]:
        seen.append((shards, size_bytes))
        return lambda done, done_bytes: seen.append((-done, -done_bytes))

    adopt(tmp_path / "tars", tmp_path / "two", workers=2, start=start)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert np.sum(seen, axis=0).tolist() == [0, 0]


def test_an_adoption_that_stopped_goes_on_where_it_was(image_folder: Path, tmp_path: Path) -> None:
    tars = write_webdataset(tmp_path / "tars", image_folder)
    whole = (tars / "train-000002.tar").read_bytes()
    adopt(tars, tmp_path / "undisturbed")
    os.truncate(tars / "train-000002.tar", 2048)
    with pytest.raises(SourceError, match="train-000002.tar is not a whole tar archive of 2048 bytes"):
        adopt(tars, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [".adopting"]
    (tars / "train-000002.tar").write_bytes(whole)
    report = adopt(tars, tmp_path / "out")
    assert (report.surveyed, report.kept) == (2, 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_shard_of_another_size_is_read_again(image_folder: Path, tmp_path: Path) -> None:
    tars = write_webdataset(tmp_path / "tars", image_folder)
    whole = (tars / "train-000003.tar").read_bytes()
    (tars / "train-000003.tar").write_bytes(whole[:-10_240])
    with pytest.raises(SourceError):
        adopt(tars, tmp_path / "out")
    write_tar(tars / "train-000000.tar", [("new.jpg", encoded(1)), ("new.cls", b"0")])
    (tars / "train-000003.tar").write_bytes(whole)
    report = adopt(tars, tmp_path / "out")
    assert (report.surveyed, report.kept) == (2, 2)
    assert everything(tmp_path / "out")[1][0] == encoded(1)
    assert_whole(tmp_path / "out")


KILLED = """
import os, signal, sys
from feeder.shards import adopting
from feeder.shards.destinations.local import LocalDestination
source, dest, moment = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 0

def counted(function):
    def call(*arguments):
        global count
        result = function(*arguments)
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

for module, name in ((adopting, "survey"), (LocalDestination, "put")):
    setattr(module, name, counted(getattr(module, name)))
adopting.adopt(source, dest)
"""


@pytest.mark.parametrize("moment", [1, 3, 6, 7, 8])  # 3 surveys, 3 indexes and 2 manifests
def test_an_adoption_that_was_killed_ends_like_an_undisturbed_one(moment: int, tmp_path: Path) -> None:
    write_tar(tmp_path / "data" / "train" / "0.tar", [("0.jpg", encoded(0)), ("0.cls", b"0")])
    write_tar(tmp_path / "data" / "train" / "1.tar", [("1.jpg", encoded(1)), ("1.cls", b"1")])
    write_tar(tmp_path / "data" / "val" / "0.tar", [("2.jpg", encoded(2)), ("2.cls", b"2")])
    adopt(tmp_path / "data", tmp_path / "undisturbed")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(tmp_path / "out"), str(moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    report = adopt(tmp_path / "data", tmp_path / "out")
    assert report.kept == min(moment, 3)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_two_at_one_destination_do_not_meet(image_folder: Path, tmp_path: Path) -> None:
    tars = write_webdataset(tmp_path / "tars", image_folder)

    def start(shards: int, size_bytes: int) -> Callable[[int, int], None]:
        with pytest.raises(
            DestinationError, match=f"destination {tmp_path}/out is in use by another process of shardfeed; wait"
        ):
            adopt(tars, tmp_path / "out")
        return lambda done, done_bytes: None

    adopt(tars, tmp_path / "out", start=start)
    assert_whole(tmp_path / "out")


def test_data_behind_a_url_are_adopted_without_a_byte_of_them_copied(
    image_folder: Path, built: Path, tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    import s3fs

    tars = write_webdataset(tmp_path / "tars", image_folder)
    filesystem = s3fs.S3FileSystem(**s3_bucket.storage_options)
    filesystem.put(f"{tars}/", f"{s3_bucket.url}/data/", recursive=True)
    samples = [{"x": image, "y": label} for _, image, label in samples_of(image_folder)]
    mds = write_mds(tmp_path / "mds", {"x": "jpeg", "y": "int"}, samples)
    filesystem.put(f"{mds}/", f"{s3_bucket.url}/mds/", recursive=True)
    for number, source in enumerate(("data/train-{000000..000003}.tar", "data", "mds")):
        dest = tmp_path / f"out-{number}"
        report = adopt(f"{s3_bucket.url}/{source}", dest)
        assert report.datasets[0].manifest.origin == f"{s3_bucket.url}/{source.partition('/')[0]}"
        assert_same_samples(dest, built)
        assert_whole(dest)
        assert {path.suffix for path in dest.iterdir()} == {".json", ".arrow"}
    with pytest.raises(
        SourceError, match=r"1 of the 5 tar archives of .* are missing, such as .*/data/train-000004.tar"
    ):
        adopt(f"{s3_bucket.url}/data/train-{{000000..000004}}.tar", tmp_path / "gap")


# What is refused ------------------------------------------------------------------------------------------------------


def refused(sources: Any, dest: Path, **arguments: Any) -> str:
    """Return the sentence with which an adoption is refused, of which nothing may remain."""
    with pytest.raises((SourceError, DestinationError)) as caught:
        adopt(sources, dest, **arguments)
    assert not dest.exists()
    return str(caught.value)


def test_archives_that_are_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pattern = f"{tmp_path}/a-{{0..3}}.tar"
    assert refused(pattern, out) == f"no tar archive is at {pattern}: there is no {tmp_path}/a-0.tar; check the path"
    write_tar(tmp_path / "a-0.tar", [("0.jpg", encoded(0))])
    write_tar(tmp_path / "a-3.tar", [("0.jpg", encoded(0))])
    assert refused(pattern, out) == (
        f"2 of the 4 tar archives of {pattern} are missing, such as {tmp_path}/a-1.tar; bring them back, or leave them "
        "out of the pattern"
    )
    twice = [str(tmp_path / "a-0.tar")] * 2
    assert refused(twice, out) == f"{tmp_path}/a-0.tar is named twice; name each archive once"
    assert refused([*twice[:1], str(tmp_path)], out) == (
        f"{tmp_path} is no tar archive by its name; expected names that end in .tar"
    )


def test_an_archive_that_is_cut_names_member_and_place(tmp_path: Path) -> None:
    image = encoded(1)
    write_tar(tmp_path / "a.tar", [("0.jpg", image), ("1.jpg", image)])
    os.truncate(tmp_path / "a.tar", 512 + len(image) + -len(image) % 512 + 612)
    size = os.path.getsize(tmp_path / "a.tar")
    sentence = refused(tmp_path / "a.tar", tmp_path / "out")
    assert sentence == (
        f"{tmp_path}/a.tar is not a whole tar archive of {size} bytes: the content of '1.jpg' is cut: {len(image)} "
        f"bytes from byte {size - 100} on; copy it again from its origin"
    )


def test_compressed_archives(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "b" / "a.tar", [("0.jpg", encoded(0))]).read_bytes()
    (tmp_path / "c").mkdir()
    for name in ("b/a.tar", "c/a.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(data))
    rest = "so no sample in it can be read alone; decompress it, the images in it are compressed already"
    assert refused(tmp_path / "b" / "a.tar", tmp_path / "out") == f"{tmp_path}/b/a.tar is compressed (gzip), {rest}"
    for source in ("c", "c/a.tar.gz"):
        assert refused(tmp_path / source, tmp_path / "out") == f"{tmp_path}/c/a.tar.gz is compressed, {rest}"


def test_compressed_and_raw_mds(tmp_path: Path) -> None:
    zipped = {"compression": "zstd", "zip_data": {"basename": "shard.00000.mds.zstd", "bytes": 7, "hashes": {}}}
    write_mds(tmp_path / "zip", {"x": "jpeg"}, [{"x": encoded(1)}], changes=zipped)
    write_mds(tmp_path / "pil", {"x": "pil"}, [{"x": b"\0" * 40}])
    assert "is compressed (zstd), so no sample in it can be read alone" in refused(tmp_path / "zip", tmp_path / "out")
    assert "are raw pixels (encoding 'pil')" in refused(tmp_path / "pil", tmp_path / "out")
    write_mds(tmp_path / "gone", {"x": "jpeg"}, [{"x": encoded(1)}])
    (tmp_path / "gone" / "shard.00000.mds").unlink()
    assert refused(tmp_path / "gone", tmp_path / "out") == (
        f"{tmp_path}/gone/shard.00000.mds is missing, but the set's index lists it; copy it again from its origin"
    )


def test_fields_that_do_not_go_together(tmp_path: Path) -> None:
    for number, kind in enumerate((pa.int64(), pa.string())):
        write_tar(tmp_path / f"{number}.tar", [("0.jpg", encoded(0))])
        size = pa.array(["1" if number else 1], kind)
        table = pa.table({"key": ["0"], "status": ["success"], "size": size})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    with pytest.raises(SourceError) as caught:
        adopt(str(tmp_path / "{0,1}.tar"), tmp_path / "out")
    assert str(caught.value) == (
        f"the column 'size' holds string in {tmp_path}/1.tar but int64 in {tmp_path}/0.tar; adopt them as two "
        "datasets, or write one of them again"
    )


def test_archives_without_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.txt", b"text"), ("0.cls", b"1")])
    with pytest.raises(SourceError) as caught:
        adopt(tmp_path / "a.tar", tmp_path / "out")
    assert str(caught.value) == (
        f"no sample in {tmp_path} has an image: its members end in cls, txt; expected jpg, png, webp and the like"
    )
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add_member(archive, "folder", kind=tarfile.DIRTYPE)
    with pytest.raises(SourceError, match="there are no samples in .*; expected members named like 0001.jpg"):
        adopt(tmp_path / "b.tar", tmp_path / "out2")


def test_destinations(image_folder: Path, built: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(DestinationError) as caught:
        adopt(image_folder, tmp_path / "full")
    assert str(caught.value) == (
        f"destination {tmp_path}/full is not empty: it holds mine; choose another destination, empty the folder "
        "yourself, or give the folder of the data itself"
    )
    assert os.listdir(tmp_path / "full") == ["mine"]
    with pytest.raises(DestinationError, match=f"destination {built} holds a dataset already; choose another"):
        adopt(image_folder, built)
    with pytest.raises(DestinationError) as caught:
        adopt(image_folder, "memory://x/y")
    assert str(caught.value) == (
        f"the data lie in the local folder {image_folder}, which a dataset at memory://x/y cannot name; choose a local "
        "destination, or upload the data first"
    )


def test_shards_that_vanish_or_are_not_as_long_as_the_index_says(tmp_path: Path) -> None:
    folder = write_mds(tmp_path / "mds", {"x": "jpeg"}, [{"x": encoded(n)} for n in range(4)], per_shard=2)
    shard = folder / "shard.00001.mds"
    size = shard.stat().st_size
    with open(shard, "ab") as file:
        file.write(b"more")
    next_step = (
        "copy it again from its origin, or if it is still being written, run the command again when it is at rest"
    )
    with pytest.raises(SourceError) as caught:
        adopt(folder, tmp_path / "out")
    assert str(caught.value) == f"{shard} has {size + 4} bytes, expected {size}; {next_step}"
    shard.unlink()
    with pytest.raises(SourceError) as caught:
        adopt(folder, tmp_path / "out")
    assert str(caught.value) == f"{shard} is missing; {next_step}"


def test_a_member_of_any_size_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = SequentialShard.read

    def watched(shard: SequentialShard, offset: int, size: int) -> bytes:
        asked.append(size)
        return read(shard, offset, size)

    monkeypatch.setattr(SequentialShard, "read", watched)
    photo = encoded(0) + bytes(3 << 20)  # what follows an image counts as its bytes
    profile = b"\xff\xef\xff\xff" + bytes(0xFFFD)  # the largest segment before the frame header, of which many may be
    late = encoded(1)[:2] + 20 * profile + encoded(1)[2:]
    video = bytes(range(256)) * (20 << 10)
    text = b"x" * (1 << 20)  # the largest value of an index
    members = [("a.jpg", photo), ("a.mp4", video), ("a.txt", text), ("b.jpg", late), ("b.txt", b""), ("b.mp4", b"")]
    write_tar(tmp_path / "data" / "a.tar", members)
    adopt(tmp_path / "data", tmp_path / "out")
    assert sorted(size for size in asked if size > 1 << 20) == [len(late)]
    assert_whole(tmp_path / "out")
    rows, images = open_dataset(tmp_path / "out").read(np.arange(2))
    assert (images, list(rows.formats)) == ([photo, late], ["jpeg", "jpeg"])
    assert values(tmp_path / "out", "caption") == [text.decode(), ""]


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> str:
    """A place behind a URL that holds ``data/a/0.tar`` and ``data/b/1.tar``, and ``more/0.tar``."""
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
    else:
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        url = bucket.url
    folder = Path(request.getfixturevalue("tmp_path"), "store")
    for number, name in enumerate(("data/a/0.tar", "data/b/1.tar", "more/0.tar")):
        write_tar(folder / name, [(f"{number}.jpg", encoded(number))])
        RemoteDestination(url).put(name, (folder / name).read_bytes())
    return url


def names_in(url: str) -> set[str]:
    files, root = fsspec.url_to_fs(url)
    files.invalidate_cache()
    return {path.removeprefix(f"{root}/") for path in files.find(root)}


def test_two_at_one_destination_behind_a_url_do_not_meet(store: str) -> None:
    out = f"{store}/out"

    def start(shards: int, size_bytes: int) -> Callable[[int, int], None]:
        with pytest.raises(DestinationError, match=f"^destination {out} is in use by another process of shardfeed"):
            adopt(f"{store}/more", out)
        return lambda done, done_bytes: None

    adopt(f"{store}/data", out, start=start)
    assert names_in(out) == {"manifest.json", "a/0.idx.arrow", "b/1.idx.arrow"}
    assert_whole(out)
    with pytest.raises(DestinationError, match=f"^destination {out} holds a dataset already"):
        adopt(f"{store}/more", out)
    assert names_in(out) == {"manifest.json", "a/0.idx.arrow", "b/1.idx.arrow"}


@pytest.mark.parametrize("dest", ["out", "data"])
def test_an_adoption_behind_a_url_that_failed_is_done_again(
    store: str, dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = f"{store}/{dest}", names_in(store)
    put = RemoteDestination.put

    def failing(folder: RemoteDestination, name: str, data: bytes) -> None:
        if name == fails_at:
            raise DestinationError(f"cannot write {name}")
        put(folder, name, data)

    monkeypatch.setattr(RemoteDestination, "put", failing)
    for fails_at in ("a/0.idx.arrow", "manifest.json"):
        with pytest.raises(DestinationError, match=f"^cannot write {fails_at}$"):
            adopt(f"{store}/data", out)
        assert (names_in(store) == before) == (fails_at == "a/0.idx.arrow")  # where nothing was written, nothing stays
    if dest == "out":
        with pytest.raises(DestinationError, match=f"^destination {out} is not empty: it holds [ab]/"):
            adopt(f"{store}/more", out)
    fails_at = ""
    adopt(f"{store}/data", out)
    assert names_in(store) == before | {
        f"{dest}/{name}" for name in ("manifest.json", "a/0.idx.arrow", "b/1.idx.arrow")
    }
    assert_whole(out)


def test_an_adoption_that_lost_its_destination_writes_no_more(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(shards: int, size_bytes: int) -> Callable[[int, int], None]:
        monkeypatch.setattr(lease, "STALE_S", -1.0)
        return lambda done, done_bytes: None

    with pytest.raises(DestinationError, match="was taken over by another process of shardfeed, because this one gave"):
        adopt(f"{store}/data", f"{store}/out", start=start)
    assert names_in(f"{store}/out") == set()


def test_the_paths_of_an_image_folder_are_held_once(image_folder: Path, tmp_path: Path) -> None:
    """Not once more, as texts, in what waits for its turn."""
    (split,) = find_adoptable([image_folder], SourceOptions())
    jobs = list(adopting._jobs(split, tmp_path))
    (table,) = open_source(image_folder)
    assert [path for job in jobs for path in job.task().paths] == list(table.names)
    assert max(len(pickle.dumps(dataclasses.replace(job, split=None))) for job in jobs) < 500


def test_columns_that_would_have_one_name() -> None:
    found = FoundFields(parts={"jpg"}, columns={"a b": pa.int64(), "a_b": pa.string(), "jpg": pa.null()})
    named = {field.name: (field.column, field.field.type) for field in tar_fields(found)}
    assert named == {
        "image": (None, "image"),
        "a_b_": ("a b", "int64"),
        "a_b": ("a_b", "string"),
        "jpg": ("jpg", "string"),
    }
