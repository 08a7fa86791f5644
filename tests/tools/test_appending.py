"""``feeder append``."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import load_manifest
from feeder.tools.main import main
from tests.images import write_image_folder


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> str:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=12))
    return str(tmp_path / "dataset")


def test_it_says_what_was_added(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = write_image_folder(tmp_path / "more", classes=("dog", "cat"), first=60)
    (more / "dog" / "bad.jpg").write_bytes(b"bad")
    assert main(["append", dataset, str(more), "--skip-existing", "--workers", "1", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    digest = load_manifest(dataset).digest
    assert lines[:7] == [
        f"dataset        {dataset}",
        "generation     1",
        "added          12 samples in 2 shards",
        "new classes    dog",
        "already there  12 samples",
        "samples        48",
        f"digest         {digest}",
    ]
    assert lines[7].startswith("appended in ")
    assert lines[8:] == [
        "1 set aside, listed in bad-images.g000001.jsonl: 1 not an image",
        "",
        f"next: feeder inspect {dataset}",
    ]
    assert main(["verify", dataset, "--level", "full", "-q"]) == 0


def test_json(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = write_image_folder(tmp_path / "more", classes=("dog",))
    assert main(["append", dataset, str(more), "--workers", "1", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("seconds") >= 0
    assert document == {
        "generation": 1,
        "digest": load_manifest(dataset).digest,
        "added": 12,
        "shards": 1,
        "new_classes": ["dog"],
        "skipped": 0,
        "samples": 48,
        "bad": {},
        "bad_images": None,
    }


def test_a_source_with_splits_is_refused(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_folder(tmp_path / "more" / "train")
    write_image_folder(tmp_path / "more" / "val")
    assert main(["append", dataset, str(tmp_path / "more")]) == 2
    assert capsys.readouterr().err == (
        f"feeder: {tmp_path}/more has the splits train, val, but a dataset is one split; name one of them "
        "with --split\n"
    )
    assert main(["append", dataset, str(tmp_path / "more"), "--split", "test"]) == 2
    assert capsys.readouterr().err == (
        f"feeder: {tmp_path}/more has no split test: it has train, val; name one of them with --split\n"
    )
    assert main(["append", dataset, str(tmp_path / "more" / "train"), "--split", "val"]) == 2
    assert capsys.readouterr().err == (
        f"feeder: {tmp_path}/more/train has no splits, so none is val; append it without --split\n"
    )


def test_one_split_of_a_source(dataset: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "more" / "train", classes=("dog",), per_class=3)
    write_image_folder(tmp_path / "more" / "val", classes=("dog",), per_class=4)
    assert main(["append", dataset, str(tmp_path / "more"), "--split", "val", "-q"]) == 0
    assert load_manifest(dataset).num_samples == 40


def test_what_a_build_takes(dataset: str, image_folder: Path, tmp_path: Path) -> None:
    """Each kind of source: a list, an archive, Parquet with images, a dataset."""
    more = write_image_folder(tmp_path / "more", classes=("dog",), per_class=4, first=90)
    (tmp_path / "list.csv").write_text("path,label,key\nmore/dog/dog-00.jpg,ant,csv/0\nmore/dog/dog-01.jpg,1,csv/1\n")
    build(more, tmp_path / "other")
    other = load_manifest(tmp_path / "other")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    image = (more / "dog" / "dog-00.jpg").read_bytes()
    rows = [{"image": {"bytes": image, "path": "q/x.jpg"}, "label": 1}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    append = ["append", dataset, "--workers", "1", "-q"]
    assert main([*append, str(tmp_path / "list.csv")]) == 0
    assert main([*append, str(tmp_path / "images.parquet"), "--classes", str(tmp_path / "classes.txt")]) == 0
    assert main([*append, str(tmp_path / "other")]) == 0
    assert load_manifest(dataset).num_samples == 36 + 2 + 1 + other.num_samples
    assert load_manifest(dataset).classes == ("ant", "bee", "cat", "1", "dog")
    assert main(["verify", dataset, "--level", "full", "-q"]) == 0
    assert main([*append, str(tmp_path / "other" / "shard-000000.tar")]) == 2  # its keys are there now


def test_a_key_that_is_there(
    dataset: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["append", dataset, str(image_folder), "-q"]) == 2
    assert capsys.readouterr().err.endswith("rename them, or leave them out with --skip-existing\n")
    assert load_manifest(dataset).generation == 0
