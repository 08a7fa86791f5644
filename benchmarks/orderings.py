"""One way to shuffle, in a process of its own: ``python -m benchmarks.orderings WAY LAYOUT OUT``.

LAYOUT is a JSON object: ``shards``, ``samples`` (of a shard), ``batch`` (of all ranks), ``ranks``, ``epochs``. The ids
of all batches go to OUT, int64[epochs, steps, batch], each step sorted by rank; standard output gets a JSON object with
the CPU seconds of all ranks together and, where the way says so, the samples it holds in memory. Only the standard
library and NumPy are imported at the top, because a peer may live in an environment of its own, without this package.
"""

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layout = dict[str, int]
Result = tuple[list[NDArray[np.int64]], float, int | None]  # by epoch; CPU seconds; samples held

_SEED = 17


def _ours(window: int | str, lanes: int | str) -> Callable[[Layout], Result]:
    """Our order, each rank in an `Order` of its own, as in processes."""

    def shuffled(layout: Layout) -> Result:
        from feeder.order import Order
        from feeder.order_settings import Shuffle, resolve_settings

        sizes = np.full(layout["shards"], layout["samples"])
        settings = resolve_settings(
            Shuffle(window_shards=window, lanes=lanes),  # type: ignore[arg-type]
            seed=_SEED,
            segment_samples=sizes,
            shuffled_when_written=True,
            global_batch=layout["batch"],
        )
        epochs, cpu_s = [], 0.0
        for epoch in range(layout["epochs"]):
            parts = []
            for rank in range(layout["ranks"]):
                start = time.process_time()
                order = Order(sizes, settings)
                steps = range(0, order.steps(layout["batch"]) * layout["batch"], layout["batch"])
                taken = [order.rank_batch(epoch, at, layout["batch"], rank, layout["ranks"]).ids for at in steps]
                cpu_s += time.process_time() - start
                parts.append(np.stack(taken))
            epochs.append(np.concatenate(parts, axis=1))
        return epochs, cpu_s, None

    return shuffled


def _webdataset(buffer: int) -> Callable[[Layout], Result]:
    """webdataset's own stages as ``WebDataset(…, detshuffle=True).shuffle(buffer)`` puts them together, with ids in
    place of tar archives: shards split by rank, then shuffled, then samples through a buffer; one worker a rank.

    Without ``detshuffle`` shards come in the same order in every epoch."""

    def shuffled(layout: Layout) -> Result:
        import webdataset

        names = [str(number) for number in range(layout["shards"])]

        def samples(shards: Iterator[dict[str, Any]]) -> Iterator[int]:
            for shard in shards:
                first = int(shard["url"]) * layout["samples"]
                yield from range(first, first + layout["samples"])

        pipelines = [
            webdataset.DataPipeline(
                webdataset.SimpleShardList(names),
                webdataset.split_by_node,
                webdataset.detshuffle(len(names), seed=_SEED),
                samples,
                webdataset.shuffle(buffer, rng=random.Random(_SEED + rank)),
            )
            for rank in range(layout["ranks"])
        ]
        length, epochs, cpu_s = layout["batch"] // layout["ranks"], [], 0.0
        os.environ["WORLD_SIZE"] = str(layout["ranks"])
        for _ in range(layout["epochs"]):
            parts = []
            for rank, pipeline in enumerate(pipelines):
                os.environ["RANK"] = str(rank)
                start = time.process_time()
                ids = np.fromiter(pipeline, np.int64)
                cpu_s += time.process_time() - start
                parts.append(ids[: len(ids) // length * length].reshape(-1, length))
            steps = min(map(len, parts))
            epochs.append(np.concatenate([part[:steps] for part in parts], axis=1))
        return epochs, cpu_s, buffer * layout["ranks"]

    return shuffled


def _streaming(algorithm: str, block_shards: int | None = None) -> Callable[[Layout], Result]:
    """Streaming's functions, as `StreamingDataset` calls them on one node, with one worker a rank; every rank's node
    computes the whole epoch once."""

    def shuffled(layout: Layout) -> Result:
        from streaming.base.partition import get_partitions
        from streaming.base.shuffle import get_shuffle

        sizes = np.full(layout["shards"], layout["samples"])
        total = int(sizes.sum())
        nodes = 64 if algorithm in ("py1s", "py2s") else 1  # its defaults for one node, and below for the block
        block = block_shards * layout["samples"] if block_shards else max(4_000_000 // nodes, 1 << 18)
        length, epochs, cpu_s = layout["batch"] // layout["ranks"], [], 0.0
        for epoch in range(layout["epochs"]):
            start = time.process_time()
            order = get_shuffle(algorithm, sizes, nodes, _SEED, epoch, block)
            places = get_partitions("relaxed", total, nodes, 1, layout["ranks"], 1, length, 0, 1)
            cpu_s += time.process_time() - start
            ids = np.where(places == -1, -1, order[places])[0, :, 0]  # [ranks, batches, length]
            whole = ids[:, (ids >= 0).all(axis=(0, 2))]
            epochs.append(whole.transpose(1, 0, 2).reshape(whole.shape[1], -1))
        return epochs, cpu_s, None

    return shuffled


def _permutation(layout: Layout) -> Result:
    """A permutation of all samples, anew in every epoch."""
    total, batch = layout["shards"] * layout["samples"], layout["batch"]
    generator, start = np.random.default_rng(_SEED), time.process_time()
    epochs = [
        generator.permutation(total)[: total // batch * batch].reshape(-1, batch) for _ in range(layout["epochs"])
    ]
    return epochs, time.process_time() - start, total


WAYS: dict[str, Callable[[Layout], Result]] = {
    "feeder, window 1": _ours(1, "auto"),
    "feeder, window 8": _ours(8, "auto"),
    "feeder, window 8, 1 lane": _ours(8, 1),
    "feeder, window 8, 32 lanes": _ours(8, 32),
    "feeder, window all": _ours("all", "auto"),
    "webdataset, shuffle(1000)": _webdataset(1000),
    "webdataset, shuffle(5000)": _webdataset(5000),
    "streaming, py1s": _streaming("py1s"),
    "streaming, py2s": _streaming("py2s"),
    "streaming, py1e": _streaming("py1e"),
    "streaming, py1e, block of 8 shards": _streaming("py1e", 8),
    "full permutation": _permutation,
}


def _measure(way: str, layout: Layout, out: str) -> dict[str, float | int | None]:
    WAYS[way](layout | {"epochs": 1})  # imports, and what is made once
    epochs, cpu_s, held = WAYS[way](layout)
    steps = min(map(len, epochs))
    np.save(out, np.stack([epoch[:steps] for epoch in epochs]))
    ids = sum(epoch.size for epoch in epochs)
    return {"cpu_us_a_sample": cpu_s / ids * 1e6, "held_samples": held}


def in_use(ids: NDArray[np.int64], samples: int) -> int:
    """Return how many samples the shards have that are begun and not finished, at most, in the steps of an epoch."""
    shards = ids // samples  # [steps, batch]
    first = np.full(int(shards.max()) + 1, len(shards))
    last = np.full(int(shards.max()) + 1, -1)
    for step, row in enumerate(shards):
        there = np.unique(row)
        first[there] = np.minimum(first[there], step)
        last[there] = step
    begun = last >= 0
    change = np.bincount(first[begun], minlength=len(shards) + 1) - np.bincount(
        last[begun] + 1, minlength=len(shards) + 1
    )
    return int(max(itertools.accumulate(change.tolist()))) * samples


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])))
