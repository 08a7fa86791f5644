"""``feeder verify`` from the command line: 0 for no damage, 1 for damage, 2 for what cannot be verified."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import encode_manifest, load_manifest, save_manifest, sealed
from feeder.shards.dataset.shard_table import shard_table
from feeder.tools.main import main
from tests.images import encoded


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "out", BuildOptions(shard_samples=20))
    return tmp_path / "out"


@pytest.mark.parametrize("level", ["quick", "full", "deep"])
def test_a_whole_dataset_passes(dataset: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(dataset), "--level", level]) == 0
    assert capsys.readouterr().out == f"{dataset}: no damage (2 shards, 36 samples, level {level})\n"


def test_damage_is_listed_and_gives_exit_code_1(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(dataset / "shard-000000.tar", 1024)
    (dataset / "shard-000001.idx.arrow").unlink()
    assert main(["verify", str(dataset)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"shard {dataset}/shard-000000.tar has 1024 bytes, but the manifest says ")
    assert lines[1].startswith(f"index {dataset}/shard-000001.idx.arrow is missing")
    assert lines[2] == f"{dataset}: 2 problems (2 shards, 36 samples, level quick)"
    assert main(["verify", str(dataset), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2


def test_deep_finds_an_image_that_is_whole_but_cannot_be_decoded(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = bytearray(encoded(1, format="PNG"))
    middle = image.index(b"IDAT") + 40
    image[middle : middle + 8] = bytes(8)
    (image_folder / "ant" / "odd.png").write_bytes(bytes(image))
    out = tmp_path / "odd"
    build(image_folder, out)
    assert main(["verify", str(out), "--level", "full"]) == 0
    capsys.readouterr()
    assert main(["verify", str(out), "--level", "deep"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"image 'ant/odd' of {out}/shard-000000.tar cannot be decoded as PNG: ")
    assert lines[1].endswith("1 problem (1 shard, 37 samples, level deep)")


def test_splits_are_verified_each(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "val"):
        (source / split).symlink_to(image_folder)
    build(source, tmp_path / "out")
    assert main(["verify", str(tmp_path / "out"), "--level", "full"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_notes_are_no_damage(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "shard-000007.tar").write_bytes(b"left over")
    assert main(["verify", str(dataset)]) == 0
    sentence = f"{dataset}/shard-000007.tar is of no generation; remove it if no command is writing here"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"note: {sentence}", f"{dataset}: no damage (2 shards, 36 samples, level quick)"]
    assert main(["verify", str(dataset), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "dataset": str(dataset),
        "generation": 0,
        "digest": load_manifest(dataset).digest,
        "level": "quick",
        "problems": [],
        "notes": [sentence],
    }


def test_an_earlier_generation_is_verified(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_manifest(dataset)
    (dataset / "generations").mkdir()
    older = dataset / "generations" / "000000.json"
    older.write_bytes(encode_manifest(first))
    shards = shard_table([first.shards.record(0)])
    save_manifest(
        sealed(dataclasses.replace(first, shards=shards, columns={}, generation=1, parent=first.digest)), dataset
    )
    (dataset / "shard-000001.tar").unlink()
    assert main(["verify", str(dataset), "--generation", "1"]) == 0
    assert main(["verify", str(dataset), "--generation", "0"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{older}: 1 problem (2 shards, 36 samples, level quick)"
    assert main(["verify", str(older)]) == 1
    capsys.readouterr()
    for number, sentence in (("-1", "--generation is -1, expected a number from 0"), ("2", "expected 0 to 1")):
        assert main(["verify", str(dataset), "--generation", number]) == 2
        assert capsys.readouterr().err.endswith(f"{sentence}\n")


def test_what_cannot_be_verified_is_one_sentence_and_exit_code_2(
    dataset: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(image_folder)]) == 2
    assert capsys.readouterr().err.startswith(f"feeder: no manifest at {image_folder}/manifest.json")
    assert main(["verify", str(dataset), "--threads", "0"]) == 2
    assert capsys.readouterr().err == "feeder: threads is 0, expected at least 1\n"
    manifest = dataset / "manifest.json"
    whole = manifest.read_text()
    for text, words in ((whole[:100], "is not whole JSON"), (whole.replace('"version": 1', '"version": 7'), "upgrade")):
        manifest.write_text(text)
        assert main(["verify", str(dataset), "-q"]) == 2
        printed = capsys.readouterr()
        assert words in printed.err
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
