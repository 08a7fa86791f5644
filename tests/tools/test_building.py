"""``feeder build`` from the command line."""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeder.shards import writing
from feeder.shards.manifest import load_manifest
from feeder.shards.reading import open_dataset
from feeder.tools.building import size_bytes
from feeder.tools.console import format_bytes
from feeder.tools.main import main
from tests.images import encoded


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
    assert manifest.build == {
        "shard_bytes": 20_000,
        "shard_samples": 10,
        "shards": None,
        "balanced": False,
        "max_pixels": 5000,
        "images": None,
    }
    assert manifest.shuffle_seed == 7
    assert document["datasets"][0]["digest"] == manifest.digest
    assert document["samples"] == manifest.num_samples < 36
    assert document["bad"] == {"too large": 36 - manifest.num_samples}
    assert main(["build", str(image_folder), str(tmp_path / "plain"), "--no-shuffle"]) == 0
    assert not load_manifest(tmp_path / "plain").shuffled


def test_image_options_reach_the_build(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    scaling = ["--resize", "fit=30x40", "--quality", "70", "--orientation", "apply", "--color", "rgb"]
    filters = ["--min-side", "41", "--max-side", "100", "--min-pixels", "2000", "--max-aspect", "2.5"]
    assert main(["build", str(image_folder), out, *scaling, *filters, "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"].keys() == {"too small", "too long"}
    assert load_manifest(out).build["images"] == {
        "resize": "fit=30x40",
        "quality": 70,
        "orientation": "apply",
        "colour": "rgb",
        "min_side": 41,
        "max_side": 100,
        "min_pixels": 2000,
        "max_aspect": 2.5,
    }
    rows = open_dataset(out).describe(np.arange(load_manifest(out).num_samples))
    assert rows.widths.max() == 30


def test_images_that_were_filtered_are_not_called_bad(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["build", str(image_folder), str(out), "--min-side", "50", "-q"]) == 0
    count = 36 - load_manifest(out).num_samples
    lines = capsys.readouterr().out.splitlines()
    assert f"{count} images were set aside, listed in {out}/bad-images.jsonl:" in lines
    assert f"too small      {count}  the shorter side or the pixels are fewer than asked for" in lines


def test_image_options_that_cannot_be_are_one_sentence(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(image_folder), str(tmp_path / "out"), "--resize", "256"]) == 2
    assert (
        "argument --resize: resize is '256', expected shorter=256, longer=512 or fit=640x480 (width x height)"
        in capsys.readouterr().err
    )
    assert main(["build", str(image_folder), str(tmp_path / "out"), "--quality", "80"]) == 2
    assert "quality is 80, but nothing encodes images anew" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
        (str(image_folder), out, "--split-by-hash", "val=0.1,val=0.2"): "'val=0.1,val=0.2' names a split twice",
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


def test_a_list_with_classes_and_held_out_samples(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(image_folder.rglob("*.jpg"))]
    (tmp_path / "list.csv").write_text("\n".join(["file,kind", *rows]))
    (tmp_path / "classes.txt").write_text("zebra\ncat\nbee\nant\n")
    words = ["--classes", str(tmp_path / "classes.txt"), "--label-column", "kind", "--image-column", "file", "-q"]
    out = tmp_path / "out"
    assert main(["build", str(tmp_path / "list.csv"), str(out), *words, "--split-by-hash", "val=0.2,test=0.1"]) == 0
    manifests = {split: load_manifest(out / split) for split in ("train", "val", "test")}
    assert sum(manifest.num_samples for manifest in manifests.values()) == 36
    assert {manifest.classes for manifest in manifests.values()} == {("zebra", "cat", "bee", "ant")}
    capsys.readouterr()
    assert main(["build", str(tmp_path / "list.csv"), str(tmp_path / "x"), "--split-by-hash", "val", "-q"]) == 2
    assert "'val' gives no fractions; write them like val=0.02,test=0.1" in capsys.readouterr().err
    assert main(["build", str(tmp_path / "list.csv"), str(tmp_path / "x"), "--image-field", "mask", "-q"]) == 2
    assert "'mask' names no column; write it like mask=mask_path" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_built(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    size_bytes = sum(path.stat().st_size for path in image_folder.rglob("*.jpg"))
    assert main(["build", str(image_folder), str(out), "--shard-samples", "10", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"dataset  {out}", "samples  36", "classes  3"]
    assert lines[3] == f"shards   4, from {format_bytes(size_bytes)}"
    assert lines[-1] == "nothing was written; without --dry-run, this is what would be built"
    assert main(["build", str(image_folder), str(out), "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "dry_run": True,
        "destination": str(out),
        "datasets": [
            {
                "split": None,
                "samples": 36,
                "shards": 1,
                "classes": 3,
                "size_bytes": size_bytes,
                "estimated": False,
            }
        ],
    }
    assert main(["build", str(image_folder), str(image_folder), "--dry-run"]) == 2
    assert "source and destination are the same folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_build_that_is_gone_on_with_says_so(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    words = ["build", str(image_folder), out, "--shard-samples", "10", "--workers", "1", "-q"]
    real = writing.write_shards

    def stop_after_two(*arguments: Any) -> Any:
        for number, pair in enumerate(real(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_shards", stop_after_two)
        assert main(words) == 130
    kept = f"3 finished shards are kept in {out}: run the same command again to go on"
    assert capsys.readouterr().err == f"feeder: interrupted; {kept}\n"
    assert main([*words, "--seed", "1"]) == 2
    assert "with other options: seed was 0, now it is 1; run it with the same options" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_shards"] == 3
    assert main([*words, "--restart"]) == 2  # a finished dataset is not an interrupted build
    assert "is not empty: it holds a finished dataset" in capsys.readouterr().err


def test_progress_counts_bytes(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(image_folder), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert re.search(r"^building: 36 images in .* images/s, .*B/s$", capsys.readouterr().err, re.MULTILINE)


def test_a_dry_run_copies_no_image_out_of_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [encoded(number) for number in range(30)]
    pq.write_table(pa.table({"image": pa.array(images)}), tmp_path / "a.parquet")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    command = ["build", str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--shard-samples", "10", "--dry-run"]
    assert main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "samples 30"
    assert re.fullmatch(r"shards about 3, from about [0-9.]+ kB", lines[2])
    assert main([*command, "--json"]) == 0
    (dataset,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (dataset["samples"], dataset["shards"], dataset["estimated"]) == (30, 3, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--on-error", "fail"], "--on-error"),
        (["--restart", "--resize", "shorter=8"], "--restart or options for images"),
        (["--dry-run"], "--dry-run"),
        (["--max-pixels", "10", "--duplicates", "drop"], "--max-pixels or --duplicates"),
    ],
)
def test_trying_again_refuses_what_it_would_not_heed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], named: str
) -> None:
    assert main(["build", str(image_folder), str(tmp_path / "out"), "--retry-failed", *given]) == 2
    assert capsys.readouterr().err == (
        f"feeder: --retry-failed does as the finished build did and takes no {named}; leave that out, or build anew\n"
    )
