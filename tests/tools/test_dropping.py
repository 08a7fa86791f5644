"""``feeder drop``."""

import io
import json
from pathlib import Path

import pytest

from feeder.shards.building.writing import build
from feeder.shards.dataset.manifest import load_manifest
from feeder.tools.main import main

_PURGE = "their bytes are still in the shards, for older generations; to remove them for good: feeder drop {} --purge"


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> str:
    build(image_folder, tmp_path / "dataset")
    (tmp_path / "keys.txt").write_text("\ufeffant/ant-00\r\n\r\n  bee/bee-01  \r\n", encoding="utf-8")
    return str(tmp_path / "dataset")


def test_it_says_what_went_and_what_is_left(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drop", dataset, str(tmp_path / "keys.txt")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"dataset       {dataset}",
        "generation    1",
        "dropped       2 samples of 1 shards",
        "samples left  34",
        f"digest        {load_manifest(dataset).digest}",
        "",
        _PURGE.format(dataset),
    ]
    assert main(["drop", dataset, "--purge", "--workers", "1", "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"dataset           {dataset}",
        "generation        2",
        "dropped           0 samples of 0 shards",
        "samples left      34",
        "shards rewritten  1",
        "generations gone  0, 1",
        f"digest            {load_manifest(dataset).digest}",
    ]
    assert main(["verify", dataset, "--level", "full", "-q"]) == 0


def test_json_and_keys_from_standard_input(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ant/ant-00\nnobody\n"))
    assert main(["drop", dataset, "-", "--ignore-missing", "--purge", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "generation": 1,
        "digest": load_manifest(dataset).digest,
        "samples": 35,
        "dropped": 1,
        "missing": ["nobody"],
        "shards": 1,
        "rewritten": 1,
        "gone": [0],
    }


def test_mistakes_are_one_sentence(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys.txt").write_text("nobody\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for arguments, sentence in (
        ([], "no keys to drop; expected one a line"),
        ([str(tmp_path / "keys.txt")], f"1 of 1 keys are of no sample of {dataset}: 'nobody'; correct them, or leave"),
        ([str(tmp_path / "no.txt")], f"cannot read the keys in {tmp_path}/no.txt: No such file or directory; expected"),
        ([str(tmp_path / "binary")], f"cannot read the keys in {tmp_path}/binary: 'utf-8' codec can't decode"),
    ):
        assert main(["drop", dataset, *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"feeder: {sentence}")
    assert main(["drop", dataset, str(tmp_path / "keys.txt"), "--ignore-missing"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 key of no sample: nobody"
