"""What it costs to have batches made in another process: our `Loader` beside torch's DataLoader over the same dataset.

Two datasets: photographs, decoded by one thread, and blank batches, which cost nothing to make, so that the way from
process to process is all there is.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photographs import photographs
from feeder import ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop, tensors
from feeder.epochs import EpochCounter
from feeder.stages import Counters

TITLE = "batches of 256 x 224 x 224 x 3, one worker process with one decode thread, a loop that works between batches"

_COPIES = 3  # of each photograph, so that an epoch has some steps
_BLANK_STEPS = 20


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each dataset and way: medians, and CPU time in proportion to making the batches in the loop."""
    rounds, epochs, batch = (1, 2, 16) if tiny else (3, 3, 256)
    with tempfile.TemporaryDirectory() as folder:
        photos = _repeated(photographs(folder, made=40 if tiny else None), Path(folder, "repeated"))
        rows = []
        for kind in _DATASETS:
            found: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
            for _ in range(rounds):  # in turn, so that a drift of the machine's speed meets all
                for way, results in found.items():
                    command = [sys.executable, "-m", "benchmarks.loader", kind, way, photos, str(epochs), str(batch)]
                    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    results.append(json.loads(output))
            rows += [_row(kind, way, results, found["in the loop"]) for way, results in found.items()]
    return rows


def _row(kind: str, way: str, results: list[dict[str, float]], alone: list[dict[str, float]]) -> dict[str, Any]:
    figures = {name: statistics.median_high(result[name] for result in results) for name in results[0]}
    ratio = statistics.median(a["cpu_ms"] / b["cpu_ms"] for a, b in zip(results, alone, strict=True))
    return {"dataset": kind, "way": way, "cpu_over_in_the_loop": ratio, **figures}


def _repeated(photos: Path, folder: Path) -> str:
    """Return a folder with links to each class folder, several times."""
    folder.mkdir()
    for classes in photos.iterdir():
        for number in range(_COPIES):
            (folder / f"{classes.name}-{number}").symlink_to(classes)
    return str(folder)


class _Blank(tensors.IterableDataset[Any]):
    """Batches that cost a fill of memory."""

    as_tensors = True

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._epochs = EpochCounter()
        self.counters = Counters()

    @property
    def epoch(self) -> int:
        return self._epochs.epoch

    def __len__(self) -> int:
        return _BLANK_STEPS

    def __iter__(self) -> Iterator[Any]:
        epoch, position = self._epochs.begin(*tensors.worker())
        return (self.handed_over(batch) for batch in self.stream(epoch=epoch, position=position))

    def set_epoch(self, epoch: int) -> None:
        self._epochs.set(epoch)

    def set_transform(self, transform: Any, *, views: int = 1) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epochs.epoch, "position": self._epochs.position}

    def load_state_dict(self, state: Any) -> None:
        self._epochs.set(state["epoch"], state["position"])

    def begin_epoch(self) -> tuple[dict[str, Any], int]:
        epoch, position = self._epochs.begin(0, 0)
        return {"epoch": epoch, "position": position}, _BLANK_STEPS - position

    def handed_over(self, batch: dict[str, Any]) -> dict[str, Any]:
        return tensors.from_arrays(batch, ("image",))

    def deferral(self) -> Callable[[dict[str, Any]], None]:
        return lambda batch: None

    def stream(
        self, *, epoch: int, position: int = 0, allocate: Any = np.empty, **_: Any
    ) -> Generator[dict[str, Any], None, None]:
        for at in range(position, _BLANK_STEPS):
            image = allocate((self._batch, 224, 224, 3), np.uint8)
            image.fill(at)
            state = {"epoch": epoch, "position": at + 1}
            label = np.zeros(self._batch, np.int64)
            keys = [f"n01440764/{row:08}.jpg" for row in range(self._batch)]
            yield {"image": image, "label": label, "key": keys, "epoch": epoch, "position": at, "state": state}


def _photographs(folder: str, batch: int) -> Any:
    return ImageDataset(
        folder, batch_size=batch, transform=(RandomResizedCrop(224), RandomHorizontalFlip()), seed=0, threads=1
    )


_DATASETS = {"blank": lambda folder, batch: _Blank(batch), "photographs": _photographs}


def _data_loader(dataset: Any) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True, prefetch_factor=2)


_WAYS = {"in the loop": lambda dataset: dataset, "Loader": Loader, "DataLoader": _data_loader}


def _measure(kind: str, way: str, folder: str, epochs: int, batch: int) -> dict[str, float]:
    """Run some epochs, and measure all but the first; the loop touches the batch and works for a while."""
    import torch

    torch.set_num_threads(1)
    work_s = {"blank": 0.01, "photographs": batch * 0.0015}[kind]
    shared_before = _shared_bytes()
    start = time.perf_counter()
    loader = _WAYS[way](_DATASETS[kind](folder, batch))
    first_batch_s, gaps, images, memory, shared = 0.0, [], 0, 0, 0
    wall = cpu = 0.0
    for epoch in range(epochs):
        ended = time.perf_counter()
        for step, data in enumerate(loader):
            if step == 0 and epoch == 0:
                first_batch_s = time.perf_counter() - start
            elif step == 0:
                gaps.append(time.perf_counter() - ended)
            assert int(data["image"][0, 0, 0, 0]) >= 0
            images += batch
            time.sleep(work_s)
            if step % 4 == 0:
                memory = max(memory, _memory_bytes())
                shared = max(shared, _shared_bytes() - shared_before)
    wall = time.perf_counter() - start
    if hasattr(loader, "close"):
        loader.close()
    del loader, data  # ends the workers: their CPU time counts from then on
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return {
        "cpu_ms": 1000 * (cpu - _IMPORTS_CPU_S) / images,
        "images_a_s": images / wall,
        "first_batch_s": first_batch_s,
        "epoch_gap_s": statistics.median(gaps),
        "peak_mb": memory / 1e6,
        "dev_shm_mb": max(0, shared) // 1_000_000,
    }


def _memory_bytes() -> int:
    """Return what this process and its children take, shared pages once."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = [os.getpid(), *map(int, file.read().split())]
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _shared_bytes() -> int:
    status = os.statvfs("/dev/shm")
    return (status.f_blocks - status.f_bfree) * status.f_frsize


if __name__ == "__main__":
    import torch.utils.data  # noqa: F401 - what it costs to import is no matter here

    _IMPORTS_CPU_S = time.process_time()
    print(json.dumps(_measure(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))))
