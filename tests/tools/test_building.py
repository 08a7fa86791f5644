"""``feeder build`` from the command line."""

import argparse
import json
import os
from pathlib import Path

import pytest

from feeder.shards.manifest import load_manifest
from feeder.tools.building import size_bytes
from feeder.tools.main import main


def test_it_says_what_it_did_and_what_comes_next(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (image_folder / "bee" / "broken.jpg").write_bytes(b"<html>")
    assert main(["build", str(image_folder), str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    manifest = load_manifest(out)
    assert f"dataset  {out}" in lines
    assert "samples  36" in lines
    assert "classes  3" in lines
    assert "order    shuffled with seed 0" in lines
    assert f"digest   {manifest.digest}" in lines
    assert any(line.startswith("built in ") and "images/s" in line for line in lines)
    assert f"1 bad image was set aside, listed in {out}/bad-images.jsonl:" in lines
    assert "  bee/broken.jpg: its first bytes (3c 68 74 6d 6c 3e) are of no known image format" in lines
    assert lines[-1] == f"next: feeder stream {out}"
    assert "37 images" in printed.err


def test_options_reach_the_build(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--seed", "7", "--shard-samples", "10", "--shard-size", "20kB", "--max-pixels", "5000", "--json", "-q"]
    assert main(["build", str(image_folder), str(out), *options, "--max-bad-fraction", "0.9"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    manifest = load_manifest(out)
    assert printed.err == ""
    assert manifest.build == {"shard_bytes": 20_000, "shard_samples": 10, "max_pixels": 5000}
    assert manifest.shuffle_seed == 7
    assert document["datasets"][0]["digest"] == manifest.digest
    assert document["samples"] == manifest.num_samples < 36
    assert document["bad"] == {"too large": 36 - manifest.num_samples}
    assert main(["build", str(image_folder), str(tmp_path / "plain"), "--no-shuffle"]) == 0
    assert not load_manifest(tmp_path / "plain").shuffled


def test_shards_of_another_format(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["build", str(image_folder), out, "--format", "arrow", "-q"]) == 0
    assert load_manifest(out).shards.names == ["shard-000000.arrow"]
    assert main(["verify", out, "--level", "deep", "-q"]) == 0
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"format   arrow", "fields   image (image), label (int64)", "formats  36 jpeg"} <= set(lines)
    assert main(["build", str(image_folder), str(tmp_path / "zip"), "--format", "zip"]) == 2
    assert "argument --format: invalid choice: 'zip'" in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_exit_code_2(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, full, truncated = tmp_path / "empty", tmp_path / "full", tmp_path / "truncated"
    for folder in (empty, full, truncated):
        folder.mkdir()
    (full / "mine.txt").touch()
    image = (image_folder / "ant" / "ant-00.jpg").read_bytes()
    (truncated / "a.jpg").write_bytes(image[:-100])
    out = str(tmp_path / "out")
    refused = {
        (str(empty), out): "no images in",
        (str(tmp_path / "none"), out): "no such source",
        (str(image_folder), str(image_folder)): "source and destination are the same folder",
        (str(image_folder), str(full)): "is not empty: it holds mine.txt",
        (str(truncated), out): "no good image in",
        (str(truncated), out, "--on-error", "fail"): f"its {len(image) - 100} bytes lack the end of the jpeg image",
        (str(image_folder), out, "--workers", "0"): "workers is 0, expected at least 1",
        (str(image_folder), out, "--max-bad-fraction", "2"): "max_bad_fraction is 2.0",
        (str(image_folder), out, "--shard-size", "big"): "'big' is no size; write it like 64MiB, 100MB or 1000000",
        (str(image_folder), out, "--shard-size", "9" * 400): "9' is no size; write it like 64MiB, 100MB or 1000000",
    }
    for arguments, words in refused.items():
        before = sorted(tmp_path.rglob("*"))
        assert main(["build", *arguments, "-q"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        assert printed.err.startswith("feeder: ")
        assert words in printed.err
        assert sorted(tmp_path.rglob("*")) == before


def test_names_of_files_cannot_write_on_the_terminal(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "ant" / "\x1b[2Jx.jpg").write_bytes(b"broken")
    (image_folder / "ant" / os.fsdecode(b"\xff.jpg")).write_bytes(b"broken")
    assert main(["build", str(image_folder), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[2Jx.jpg" in printed
    assert "\\xff.jpg" in printed


def test_sizes_are_read_in_the_usual_spellings() -> None:
    sizes = {"64MiB": 64 << 20, "100MB": 10**8, "1.5 GB": 1_500_000_000, "1000": 1000, "2g": 2 * 10**9, "3Ki": 3072}
    assert {text: size_bytes(text) for text in sizes} == sizes
    for text in ("", "-1", "1TBB", "MB", "1e6"):
        with pytest.raises(argparse.ArgumentTypeError):
            size_bytes(text)
