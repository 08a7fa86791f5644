"""What writing shards costs, beside other writers: from a folder of JPEGs to shards, whole processes."""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.photographs import photographs
from benchmarks.writers import OURS, PEERS, RESIZED

TITLE = (
    "JPEGs into shards of 64 MiB, page cache warm, medians; seconds a GB of images, imports apart; memory of the "
    "largest process"
)

STREAMING_PYTHON = "FEEDER_STREAMING_PYTHON"  # an interpreter that has mosaicml-streaming, whose pins exclude ours
_SUFFIXES = (".jpg", ".jpeg")
_ALL = [*OURS, *PEERS, *RESIZED]


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each writer and size: ours over 1, 4 and 16 times the photographs, peers over 4 and 16."""
    rounds = {1: 1} if tiny else {1: 3, 4: 3, 16: 2}
    ways = {1: _ALL if tiny else [*OURS], 4: _ALL, 16: [*OURS, *PEERS]}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(folder, made=40 if tiny else None)
        for times, repeats in rounds.items():
            source = Path(folder, f"times-{times}")
            size_bytes = _replicate(photos, source, times)
            found: dict[str, list[dict[str, float] | str]] = {way: [] for way in ways[times]}
            for _ in range(repeats):  # in turn, so that a drift of the machine's speed meets all
                for way, results in found.items():
                    results.append(_measure(way, source, Path(folder, "dest")))
            rows += [_row(way, size_bytes, results) for way, results in found.items()]
            shutil.rmtree(source)
    return rows


def _replicate(photos: Path, dest: Path, times: int) -> int:
    """Fill class folders with so many links to each photograph; return the bytes of all."""
    total = 0
    for path in sorted(photos.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        total += times * path.stat().st_size
        folder = dest / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(times):
            target = folder / f"{path.stem}-{copy:02}.jpg"
            try:
                os.link(path, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, target)
    return total


def _measure(way: str, source: Path, dest: Path) -> dict[str, float] | str:
    """Return the figures of one run, or what is missing for it."""
    python = sys.executable
    if way.startswith("streaming"):
        python = os.environ.get(STREAMING_PYTHON, sys.executable)
        if python == sys.executable and importlib.util.find_spec("streaming") is None:
            return f"mosaicml-streaming is not installed; {STREAMING_PYTHON} may name an interpreter that has it"
    if way.startswith("webdataset") and importlib.util.find_spec("webdataset") is None:
        return "webdataset is not installed"
    os.sync()  # what the run before left to be written is not this one's
    command = [python, "-m", "benchmarks.writers", way, str(source), str(dest)]
    try:
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        shutil.rmtree(dest) if dest.is_dir() else dest.unlink(missing_ok=True)
    figures: dict[str, float] = json.loads(output)
    return figures


def _row(way: str, size_bytes: int, results: list[dict[str, float] | str]) -> dict[str, Any]:
    """Return a row of medians, or of what is missing."""
    row: dict[str, Any] = {"way": way, "source_mb": round(size_bytes / 1e6)}
    if isinstance(results[0], str):
        return row | {"missing": results[0]}
    figures = [result for result in results if not isinstance(result, str)]
    cpu, wall, imports, peak = (
        statistics.median(figure[name] for figure in figures)
        for name in ("cpu_s", "wall_s", "imports_cpu_s", "peak_mib")
    )
    return row | {
        "cpu_s_a_gb": cpu / size_bytes * 1e9,
        "wall_s_a_gb": wall / size_bytes * 1e9,
        "mb_a_s": size_bytes / 1e6 / wall,
        "imports_cpu_s": imports,
        "peak_mib": peak,
    }
