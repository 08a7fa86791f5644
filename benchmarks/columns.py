"""Expressions over the consolidated columns of 45.5 million samples, and their results from the cache."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feeder.shards.columns.consolidated import ROWS_A_BATCH, ColumnWriter, consolidated_types
from feeder.shards.columns.selections import dataset_columns, select
from feeder.shards.dataset.manifest import COLUMNS_FOLDER, ColumnFile, new_manifest, save_manifest
from feeder.shards.dataset.shard_table import ShardRecord, shard_table
from feeder.shards.fields import Field

TITLE = "45.5 M samples in 80,000 shards; a fresh process each; files on disk (cold) or in the page cache (warm)"

SHARDS, SAMPLES = 80_000, 45_500_000
_FIELDS = {"image": Field(type="image"), "label": Field(type="int64"), "score": Field(type="float64")}
_EXPRESSIONS = (
    "label in [3, 7] and width >= 256",
    "256 <= width <= 1024 and width * height > 100_000 and format == 'jpeg'",
    "score > 0.5 or score is None",
    "label in [3, 7] and width >= 256 and not source.startswith('n01')",
    "'_12' in source and len(source) > 30",
)


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each expression: seconds from nothing to the mask, and from the cached result; peak memory."""
    scale = 100 if tiny else 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset, cache = Path(folder, "dataset"), Path(folder, "cache")
        write_dataset(dataset, SHARDS // scale, SAMPLES // scale)
        for expression in _EXPRESSIONS:
            found = {}
            for state in ("cold", "warm", "cached"):
                if state == "cold":
                    leave_page_cache(dataset)
                if state == "warm":
                    for path in cache.rglob("*.bits"):
                        path.unlink()
                command = [sys.executable, "-m", "benchmarks.columns", str(dataset), str(cache), expression]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[state] = json.loads(output)
            rows.append(
                {
                    "expression": expression,
                    "selected": found["warm"]["selected"],
                    **{f"{state}_s": measured["seconds"] for state, measured in found.items()},
                    "manifest_s": found["warm"]["manifest_s"],
                    "peak_anonymous_mib": found["cold"]["anonymous_mib"],
                    "peak_rss_mib": found["cold"]["rss_mib"],
                }
            )
    return rows


def write_dataset(folder: Path, shards: int, samples: int) -> None:
    """Write the manifest and the columns of a dataset of that size, without any shard."""
    place = folder / COLUMNS_FOLDER
    place.mkdir(parents=True)
    types = consolidated_types(_FIELDS)
    writers = [ColumnWriter(name, kind, place) for name, kind in types.items() if name != "key"]
    for batch in _batches(samples):
        for writer in writers:
            writer.append(batch[writer.name])
    columns = {}
    for writer in writers:
        written = writer.finish()
        columns[writer.name] = ColumnFile(file=f"{COLUMNS_FOLDER}/{written.file}", digest=written.digest)
    sizes = np.full(shards, samples // shards)
    sizes[: samples - int(sizes.sum())] += 1
    digest = "0" * 32
    records = (
        ShardRecord(name=f"shard-{i:06d}.tar", samples=n, size_bytes=n * 118_000, digest=digest, index_digest=digest)
        for i, n in enumerate(sizes.tolist())
    )
    save_manifest(new_manifest(shards=shard_table(records), fields=_FIELDS, columns=columns), folder)


def _batches(samples: int) -> Iterator[dict[str, pa.Array]]:
    """Yield batches of made-up columns: 1,000 classes, sources of 32 characters, every tenth score missing."""
    random = np.random.default_rng(0)
    for start in range(0, samples, ROWS_A_BATCH):
        count = min(ROWS_A_BATCH, samples - start)
        labels = random.integers(0, 1000, count)
        numbers = random.integers(0, 10_000, count)
        text = "".join(f"n{label:08d}/n{label:08d}_{n:08d}.JPEG" for label, n in zip(labels, numbers, strict=True))
        offsets = np.arange(count + 1, dtype=np.int32) * (len(text) // count)
        yield {
            "source": pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text.encode())),
            "label": pa.array(labels),
            "image.width": pa.array(random.integers(64, 2048, count, dtype=np.int32)),
            "image.height": pa.array(random.integers(64, 2048, count, dtype=np.int32)),
            "image.format": pa.array((random.random(count) < 0.03).astype(np.uint8)),
            "score": pa.array(random.random(count), mask=random.random(count) < 0.1),
        }


def leave_page_cache(folder: Path) -> None:
    """Ask the kernel to forget the pages of files, which were flushed when they were written."""
    for path in folder.rglob("*.arrow"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measure(folder: str, cache: str, expression: str) -> dict[str, float]:
    """Measure in this process, which has done nothing yet but import."""
    with watched_memory() as memory:
        start = time.perf_counter()
        columns = dataset_columns(folder, cache)
        opened = time.perf_counter()
        selection = select(columns, expression)
        selection.mask()
        end = time.perf_counter()
    return {
        "selected": selection.num_selected,
        "manifest_s": opened - start,
        "seconds": end - start,
        **memory,
    }


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Give a dictionary that holds, at the end, how far anonymous memory grew within, and the peak of all memory."""
    idle_kib = peak_kib = status_kib("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak_kib
        while not done.wait(0.01):
            peak_kib = max(peak_kib, status_kib("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    found: dict[str, float] = {}
    try:
        yield found
    finally:
        done.set()
        watcher.join()
    found["anonymous_mib"] = max(1.0, (peak_kib - idle_kib) / 1024)
    found["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def status_kib(name: str) -> float:
    with open("/proc/self/status") as file:
        return float(next(line.split()[1] for line in file if line.startswith(name)))


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
