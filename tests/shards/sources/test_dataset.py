"""An existing dataset as a source."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from feeder.shards.adoption.adopting import adopt
from feeder.shards.building.fetching import fetch
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.errors import SourceError
from feeder.shards.names import key_of
from feeder.shards.reading.opening import open_dataset
from feeder.shards.sources import SourceOptions, open_source
from tests.images import write_image_folder
from tests.shards.formats.test_tar_walk import packed


@pytest.mark.parametrize("shard_format", ["tar", "arrow"])
def test_samples_are_those_of_the_dataset(tmp_path: Path, image_folder: Path, shard_format: str) -> None:
    (image_folder / "ant" / "a b.jpg").write_bytes((image_folder / "ant" / "ant-00.jpg").read_bytes() + b"x")
    build(image_folder, tmp_path / "set", BuildOptions(format=shard_format, shard_samples=10))
    reader = open_dataset(tmp_path / "set")
    (table,) = open_source(tmp_path / "set")
    rows, images = reader.read(np.arange(len(table)))
    assert [table.key(row) for row in range(len(table))] == rows.keys
    assert [sample["image"] for sample in fetch(table)] == images
    assert (table.classes, table.labels.tolist()) == (("ant", "bee", "cat"), rows.labels.tolist())
    assert sorted(table.names) == sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.jpg"))
    assert (table.root, table.split) == (str(tmp_path / "set"), None)
    reader.close()


def test_splits_and_generations(tmp_path: Path) -> None:
    for split, classes in (("train", ("ant", "bee")), ("val", ("bee",))):
        write_image_folder(tmp_path / "images" / split, classes=classes, per_class=2)
    build(tmp_path / "images", tmp_path / "set")
    train, val = open_source(tmp_path / "set")
    assert [(part.split, len(part), part.classes) for part in (train, val)] == [
        ("train", 4, ("ant", "bee")),
        ("val", 2, ("ant", "bee")),
    ]
    (alone,) = open_source(tmp_path / "set" / "val" / "manifest.json")
    assert alone.split == "val"
    assert list(alone.names) == list(val.names)


def test_classes_may_be_numbered_anew(tmp_path: Path, image_folder: Path) -> None:
    build(image_folder, tmp_path / "set", BuildOptions(shuffle=False))
    (tmp_path / "classes.txt").write_text("cat\ndog\nant\nbee\n")
    (table,) = open_source(tmp_path / "set", SourceOptions(classes_file=f"{tmp_path}/classes.txt"))
    assert table.labels[[0, 12, 24]].tolist() == [2, 3, 0]
    assert table.classes == ("cat", "dog", "ant", "bee")
    (tmp_path / "classes.txt").write_text("cat\nbee\n")
    with pytest.raises(SourceError, match="has samples of the class 'ant', which the file of classes does not name"):
        open_source(tmp_path / "set", SourceOptions(classes_file=f"{tmp_path}/classes.txt"))


def test_a_dataset_behind_a_url(tmp_path: Path, image_folder: Path) -> None:
    build(image_folder, tmp_path / "set")
    fsspec.filesystem("memory").put(f"{tmp_path}/set", "/sets/one", recursive=True)
    (near,) = open_source(tmp_path / "set")
    (far,) = open_source("memory://sets/one")
    assert list(far.names) == list(near.names)
    assert list(fetch(far)) == list(fetch(near))


def test_no_dataset(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path, SourceOptions(kind="dataset"))
    assert str(caught.value) == (
        f"no dataset at {tmp_path}: expected manifest.json in it, or in train, val, …; check the path"
    )


@pytest.mark.parametrize("kind", ["folder", "archives"])
def test_adopted_data_convert_to_the_same_samples(tmp_path: Path, image_folder: Path, kind: str) -> None:
    source: Path = image_folder
    (image_folder / "ant" / "a b.jpg").write_bytes(b"x" + (image_folder / "ant" / "ant-00.jpg").read_bytes())
    if kind == "archives":
        source = tmp_path / "tars" / "a b.tar"
        source.parent.mkdir()
        paths = sorted(image_folder.rglob("*.jpg"))
        source.write_bytes(packed({str(path.relative_to(image_folder)): path.read_bytes() for path in paths}))
    adopt(str(source), tmp_path / "adopted")
    (table,) = open_source(tmp_path / "adopted")
    reader = open_dataset(tmp_path / "adopted")
    rows, images = reader.read(np.arange(len(table)))
    assert [sample["image"] for sample in fetch(table)] == images
    assert table.labels.tolist() == rows.labels.tolist()
    build_tables([table], tmp_path / "set", BuildOptions(shuffle=False, on_error="keep"))
    converted = open_dataset(tmp_path / "set")
    again, same = converted.read(np.arange(len(table)))
    assert same == images
    assert again.labels.tolist() == rows.labels.tolist()
    expected = [key_of(key if kind == "folder" else f"{key}.") for key in rows.keys]
    assert again.keys == expected
    assert sum(key.removesuffix(".jpg") != new for key, new in zip(rows.keys, again.keys, strict=True)) == 1
    reader.close()
    converted.close()
