"""``feeder repair`` from the command line: 0 for whole or made so, 1 for something left to do, 2 for no dataset."""

import json
import os
import shutil
from pathlib import Path

import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import load_manifest
from feeder.tools.main import main
from tests.contracts.formats import files_of
from tests.images import write_image_folder


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "out", BuildOptions(shard_samples=20, shuffle=False))
    return tmp_path / "out"


def test_nothing_to_repair(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--write"]):
        assert main(["repair", str(dataset), *options]) == 0
        assert capsys.readouterr().out == f"{dataset}: nothing to repair\n"


def test_a_plan_and_then_the_repair(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "shard-000001.idx.arrow").unlink()
    os.truncate(dataset / "shard-000000.tar", 20_000)
    before = files_of(dataset)
    assert main(["repair", str(dataset)]) == 1
    plan = capsys.readouterr().out.splitlines()
    assert plan[0].startswith("shard shard-000000.tar was cut or altered: ")
    assert plan[1] == "index shard-000001.idx.arrow is lost or damaged: it is made again from its shard, byte for byte"
    assert plan[2].startswith(f"{dataset}: 2 repairs, ")
    assert plan[2].endswith(" samples lost; nothing was written: do it with --write, or elsewhere with --out DIR")
    assert files_of(dataset) == before
    assert main(["repair", str(dataset), "--write"]) == 0
    done = capsys.readouterr().out.splitlines()
    assert done[:2] == plan[:2]
    assert done[2].endswith(" samples lost, listed in lost-samples.jsonl: done")
    assert main(["verify", str(dataset), "--level", "full"]) == 0
    lost = [json.loads(line) for line in (dataset / "lost-samples.jsonl").read_text().splitlines()]
    assert len(lost) == 36 - load_manifest(dataset).num_samples
    assert lost[-1] == {
        "generation": 1,
        "shard": "shard-000000.tar",
        "key": "bee/bee-07",
        "samples": 1,
        "reason": "its bytes are cut or altered",
    }
    assert main(["repair", str(dataset)]) == 0


def test_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "shard-000001.tar").unlink()
    assert main(["repair", str(dataset), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "dataset": str(dataset),
        "written": None,
        "generation": 0,
        "digest": load_manifest(dataset).digest,
        "repairs": ["shard shard-000001.tar is missing: it leaves the dataset"],
        "beyond_repair": [],
        "lost": 16,
    }
    assert main(["repair", str(dataset), "--json", "--write"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["written"], document["generation"]) == (str(dataset), 1)


def test_a_lost_manifest_with_class_names(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "manifest.json").unlink()
    names = tmp_path / "classes.txt"
    names.write_text("Ameise\nBiene\nKatze\n")
    assert main(["repair", str(dataset), "--write", "--classes", str(names)]) == 0
    assert load_manifest(dataset).classes == ("Ameise", "Biene", "Katze")
    assert main(["stream", str(dataset), "--batch-size", "4", "--steps", "2", "-q"]) == 0
    assert main(["repair", str(dataset), "--classes", str(tmp_path / "none")]) == 2
    assert "no such file of classes" in capsys.readouterr().err


def test_every_split_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, dataset = tmp_path / "source", tmp_path / "out"
    for split in ("train", "val"):
        write_image_folder(source / split, per_class=2)
    build(source, dataset, BuildOptions(shuffle=False))
    before = files_of(dataset)
    (dataset / "train" / "manifest.json").unlink()
    (dataset / "val" / "shard-000000.idx.arrow").unlink()
    elsewhere = tmp_path / "elsewhere"
    assert main(["repair", str(dataset), "--out", str(elsewhere)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        f"{dataset}/train: 1 repair, written to {elsewhere}/train: lay its files over the dataset"
        if "train" in lines[-1]
        else f"{dataset}/val: 1 repair, written to {elsewhere}/val: lay its files over the dataset"
    )
    shutil.copytree(elsewhere, dataset, dirs_exist_ok=True)
    assert main(["verify", str(dataset), "--level", "full"]) == 0
    manifest = load_manifest(dataset / "train")
    assert (manifest.split, manifest.classes) == ("train", ("ant", "bee", "cat"))
    assert files_of(dataset).keys() == before.keys()


@pytest.mark.parametrize("place", ["none", "images", "empty"])
def test_what_is_no_dataset_is_one_sentence_and_exit_code_2(
    place: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["repair", str(tmp_path / place), "--write"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        f"feeder: there is no manifest at {tmp_path}/{place}/manifest.json, and no shard to make one from; check the "
        "path"
    )


def test_writing_in_place_and_elsewhere_exclude_each_other(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", str(dataset), "--write", "--out", "x"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_relative_path_is_repaired_in_place(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(image_folder, tmp_path / "data", BuildOptions(shard_samples=12))
    (tmp_path / "data" / "shard-000001.idx.arrow").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["repair", "data", "--write", "-q"]) == 0
    assert capsys.readouterr().out.endswith("data: 1 repair: done\n")
