"""Selections of 45.5 million samples: from arguments to a table of copies and an order, first and from the cache."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.columns import SAMPLES, SHARDS, watched_memory, write_dataset
from feeder.order import Order
from feeder.order_settings import resolve_settings
from feeder.selection import choose
from feeder.shards.reading.opening import open_dataset

TITLE = "45.5 M samples in 80,000 shards, columns in the page cache; a fresh process each; seconds beside the manifest"

_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"where": "label in [3, 7] and width >= 256"},
    {"exclude": "label < 500"},
    {"limit": 0.1},
    {"exclude": "score is None", "sample_weights": "score"},
    {"balance": "label"},
)


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each selection: seconds of `choose` and of an order, and the memory that a process takes."""
    scale = 100 if tiny else 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "dataset")
        write_dataset(dataset, SHARDS // scale, SAMPLES // scale)
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder, "cache"))}
        for arguments in _ARGUMENTS:
            command = [sys.executable, "-m", "benchmarks.selection", str(dataset), json.dumps(arguments)]
            found = {}
            for state in ("first", "again"):
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
                found[state] = json.loads(output)
            rows.append(
                {
                    "arguments": json.dumps(arguments),
                    "rows": found["again"]["rows"],
                    **{f"{state}_s": measured["choose_s"] for state, measured in found.items()},
                    "order_s": found["again"]["order_s"],
                    "first_anonymous_mib": found["first"]["anonymous_mib"],
                    "again_anonymous_mib": found["again"]["anonymous_mib"],
                    "peak_rss_mib": found["first"]["rss_mib"],
                }
            )
    return rows


def _measure(folder: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Measure in this process, which has done nothing yet but import and read the manifest."""
    reader = open_dataset(folder)
    with watched_memory() as memory:
        start = time.perf_counter()
        copies = choose(reader, **arguments)
        chosen = time.perf_counter()
        assert copies is not None
        samples = reader.manifest.segments.samples
        settings = resolve_settings(
            True, seed=0, segment_samples=samples, shuffled_when_written=True, global_batch=2048, copies=copies
        )
        Order(samples, settings, copies)
        end = time.perf_counter()
    return {
        "rows": copies.num_rows,
        "choose_s": chosen - start,
        "order_s": end - chosen,
        **memory,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], json.loads(sys.argv[2]))))
