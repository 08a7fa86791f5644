"""Trying again what a build set aside; and duplicates, which a build may leave out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.retrying import retry_failed
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import DestinationError, SourceError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.tools.main import main
from tests.images import encoded, write_image_folder

BROKEN = {"train/ant/w.jpg": 100, "train/bee/x.jpg": 101, "train/bee/y.jpg": 102, "val/cat/z.jpg": 103}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two splits with four bad images, one of which cannot be read, and one of which will be gone."""
    source = tmp_path / "images"
    for split in ("train", "val"):
        write_image_folder(source / split, per_class=4)
    for name, number in BROKEN.items():
        image = encoded(number)
        (source / name).write_bytes(image[: len(image) // 2])
    return source


def keys_of(dataset: Path) -> set[str]:
    reader = open_dataset(dataset)
    return set(reader.describe(np.arange(reader.manifest.num_samples)).keys)


def repair(source: Path, *names: str) -> None:
    for name in names:
        (source / name).write_bytes(encoded(BROKEN[name]))


def test_what_is_good_now_is_appended_and_leaves_the_list(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out, BuildOptions(shard_samples=5))
    repair(source, "train/ant/w.jpg", "val/cat/z.jpg")
    (source / "train/bee/x.jpg").unlink()
    report = retry_failed(source, out)
    assert (report.tried, report.recovered, report.gone) == (4, 2, 1)
    assert [image.source for image in report.bad] == ["train/bee/x.jpg", "train/bee/y.jpg"]
    listed = [json.loads(line) for line in (out / "bad-images.jsonl").read_text().splitlines()]
    assert [line["source"] for line in listed] == ["train/bee/x.jpg", "train/bee/y.jpg"]
    assert {line["cause"] for line in listed} == {"truncated"}
    assert "ant/w" in keys_of(out / "train")
    assert "cat/z" in keys_of(out / "val")
    for split, samples in (("train", 13), ("val", 13)):
        manifest = load_manifest(out / split)
        assert (manifest.num_samples, manifest.generation) == (samples, 1)
        assert verify(out / split, "full").problems == []
    repair(source, "train/bee/x.jpg", "train/bee/y.jpg")
    assert retry_failed(source, out, workers=2).recovered == 2
    assert not (out / "bad-images.jsonl").exists()
    with pytest.raises(DestinationError) as caught:
        retry_failed(source, out)
    assert str(caught.value) == (
        f"nothing to try again: there is no {out}/bad-images.jsonl; expected the destination of a build that set "
        "images aside"
    )


def test_what_was_appended_before_a_stop_is_not_appended_twice(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = (out / "bad-images.jsonl").read_bytes()
    repair(source, *BROKEN)
    retry_failed(source, out)
    (out / "bad-images.jsonl").write_bytes(before)  # as if it had been stopped before the list was written
    report = retry_failed(source, out)
    assert (report.recovered, report.bad) == (4, [])
    assert load_manifest(out / "train").num_samples == 15


def test_the_command_says_what_came_of_it(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["build", str(source), out, "-q"]) == 0
    repair(source, "train/ant/w.jpg")
    capsys.readouterr()
    assert main(["build", str(source), out, "--retry-failed", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["tried      4", "recovered  1", "still bad  3", "gone       0"]
    assert lines[4].startswith("  train/bee/x.jpg: its ")
    assert main(["build", str(source), out, "--retry-failed", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tried": 3, "recovered": 0, "bad": 3, "gone": 0}


def test_duplicates_are_kept_dropped_or_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(image_folder / "ant" / "ant-00.jpg", image_folder / "cat" / "copy.jpg")
    assert build(image_folder, tmp_path / "kept").num_samples == 37
    with pytest.raises(SourceError, match="^1 of 37 images are exact duplicates, such as cat/copy.jpg, which has the"):
        build(image_folder, tmp_path / "failed", BuildOptions(duplicates="fail"))
    assert not (tmp_path / "failed").exists()
    out = tmp_path / "dropped"
    assert main(["build", str(image_folder), str(out), "--duplicates", "drop", "-q"]) == 0
    assert "1 duplicate left out, listed in duplicates.jsonl" in capsys.readouterr().out.splitlines()
    assert json.loads((out / "duplicates.jsonl").read_text()) == {
        "key": "cat/copy", "kept": "ant/ant-00", "split": None, "kept_split": None,
    }  # fmt: skip
    assert load_manifest(out).num_samples == 36
    assert "cat/copy" not in keys_of(out)
    with pytest.raises(ConfigError):
        BuildOptions(duplicates="some")
