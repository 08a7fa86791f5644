"""WebDataset tars as a source: any fields, several archives, local and behind a URL."""

import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.adoption.adopting import adopt
from feeder.shards.building.fetching import fetch
from feeder.shards.building.writing import build
from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT, LABEL, Field
from feeder.shards.formats.tar_walk import DamagedArchiveError
from feeder.shards.names import KEY
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import SourceOptions, open_source
from tests.images import encoded
from tests.servers.s3_server import S3Bucket
from tests.shards.formats.test_tar_walk import packed
from tests.tar_archives import write_tar


def archive(path: Path, *names: str, label: str = "3") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed({name: (label if name.endswith(".cls") else name).encode() for name in names}))
    return path


def test_samples_fields_and_places(tmp_path: Path) -> None:
    archive(tmp_path / "a-0.tar", "s/1.cls", "s/1.jpg", "s/1.json", "s/1.mask.png", "s/1.txt", "s/2.jpg")
    archive(tmp_path / "a-1.tar", "s/3.png", "s/3.cls", "s/4.json", label="1")
    (table,) = open_source(f"{tmp_path}/a-{{0..1}}.tar")
    assert list(table.names) == ["s/1.jpg", "s/2.jpg", "s/3.png", "s/4.jpg"]
    assert [table.key(row) for row in range(4)] == ["s/1", "s/2", "s/3", "s/4"]
    assert table.fields == {
        "image": Field(type="image"),
        "label": LABEL,
        "caption": Field(type="string", extension="txt"),
        "json": Field(type="json", extension="json"),
        "mask": Field(type="image"),
    }
    assert (table.labels.tolist(), table.classes) == ([3, -1, 1, -1], ("0", "1", "2", "3"))
    assert table.values["caption"].to_pylist() == ["s/1.txt", None, None, None]
    assert table.stored["image"].sizes.tolist() == [7, 7, 7, ABSENT]
    assert [dict(sample) for sample in fetch(table)] == [
        {"image": b"s/1.jpg", "json": b"s/1.json", "mask": b"s/1.mask.png"},
        {"image": b"s/2.jpg"},
        {"image": b"s/3.png"},
        {"json": b"s/4.json"},
    ]


def test_folders_of_archives_have_splits(tmp_path: Path) -> None:
    archive(tmp_path / "train" / "0.tar", "1.jpg", "1.cls")
    archive(tmp_path / "train" / "1.tar", "2.jpg")
    archive(tmp_path / "val" / "0.tar", "3.jpg", "3.cls", label="1")
    (tmp_path / "val" / "._0.tar").write_bytes(b"of macOS")
    train, val = open_source(tmp_path)
    assert [(part.split, list(part.names), part.classes) for part in (train, val)] == [
        ("train", ["1.jpg", "2.jpg"], ("0", "1", "2", "3")),
        ("val", ["3.jpg"], ("0", "1", "2", "3")),
    ]
    (alone,) = open_source(tmp_path / "val")
    assert (alone.split, alone.root) == (None, str(tmp_path / "val"))
    archive(tmp_path / "more.tar", "4.jpg")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds files of the splits train, val and {tmp_path}/more.tar, which is of none; name the files of "
        "one split, or move it away"
    )


def test_keys_that_occur_in_two_archives_get_the_archives_name(tmp_path: Path) -> None:
    one, two = archive(tmp_path / "x-0.tar", "1.jpg", "2.jpg"), archive(tmp_path / "x-1.tar", "1.jpg")
    (table,) = open_source(f"{one}::{two}")
    assert list(table.names) == ["x-0/1.jpg", "x-0/2.jpg", "x-1/1.jpg"]
    first, second = archive(tmp_path / "p" / "0.tar", "1.jpg"), archive(tmp_path / "q" / "0.tar", "1.jpg")
    (table,) = open_source(f"{first}::{second}")
    assert list(table.names) == ["p/0/1.jpg", "q/0/1.jpg"]


def test_names_of_classes_come_from_a_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", "1.jpg", "1.cls")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    (table,) = open_source(path, SourceOptions(classes_file=f"{tmp_path}/classes.txt"))
    assert table.classes == ("a", "b", "c", "d", "e")


def test_damaged_archives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = archive(tmp_path / "a.tar", "1.jpg", "2.jpg", "3.jpg")
    path.write_bytes(path.read_bytes()[:2562])
    with pytest.raises(DamagedArchiveError, match=f"^{path} is not a whole tar archive of 2562 bytes: the content of"):
        open_source(path)
    (table,) = open_source(path, SourceOptions(damaged="keep"))
    assert list(table.names) == ["1.jpg"]
    (message,) = caplog.messages
    assert message.startswith(f"{path} is not a whole tar archive of 2562 bytes: the content of '3.jpg' is cut: ")
    assert message.endswith("; its 1 samples before that are kept")


def test_sentences(tmp_path: Path) -> None:
    empty = archive(tmp_path / "empty.tar", "README")
    no_images = archive(tmp_path / "texts.tar", "1.txt", "1.cls")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    (tmp_path / "none").mkdir()
    sentences = {
        empty: f"no samples in {tmp_path}: its 1 tar archives hold no members named like 0001.jpg; check the path",
        no_images: f"no images in {tmp_path}: its samples hold label, caption, expected members with an extension such "
        "as jpg, jpeg, jpe",
        tmp_path / "gone.tar": f"no such tar archive: {tmp_path}/gone.tar; check the path",
        f"{tmp_path}/{{a,a}}.tar": f"the pattern {tmp_path}/{{a,a}}.tar names {tmp_path}/a.tar more than once; name "
        "it once",
        tmp_path
        / "a.tar.gz": f"{tmp_path}/a.tar.gz is a compressed archive, in which samples have no place; unpack it to "
        "a .tar first",
    }
    for source, sentence in sentences.items():
        with pytest.raises(SourceError) as caught:
            open_source(source)
        assert str(caught.value) == sentence
    with pytest.raises(SourceError, match=r"^no .tar files in .*/none; check the path$"):
        open_source(tmp_path / "none", SourceOptions(kind="webdataset"))


def test_archives_on_s3(s3_bucket: S3Bucket) -> None:
    storage = fsspec.filesystem("s3")
    for number in range(3):
        data = packed({f"{number}/{row}.jpg": b"x" * 1000 * row for row in range(5)}, tarfile.GNU_FORMAT)
        storage.pipe(f"{s3_bucket.url}/set/train-{number:03}.tar", data)
    for source in (f"{s3_bucket.url}/set/train-{{000..002}}.tar", f"{s3_bucket.url}/set"):
        (table,) = open_source(source)
        assert len(table) == 15
        assert [len(sample["image"]) for sample in fetch(table)] == [0, 1000, 2000, 3000, 4000] * 3  # type: ignore[arg-type]


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=200).filter(
    lambda name: "." not in name
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True))
def test_any_name_has_a_key(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    names = [name for name in names if not name.startswith("__")]
    if not names:
        return
    path = tmp_path_factory.mktemp("any") / "a.tar"
    path.write_bytes(packed({f"{name}.jpg": b"x" for name in names}, tarfile.PAX_FORMAT))
    (table,) = open_source(path)
    assert list(table.names) == [f"{name}.jpg" for name in names]
    keys = [table.key(row) for row in range(len(table))]
    assert all(map(KEY.fullmatch, keys))
    assert len(set(keys)) == len(names)


def test_members_named_as_no_shard_of_ours_names_them_can_be_built_and_adopted(tmp_path: Path) -> None:
    members = [("1.jpg", encoded(0)), ("1..txt", b"a cat"), ("1.é+.bin", b"\1"), ("1..json", b"{}")]
    write_tar(tmp_path / "data" / "a.tar", members)
    build(tmp_path / "data", tmp_path / "built")
    adopt(tmp_path / "data", tmp_path / "adopted")
    for dataset in (tmp_path / "built", tmp_path / "adopted"):
        reader = open_dataset(dataset)
        assert list(reader.manifest.fields) == ["image", "_.bin", "caption", "json"]
        assert reader.values(np.arange(1), "caption") == ["a cat"]
        assert [reader.read(np.arange(1), name)[1] for name in ("_.bin", "json")] == [[b"\1"], [b"{}"]]
        assert verify(dataset, "full").problems == []
