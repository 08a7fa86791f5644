"""``feeder demo``: the whole way, what it uses again, and what it refuses to touch."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from feeder.tools import resume_proof
from feeder.tools.main import main
from feeder.tools.resume_proof import Recorder
from tests.images import write_image_folder

Demo = Callable[..., str]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume without worker processes, but for the test that is about them."""
    monkeypatch.setattr(resume_proof, "WORKERS", 0)


@pytest.fixture
def run_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Demo:
    """Run ``feeder demo`` in ``tmp_path/demo`` and return what it prints."""

    def run(*options: str, code: int = 0) -> str:
        assert main(["demo", "--dir", str(tmp_path / "demo"), "--quiet", *options]) == code
        captured = capsys.readouterr()
        return captured.err if code == 2 else captured.out

    return run


def digests(text: str) -> list[str]:
    return re.findall(r"digest ([0-9a-f]{32})", text)


def test_the_whole_way(run_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume_proof, "WORKERS", 2)
    text = run_demo("--images", "30")
    folder = tmp_path / "demo"
    assert "\nPASS: the remaining 14 ids and their pixels are exactly the rest of the undisturbed epoch\n" in text
    assert [line.partition("  ")[0] for line in text.splitlines()[:10]] == [
        *("Photographs", "Shards", "", "Stream", "Epoch 0", "", "Epoch 1", "", "Stop", "Resume"),
    ]
    dataset, first, second = digests(text)
    assert len({dataset, first, second}) == 3
    state = json.loads((folder / "state.json").read_text())
    assert (state["dataset"], state["epoch"], state["position"]) == (dataset, 1, 14)
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert (folder / ".gitignore").read_text() == "*\n"


def test_the_folder_may_be_a_relative_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["demo", "--dir", "demo", "--quiet", "--images", "30"]
    assert main(command) == 0
    assert main(command) == 0
    assert "in demo/shards (already there)" in capsys.readouterr().out.replace(str(tmp_path) + "/", "")


@pytest.mark.parametrize("per_class", [4, 90])  # with batches of 3, and of the default size
def test_the_suggested_commands_work(
    per_class: int, run_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_image_folder(tmp_path / "photos", per_class=per_class)
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/feeder", "demo"])
    monkeypatch.setenv("PATH", "")
    text = run_demo("--photos", str(photos))
    commands = [line.split() for line in text.partition("Try next:\n")[2].splitlines()]
    assert [command[:2] for command in commands] == [
        ["/somewhere/bin/feeder", name] for name in ("inspect", "stream", "stream", "show")
    ]
    for command in commands:
        assert main(command[1:]) == 0
        assert capsys.readouterr().out


def test_the_suggested_commands_name_a_program_that_is_there(run_demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/main.py", "demo"])
    monkeypatch.setenv("PATH", "")
    assert f"  {sys.executable} -m feeder.tools.main inspect " in run_demo("--images", "8")


def test_what_is_whole_is_used_again(run_demo: Demo, tmp_path: Path) -> None:
    first = run_demo("--images", "8")
    assert first.count("already there") == 0
    again = run_demo("--images", "8")
    assert again.count("already there") == 2
    assert digests(again) == digests(first)
    assert run_demo("--images", "8", "--fresh").count("already there") == 0
    next((tmp_path / "demo" / "shards").glob("*.tar")).unlink()
    assert run_demo("--images", "8").count("already there") == 1  # the photographs
    (tmp_path / "demo" / "shards.json").write_text("[]")
    assert run_demo("--images", "8").count("already there") == 1
    other = run_demo("--images", "8", "--seed", "1")
    assert other.count("already there") == 0
    assert set(digests(other)).isdisjoint(digests(first))


def test_photographs_of_the_user_are_only_read(run_demo: Demo, tmp_path: Path) -> None:
    photos = write_image_folder(tmp_path / "photos")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.jpg")}
    assert "PASS" in run_demo("--photos", str(photos))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.jpg")} == before
    assert not (tmp_path / "demo" / "photographs").exists()
    assert "already there" in run_demo("--photos", str(photos))
    changed = photos / "ant" / "ant-00.jpg"
    os.utime(changed, ns=(1, 1))
    assert "already there" not in run_demo("--photos", str(photos))


def test_bad_photographs_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_image_folder(tmp_path / "photos")
    (photos / "ant" / "ant-00.jpg").write_bytes(b"")
    assert main(["demo", "--dir", str(tmp_path / "demo"), "--photos", str(photos)]) == 0
    captured = capsys.readouterr()
    assert "PASS" in captured.out
    assert "feeder: warning: 1 bad image set aside, listed in " in captured.err


def test_of_several_splits_the_largest_is_streamed(run_demo: Demo, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "photos" / "train", per_class=6)
    write_image_folder(tmp_path / "photos" / "val", per_class=3)
    text = run_demo("--photos", str(tmp_path / "photos"))
    assert f"18 images in 1 shard, 0.0 MB, in {tmp_path}/demo/shards/train" in re.sub(r"[\d.]+ kB", "0.0 MB", text)


def test_a_proof_that_fails_is_told(run_demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "ids", property(lambda recorder: [*recorder._ids, len(recorder._ids)]))
    assert "\nFAIL: " in run_demo("--images", "8", code=1)


@pytest.mark.parametrize("images", [8, 9, 10, 11, 12, 13, 63, 64, 65, 127, 129, 190, 255, 256, 257, 320, 449, 2000])
def test_the_resumed_run_ends_where_the_undisturbed_one_does(images: int) -> None:
    batch, steps, stop = resume_proof.plan(images)
    assert 0 < stop < steps
    assert batch * steps <= images < batch * (steps + 1)
    left = images - stop * batch
    assert left // (2 * batch) * (2 * batch) == (steps - stop) * batch


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--images", "7"], "--images is 7; the demonstration takes from 8 to 1000000"),
        (["--images", "1000001"], "--images is 1000001; the demonstration takes from 8 to 1000000"),
        (
            ["--images", "9", "--photos", "."],
            "--images says how many photographs to make, and --photos to make none; give one of them",
        ),
    ],
)
def test_refusals(options: list[str], sentence: str, run_demo: Demo) -> None:
    assert run_demo(*options, code=2) == f"feeder: {sentence}\n"


def test_few_photographs_are_refused(run_demo: Demo, tmp_path: Path) -> None:
    photos = write_image_folder(tmp_path / "photos", per_class=2)
    assert run_demo("--photos", str(photos), code=2) == (
        f"feeder: {tmp_path}/demo/shards holds 6 images; the demonstration needs at least 8\n"
    )


def test_a_folder_of_somebody_else_is_left_alone(run_demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write_image_folder(folder / "photographs")
    for fresh in ([], ["--fresh"]):
        assert run_demo("--images", "8", *fresh, code=2) == (
            f"feeder: {folder} is not empty, and was not made by 'feeder demo'; choose another --dir\n"
        )
    assert len(list(folder.rglob("*"))) == 40
    assert len(list(folder.rglob("*.jpg"))) == 36


def test_photographs_inside_its_own_folder_are_refused(run_demo: Demo, tmp_path: Path) -> None:
    run_demo("--images", "8")
    photos = write_image_folder(tmp_path / "demo" / "mine")
    assert run_demo("--photos", str(photos), "--fresh", code=2) == (
        f"feeder: --photos {photos} lies in {tmp_path}/demo, whose content the demonstration replaces; move one\n"
    )
    assert photos.exists()


def test_a_missing_source_leaves_the_shards_alone(run_demo: Demo, tmp_path: Path) -> None:
    photos = write_image_folder(tmp_path / "photos")
    run_demo("--photos", str(photos))
    shutil.rmtree(photos)
    assert str(photos) in run_demo("--photos", str(photos), code=2)
    assert (tmp_path / "demo" / "shards" / "manifest.json").exists()


def test_real_photographs(photos: Path, run_demo: Demo) -> None:
    assert "PASS" in run_demo("--photos", str(photos))
