"""What a source is, and how it is opened."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.writing import build
from feeder.shards.errors import SourceError
from feeder.shards.sources import SourceOptions, open_source
from feeder.shards.sources.opening import source_kind
from feeder.shards.sources.options import read_classes
from tests.images import write_image_folder
from tests.servers.s3_server import S3Bucket
from tests.shards.formats.test_tar_walk import packed
from tests.shards.sources.test_parquet import write as write_parquet


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    def written(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed({"1.jpg": b"x"}) if name.endswith(".tar") else b"x")
        return tmp_path

    return written


LAYOUTS = {
    "folder": (
        ["a/1.jpg", "b/2.PNG"],
        ["1.jpg", "notes.txt"],
        ["train/a/1.jpg", "val/a/2.jpg", "extra.tar"],
        ["n01/1.jpg", "val.tar"],
        ["notes.txt"],
    ),
    "webdataset": (["0.tar", "1.tar"], ["train/0.tar", "val/0.tar"], ["data/0.tar", "README.md"]),
    "parquet": (["data/train-0.parquet", "README.md"], ["0.parquet"]),
    "dataset": (["manifest.json", "shard-000000.tar"], ["train/manifest.json", "train/shard-000000.tar"]),
}


@pytest.mark.parametrize(("kind", "names"), [(kind, names) for kind, layouts in LAYOUTS.items() for names in layouts])
def test_the_kind_of_a_folder(kind: str, names: list[str], place: Callable[..., Path]) -> None:
    root = place(*names)
    assert source_kind(str(root)) == kind
    memory = fsspec.filesystem("memory")
    if memory.exists("/kinds"):
        memory.rm("/kinds", recursive=True)
    memory.put(str(root), "/kinds", recursive=True)
    assert source_kind("memory://kinds") == kind


def test_the_kind_of_a_name(tmp_path: Path, place: Callable[..., Path]) -> None:
    place("l.csv", "l.jsonl", "set.tar/1.jpg", "{x}/1.jpg")
    write_parquet(tmp_path / "images.parquet", 1)
    kinds = {
        "l.csv": "list",
        "l.jsonl": "list",
        "images.parquet": "parquet",
        "{images,more}.parquet": "parquet",
        "a.tar": "webdataset",
        "a-{0..3}.tar": "webdataset",
        "a.tar::b.tar": "webdataset",
        "{x}": "folder",
        "set/manifest.json": "dataset",
        "set/generations/000003.json": "dataset",
    }
    assert {name: source_kind(f"{tmp_path}/{name}") for name in kinds} == kinds


EXPECTED = (
    "expected a folder of images or of a dataset, .tar archives, Parquet, or a list (.csv, .tsv, .jsonl, .ndjson, "
    ".parquet)"
)


def test_what_is_no_source(tmp_path: Path, place: Callable[..., Path]) -> None:
    place("mds/shard.00000.mds", "mds/index.json", "mds/train/1.txt", "x.bin")
    sentences = {
        f"{tmp_path}/mds": f"{tmp_path}/mds holds MDS shards of Streaming; adopt them in place with 'feeder index "
        f"{tmp_path}/mds DEST', then convert DEST",
        f"{tmp_path}/none.csv": f"no such source: {tmp_path}/none.csv; {EXPECTED}",
        f"{tmp_path}/x.bin": f"source {tmp_path}/x.bin is a file; {EXPECTED}",
        f"{tmp_path}/{{a,b}}.zip": f"the pattern {tmp_path}/{{a,b}}.zip stands for files like {tmp_path}/a.zip; "
        "expected .tar archives, or .parquet files with images",
        f"{tmp_path}/a{{.tar": f"the braces of the pattern '{tmp_path}/a{{.tar' do not match; expected something like "
        "'train-{000000..000146}.tar', or a backslash before a brace that is part of a name",
    }
    for source, sentence in sentences.items():
        with pytest.raises(SourceError) as caught:
            open_source(source)
        assert str(caught.value) == sentence


def test_relative_paths_and_file_urls(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_folder.parent)
    roots = [open_source(source)[0].root for source in ("images", "images/", f"file://{image_folder}", image_folder)]
    assert roots == [str(image_folder)] * 4


def test_folders_behind_a_url(image_folder: Path, s3_bucket: S3Bucket) -> None:
    write_image_folder(image_folder / "ant" / "deep", classes=("x-y", "x"), per_class=1)
    (image_folder / "ant" / "._ant-00.jpg").write_bytes(b"of macOS")
    (near,) = open_source(image_folder)
    fsspec.filesystem("s3").put(str(image_folder), f"{s3_bucket.url}/images", recursive=True)
    (far,) = open_source(f"{s3_bucket.url}/images")
    assert list(far.names) == list(near.names)
    assert far.stored["image"].sizes.tolist() == near.stored["image"].sizes.tolist()
    assert (far.classes, far.labels.tolist()) == (near.classes, near.labels.tolist())
    with pytest.raises(SourceError, match=f"^no images in {s3_bucket.url}/nothing: expected files named"):
        open_source(f"{s3_bucket.url}/nothing")


def test_a_file_of_classes_numbers_class_folders(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images" / "train", classes=("cat", "ant"), per_class=1)
    write_image_folder(tmp_path / "images" / "val", classes=("ant",), per_class=1)
    (tmp_path / "classes.txt").write_text("\ufeffcat\nbee\r\n ant \n\n")
    train, val = open_source(tmp_path / "images", SourceOptions(classes_file=str(tmp_path / "classes.txt")))
    assert train.classes == val.classes == ("cat", "bee", "ant")
    assert (train.labels.tolist(), val.labels.tolist()) == ([2, 0], [2])
    (tmp_path / "classes.txt").write_text("cat\nbee\n")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "images", SourceOptions(classes_file=str(tmp_path / "classes.txt")))
    assert str(caught.value) == (
        f"{tmp_path}/images has samples of the class 'ant', which the file of classes does not name (it has 2 "
        "classes, such as 'cat'); add it at the file's end, or take its samples away"
    )


def test_files_of_classes_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    contents = {
        b"cat\ndog\ncat\n": f"the file of classes {path} names 'cat' in line 1 and in line 3; a class has one label: "
        "remove one of them",
        b"\n\n": f"the file of classes {path} is empty; expected one class name a line",
        b"\xff\xfe": f"the file of classes {path} is not text in UTF-8; expected one class name a line",
    }
    for content, sentence in contents.items():
        path.write_bytes(content)
        with pytest.raises(SourceError) as caught:
            read_classes(path)
        assert str(caught.value) == sentence
    with pytest.raises(SourceError, match="^no such file of classes: /none/c.txt; expected one class name a line$"):
        read_classes("/none/c.txt")


def test_options_that_cannot_be() -> None:
    wrong = {
        "kind is 'zip'; it must be one of 'folder', 'list', 'webdataset', 'parquet', 'dataset'": {"kind": "zip"},
        "damaged is 'skip'; it must be one of 'fail', 'keep'": {"damaged": "skip"},
        "image_columns names a field 'a b'; expected letters, digits, '_', '-' and '.'": {
            "image_columns": {"a b": "c"}
        },
        "a name in split_by_hash is 'dev'; it must be one of 'train', 'val', 'validation', 'valid', 'test'": {
            "split_by_hash": {"dev": 0.1}
        },
        "split_by_hash names 'train', which is what the others leave; name those alone": {
            "split_by_hash": {"train": 0.1}
        },
        "split_by_hash gives 'val' 1; it must be a fraction between 0 and 1": {"split_by_hash": {"val": 1}},
        "the fractions in split_by_hash come to 1 or more; they must leave something": {
            "split_by_hash": {"val": 0.5, "test": 0.5}
        },
    }
    for sentence, options in wrong.items():
        with pytest.raises(ConfigError) as caught:
            SourceOptions(**options)  # type: ignore[arg-type]
        assert str(caught.value) == sentence


def test_columns_of_a_source_that_has_none(image_folder: Path) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(image_folder, SourceOptions(label_column="species", base="/"))
    assert str(caught.value) == (
        f"{image_folder} is a folder source, which has no columns, so --label-column and --base says nothing of it; "
        "leave it out, or name a list or Parquet files"
    )


def test_names_of_members_that_no_tar_takes(tmp_path: Path) -> None:
    long = "x" * 80
    for name in (f"{long}.jpg", "m.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "l.csv").write_text(f"path,segmentation_mask_path\n{long}.jpg,m.png\n")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "l.csv")
    assert str(caught.value) == (
        f"the field 'segmentation_mask' of {long}.jpg in {tmp_path} would be a member {long}.segmentation_mask.jpg of "
        "102 bytes, but names in a tar shard have 100; give the field a shorter name, or the samples shorter keys"
    )


def test_names_that_differ_in_case_alone_are_two_samples(tmp_path: Path) -> None:
    for name in ("A.jpg", "a.jpg", "a.JPG"):
        (tmp_path / name).write_bytes(b"x")
    (table,) = open_source(tmp_path)
    assert [table.key(row) for row in range(3)] == ["A", "a", "a"]
    with pytest.raises(SourceError, match="^a.JPG and a.jpg in .* would both have the key 'a'"):
        build(tmp_path, tmp_path.with_name("set"))
