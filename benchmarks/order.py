"""The order at full size: 80,000 shards, 45.5 million samples, 1,024 lanes, one rank of 1,000."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from feeder.order import Order
from feeder.order_settings import OrderSettings
from feeder.shards.dataset.manifest import load_manifest, new_manifest, save_manifest
from feeder.shards.dataset.shard_table import ShardTable
from feeder.shards.fields import Field

TITLE = "80,000 shards, 45.5 M samples, 1,024 lanes; rank 517 of 1,000, global batch 256,000; a fresh process each"

_SHARDS, _SAMPLES, _LANES, _BATCH, _RANKS = 80_000, 45_500_000, 1024, 256_000, 1000


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row of seconds and MiB for each kind of window."""
    scale = 100 if tiny else 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_manifest(_manifest(_SHARDS // scale, _SAMPLES // scale), folder)
        for window in ("8 shards", "all"):
            command = [sys.executable, "-m", "benchmarks.order", folder, window, str(scale)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"window": window, **json.loads(output)})
    return rows


def _manifest(shards: int, samples: int) -> Any:
    """Return a manifest of that many shards, of about 64 MiB each, without any shard."""
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(samples, rng.dirichlet(np.full(shards, 400.0)))
    digests = [rng.bytes(16).hex() for _ in range(shards)]
    table = ShardTable(
        names=[f"shard-{number:06d}.tar" for number in range(shards)],
        samples=sizes,
        size_bytes=sizes * 118_000,
        digests=digests,
        index_digests=digests[::-1],
    )
    return new_manifest(shards=table, fields={"image": Field(type="image")}, shuffled=True, shuffle_seed=0)


def _measure(folder: str, window: str, scale: int) -> dict[str, float]:
    """Measure in this process, which has done nothing yet but import."""
    idle_kib = _resident_kib()
    seconds: dict[str, float] = {}

    def timed(name: str, act: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = act()
        seconds[name + "_s"] = time.perf_counter() - start
        return result

    start = time.perf_counter()
    manifest = timed("manifest", lambda: load_manifest(folder))
    samples, batch = manifest.num_samples, _BATCH // scale
    settings = OrderSettings(
        seed=0,
        shuffle=True,
        lanes=_LANES // scale,
        window=8 * samples // len(manifest.shards) if window == "8 shards" else None,
        sticky=True,
    )
    order = Order(manifest.segments.samples, settings)
    timed("first_batch", lambda: order.rank_batch(0, 0, batch, 517 // scale, _RANKS // scale))
    seconds["start_to_first_batch_s"] = time.perf_counter() - start
    steps = order.steps(batch)
    for number, step in enumerate(np.linspace(1, steps - 1, 20).astype(int).tolist()):
        timed(f"seek {number}", lambda: order.rank_batch(3, step * batch, batch, 517 // scale, _RANKS // scale))  # noqa: B023 called at once
    seeks = [seconds.pop(name) for name in [name for name in seconds if name.startswith("seek")]]
    seconds["any_position_s"] = max(seeks)
    seconds["rank_rss_mib"] = (_resident_kib() - idle_kib) / 1024
    timed("global_batch", lambda: order.rank_batch(1, steps // 2 * batch, batch, 0, 1))
    timed("next_global_batch", lambda: order.rank_batch(1, (steps // 2 + 1) * batch, batch, 0, 1))
    seconds["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - idle_kib / 1024
    return seconds


def _resident_kib() -> float:
    """Return the resident memory of this process."""
    with open("/proc/self/status") as file:
        return float(next(line.split()[1] for line in file if line.startswith("VmRSS")))


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
