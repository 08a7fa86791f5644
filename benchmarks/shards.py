"""What reading random samples costs, by format of the shards: checked bytes, not decoded."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photographs import photographs
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.opening import open_dataset

TITLE = "a sample, of 32 random ones a read, checked against its CRC-32C; one thread; page cache warm"

_SAMPLES = 32


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each format: medians of CPU-µs a sample to read and to describe it, and its bytes on disk."""
    rounds, reads = (1, 4) if tiny else (9, 200)
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(folder, made=80 if tiny else None)
        built = {
            name: build(photos, Path(folder, name), BuildOptions(format=name)).datasets[0] for name in WRITTEN_FORMATS
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in built}
        for _ in range(rounds):  # in turn, so that a drift of the machine's speed meets all
            for name, results in found.items():
                results.append(_measure(built[name].path, reads))
    rows: list[dict[str, Any]] = []
    for name, results in found.items():
        manifest = built[name].manifest
        reading, describing = (statistics.median(column) * 1e6 for column in zip(*results, strict=True))
        rows.append(
            {
                "format": name,
                "read_cpu_us": reading,
                "describe_cpu_us": describing,
                "size_bytes": manifest.size_bytes / manifest.num_samples,
            }
        )
    return rows


def _measure(path: Path, reads: int) -> tuple[float, float]:
    """Return CPU seconds a sample of reading and of describing."""
    reader = open_dataset(path)
    total = reader.manifest.num_samples
    reader.read(np.arange(total))
    random = np.random.default_rng(0)
    ids = [random.integers(0, total, _SAMPLES) for _ in range(reads)]
    begin = time.process_time()
    for some in ids:
        reader.read(some)
    middle = time.process_time()
    for some in ids:
        reader.describe(some)
    end = time.process_time()
    reader.close()
    return (middle - begin) / (reads * _SAMPLES), (end - middle) / (reads * _SAMPLES)
