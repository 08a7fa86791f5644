"""From nothing to the first batch, at the start and in mid-epoch: ours beside peers, by size of dataset."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.build import STREAMING_PYTHON
from benchmarks.starting import BATCH, SHARD_SAMPLES, WAYS

TITLE = (
    f"seconds from the constructor to the first batch of {BATCH} encoded images (1 x 1 pixel) from one worker process,"
    " at the start and in the middle of an epoch; imports apart; memory then (grown: since the imports). Shards of"
    f" {SHARD_SAMPLES} samples, all links to one file; a fresh process each"
)

LITDATA_PYTHON = "FEEDER_LITDATA_PYTHON"  # an interpreter that has litdata
_SIZES = (100_000, 1_000_000, 5_000_000, 45_500_000)
_LIMIT_S = 240  # more is no start
_PYTHONS = {"streaming": ("mosaicml-streaming", STREAMING_PYTHON), "litdata": ("litdata", LITDATA_PYTHON)}


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each way and size."""
    rows = []
    for samples in (2_000,) if tiny else _SIZES:
        shards = -(-samples // SHARD_SAMPLES)
        with tempfile.TemporaryDirectory() as folder:
            datasets: dict[str, str] = {}
            for way in WAYS:
                kind = way.split(",")[0]
                row: dict[str, Any] = {"way": way, "samples": shards * SHARD_SAMPLES, "shards": shards}
                python, missing = _python(kind)
                if missing:
                    rows.append(row | {"missing": missing})
                    continue
                kind = "feeder" if kind == "webdataset" else kind  # the same tar shards
                if kind not in datasets:
                    datasets[kind] = str(_write(python, kind, Path(folder, kind), shards))
                started = _started(python, way, datasets[kind], 0)
                if way == "webdataset":
                    resumed: dict[str, Any] = {"resume": "none: it would read on to the place"}
                else:
                    again = _started(python, way, datasets[kind], shards * SHARD_SAMPLES // 2)
                    resumed = {"resume_s": again.get("first_batch_s", again.get("gave_up"))}
                rows.append(row | started | resumed)
    return rows


def _python(kind: str) -> tuple[str, str | None]:
    """Return the interpreter for a kind of dataset, and what is missing."""
    if kind in _PYTHONS:
        package, variable = _PYTHONS[kind]
        python = os.environ.get(variable, sys.executable)
        if python == sys.executable and importlib.util.find_spec(kind) is None:
            return python, f"{package} is not installed; {variable} may name an interpreter that has it"
        return python, None
    needed = ("torch", "webdataset") if kind == "webdataset" else ("torch",)
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return sys.executable, f"{absent[0]} is not installed" if absent else None


def _write(python: str, kind: str, folder: Path, shards: int) -> Path:
    """Write one shard with the kind's own writer; return a dataset that has it so many times."""
    folder.mkdir()
    command = [python, "-W", "ignore", "-m", "benchmarks.starting", "write", kind, str(folder / "one")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    dataset = folder / "many"
    dataset.mkdir()
    if kind == "streaming":
        index = json.loads((folder / "one" / "index.json").read_text())
        (one,) = index["shards"]
        index["shards"] = [
            one | {"raw_data": one["raw_data"] | {"basename": f"shard.{number:05}.mds"}} for number in range(shards)
        ]
        _link(folder / "one" / one["raw_data"]["basename"], (dataset / f"shard.{n:05}.mds" for n in range(shards)))
        (dataset / "index.json").write_text(json.dumps(index))
    elif kind == "litdata":
        index = json.loads((folder / "one" / "index.json").read_text())
        (one,) = index["chunks"]
        index["chunks"] = [one | {"filename": f"chunk-0-{number}.bin"} for number in range(shards)]
        _link(folder / "one" / one["filename"], (dataset / f"chunk-0-{n}.bin" for n in range(shards)))
        (dataset / "index.json").write_text(json.dumps(index))
    else:
        _write_ours(folder / "one" / "built", dataset, shards)
    return dataset


def _write_ours(built: Path, dataset: Path, shards: int) -> None:
    from feeder.shards.dataset.manifest import load_manifest, new_manifest, save_manifest
    from feeder.shards.dataset.shard_table import ShardTable
    from feeder.shards.formats.index import index_name

    manifest = load_manifest(built)
    one, names = manifest.shards, [f"shard-{number:06d}.tar" for number in range(shards)]
    table = ShardTable(
        names=names,
        samples=one.samples.repeat(shards),
        size_bytes=one.size_bytes.repeat(shards),
        digests=[*one.digests] * shards,
        index_digests=[*one.index_digests] * shards,
    )
    _link(built / one.names[0], (dataset / name for name in names))
    _link(built / index_name(one.names[0]), (dataset / index_name(name) for name in names))
    save_manifest(new_manifest(shards=table, fields=manifest.fields, classes=manifest.classes, shuffled=True), dataset)


def _link(target: Path, names: Any) -> None:
    for name in names:
        os.symlink(target, name)


def _started(python: str, way: str, dataset: str, position: int) -> dict[str, Any]:
    """Return the figures of one start, or the last words of one that failed."""
    command = [python, "-W", "ignore", "-m", "benchmarks.starting", way, dataset, str(position)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # so that what is shared between processes is given back
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return {"gave_up": f"no batch after {_LIMIT_S} s"}
    if process.returncode:
        last = [line for line in errors.splitlines() if line.strip()][-1:] or [f"exit code {process.returncode}"]
        return {"gave_up": last[0].strip()[:160]}
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures
