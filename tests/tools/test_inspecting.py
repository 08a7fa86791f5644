"""``feeder inspect`` from the command line."""

import json
from pathlib import Path

import pytest

from feeder.shards.writing import BuildOptions, build
from feeder.tools.main import main
from tests.images import encoded, write_image_folder


def test_a_dataset_is_described(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "bee" / "one more.png").write_bytes(encoded(1, size=(10, 200), format="PNG"))
    digest = build(image_folder, tmp_path / "out", BuildOptions(seed=5)).datasets[0].manifest.digest
    assert main(["inspect", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        f"dataset  {tmp_path}/out",
        "format   tar",
        "samples  37",
        "shards   1",
        "fields   image (image), label (int64)",
        "order    shuffled with seed 5",
        f"digest   {digest}",
        "formats  36 jpeg, 1 png",
        "classes  3",
        "most frequent classes:",
        "    1  bee         13  ########################################",
        "    0  ant         12  #####################################",
    ):
        assert line in lines
    (width,) = (line for line in lines if line.startswith("width"))
    assert width.endswith("all from 10 to 103")


def test_the_folder_of_splits_is_described_split_by_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_folder(tmp_path / "source" / "train")
    write_image_folder(tmp_path / "source" / "val", classes=("bee",), per_class=3)
    build(tmp_path / "source", tmp_path / "out", BuildOptions(shard_samples=4, shuffle=False))
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    train, val = map(json.loads, capsys.readouterr().out.splitlines())
    assert (train["split"], train["samples"], train["shards"], train["class_counts"]) == ("train", 36, 9, [12, 12, 12])
    assert (val["split"], val["classes"], val["class_counts"]) == ("val", ["ant", "bee", "cat"], [0, 3, 0])
    assert main(["inspect", str(tmp_path / "out" / "train"), "--json", "--max-shards", "2"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert part["looked_at"] == {"shards": 2, "samples": 8}
    assert main(["inspect", str(tmp_path / "out" / "train"), "--max-shards", "2"]) == 0
    assert "from 2 of 9 shards, 8 samples:" in capsys.readouterr().out


def test_a_plain_folder_is_described(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "ant" / "broken.jpg").write_bytes(b"broken")
    assert main(["inspect", str(image_folder)]) == 0
    out = capsys.readouterr().out
    assert "format   plain folder of images\n" in out
    assert "formats  36 jpeg, 1 unreadable\n" in out


def test_what_is_no_dataset_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"feeder: no manifest at {tmp_path}/none/manifest.json: expected")
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"feeder: no images in {tmp_path}")


def test_looking_into_no_shard_is_refused(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(image_folder), "--max-shards", "0"]) == 2
    assert capsys.readouterr().err == "feeder: max_shards is 0, expected at least 1\n"
