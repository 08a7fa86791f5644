"""``feeder append``."""

import json
from pathlib import Path

import pytest

from feeder.shards.manifest import load_manifest
from feeder.shards.writing import BuildOptions, build
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
        f"feeder: {tmp_path}/more has the splits train, val, but a dataset is one split; append "
        f"{tmp_path}/more/train to the dataset that it belongs to\n"
    )


def test_a_key_that_is_there(
    dataset: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["append", dataset, str(image_folder), "-q"]) == 2
    assert capsys.readouterr().err.endswith("rename them, or leave them out with --skip-existing\n")
    assert load_manifest(dataset).generation == 0
