"""How well shuffles mix, what they hold in memory for it, and what they cost: ours beside peers' and a permutation."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.build import STREAMING_PYTHON
from benchmarks.orderings import WAYS, in_use
from feeder.shuffle_counts import BatchCounter, Classes, Sums, pairs_alike

TITLE = (
    "256 shards of 600 samples, 1,000 classes, global batch 1,024 on 8 ranks, 2 epochs. Of a global batch and of one of"
    " a rank: variance of class counts over that of a full shuffle, by how shards were written (in random order, sorted"
    " by class); pairs of one shard; share of pairs that meet in the next epoch. Samples held by all ranks: those of"
    " shards begun and not finished, or of the buffers that the way has; one worker a rank"
)


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each way to shuffle."""
    layout = {"shards": 256, "samples": 600, "batch": 1024, "ranks": 8, "epochs": 2}
    classes = 1000
    if tiny:
        layout, classes = {"shards": 64, "samples": 20, "batch": 128, "ranks": 2, "epochs": 2}, 10
    random = np.random.default_rng(0)
    written = random.integers(0, classes, layout["shards"] * layout["samples"], dtype=np.int32)
    labels = {"random": written, "sorted": np.sort(written)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            found = _ordered(way, layout, Path(folder, "ids.npy"))
            rows.append({"way": way} | (found if "missing" in found else _row(found, layout, labels)))
    return rows


def _ordered(way: str, layout: dict[str, int], out: Path) -> dict[str, Any]:
    """Return the ids and the costs of a way, or what is missing for it."""
    python = sys.executable
    if way.startswith("streaming"):
        python = os.environ.get(STREAMING_PYTHON, sys.executable)
        if python == sys.executable and importlib.util.find_spec("streaming") is None:
            return {"missing": f"mosaicml-streaming; {STREAMING_PYTHON} may name an interpreter that has it"}
    if way.startswith("webdataset") and importlib.util.find_spec("webdataset") is None:
        return {"missing": "webdataset"}
    command = [python, "-W", "ignore", "-m", "benchmarks.orderings", way, json.dumps(layout), str(out)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(output.splitlines()[-1]), "ids": np.load(out)}


def _row(found: dict[str, Any], layout: dict[str, int], labels: dict[str, NDArray[Any]]) -> dict[str, Any]:
    ids: NDArray[np.int64] = found["ids"]
    total, (epochs, steps, batch) = layout["shards"] * layout["samples"], ids.shape
    row: dict[str, Any] = {}
    for order, written in labels.items():
        counter = BatchCounter(np.full(layout["shards"], layout["samples"]), Classes(written))
        for name, parts in (("", 1), ("_of_ranks", layout["ranks"])):
            sums = Sums()
            for one in ids.reshape(-1, batch):
                counter.add(sums, one, parts)
            balance = counter.balance(sums, batch / parts, parts * steps, epochs)
            assert balance is not None
            row[f"{order}{name}"] = f"{balance.ratio:.3f}±{balance.standard_error:.3f}"
            row[f"same_shard{name}"] = sums.pairs / sums.batches
    for name, parts in (("", 1), ("_of_ranks", layout["ranks"])):
        row[f"meet_again{name}"] = f"{100 * _met_again(ids, parts, total):.3f}%"
    held = found["held_samples"] or max(in_use(epoch, layout["samples"]) for epoch in ids)
    return row | {"held_samples": held, "cpu_us_a_sample": found["cpu_us_a_sample"]}


def _met_again(ids: NDArray[np.int64], parts: int, total: int) -> float:
    """Return the share of pairs of the first epoch's batches that share a batch in the second one."""
    numbers = np.full((2, total), -1)
    for epoch in (0, 1):
        batches = ids[epoch].reshape(-1, ids.shape[2] // parts)
        numbers[epoch, batches] = np.arange(len(batches))[:, None]
    first, second = numbers[:, (numbers >= 0).all(axis=0)]
    return pairs_alike(first * total + second) / pairs_alike(numbers[0][numbers[0] >= 0])
