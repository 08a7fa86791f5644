"""One way to start streaming, in a process of its own: ``python -m benchmarks.starting WAY FOLDER POSITION``.

It prints a JSON object: seconds until the first batch of 256 encoded images from one worker process is there, imports
apart, and the memory of this process and of its worker then. POSITION is the sample of the first epoch to go on from, 0
for a start. ``python -m benchmarks.starting write KIND FOLDER`` writes one small shard with the kind's own writer. Only
the standard library is imported at the top, because peers may live in environments of their own, without this package.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHARD_SAMPLES = 569  # 45.5 million samples in 80,000 shards
BATCH = 256
MEMORY_BYTES = 16 << 30  # of the data of one process: more is no start

# One pixel, as the smallest decoders accept it.
JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b0a"
    "0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc0000b080001000101011100ffc4001400010000000000"
    "0000000000000000000009ffc40014100100000000000000000000000000000000ffda0008010100003f002a9fffd9"
)

Start = Callable[[str, int], Iterable[Any]]


def _ours(folder: str, position: int, loader: bool) -> Iterable[Any]:
    from feeder import ImageDataset, Loader

    dataset = ImageDataset(folder, batch_size=BATCH, seed=1, decode=False, rank=0, world_size=1)
    if position:
        dataset.load_state_dict(dataset.state_dict() | {"position": position // BATCH * BATCH})
    if loader:
        return Loader(dataset, workers=1)
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=None, num_workers=1)


def _streaming(folder: str, position: int) -> Iterable[Any]:
    from streaming import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH, shuffle_seed=1)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=list)
    if position:
        dataset.load_state_dict(dataset.state_dict(position // BATCH * BATCH, True) | {"epoch": 0})
    return loader


def _litdata(folder: str, position: int) -> Iterable[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(folder, shuffle=True, seed=1)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=_copied)
    if position:
        state = loader.state_dict()
        state["num_samples_yielded"] = state["dataset"]["num_samples_yielded"] = position // BATCH * BATCH
        state["dataset"]["sample_in_epoch"] = position // BATCH * BATCH
        loader.load_state_dict(state)
    return loader


def _copied(samples: list[dict[str, Any]]) -> list[tuple[bytes, int]]:
    """Copy what LitData gives as views of memory, which cannot go from one process to another."""
    return [(bytes(sample["image"]), sample["label"]) for sample in samples]


def _webdataset(folder: str, position: int) -> Iterable[Any]:
    import webdataset
    from torch.utils.data import DataLoader

    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=1).shuffle(1000)
    return DataLoader(samples.to_tuple("jpg", "cls").batched(BATCH, collation_fn=list), batch_size=None, num_workers=1)


WAYS: dict[str, Start] = {
    "feeder, DataLoader": lambda folder, position: _ours(folder, position, loader=False),
    "feeder, Loader": lambda folder, position: _ours(folder, position, loader=True),
    "streaming": _streaming,
    "litdata": _litdata,
    "webdataset": _webdataset,
}
_IMPORTS = {  # of "feeder" what it imports on use
    "feeder": ("feeder.dataset", "feeder.loader", "feeder.engines.pillow", "torch.utils.data"),
    "streaming": ("streaming",),
    "litdata": ("litdata",),
}


def write_shard(kind: str, folder: str) -> None:
    """Write a dataset of one shard of `SHARD_SAMPLES` samples."""
    samples = [{"image": JPEG, "label": number % 1000} for number in range(SHARD_SAMPLES)]
    if kind == "streaming":
        from streaming import MDSWriter

        with MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}) as writer:
            for sample in samples:
                writer.write(sample)
    elif kind == "litdata":
        from litdata.streaming.writer import BinaryWriter

        chunks = BinaryWriter(folder, chunk_bytes="64MB")
        for number, sample in enumerate(samples):
            chunks[number] = sample
        chunks.done()
        chunks.merge()
    else:
        from feeder.shards.building.writing import BuildOptions, build

        source = Path(folder, "source")
        for sample in samples:
            source.joinpath(f"{sample['label']:04}").mkdir(parents=True)
            source.joinpath(f"{sample['label']:04}", "image.jpg").write_bytes(JPEG)
        build(source, Path(folder, "built"), BuildOptions(shards=1))


def _measure(way: str, folder: str, position: int) -> dict[str, float]:
    """Measure in this process, which has done nothing yet but import."""
    import importlib

    start = time.perf_counter()
    for name in _IMPORTS.get(way.partition(",")[0], (way, "torch.utils.data")):
        importlib.import_module(name)
    imported = time.perf_counter()
    idle = _memory(os.getpid())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    begin = time.perf_counter()
    batches = iter(WAYS[way](folder, position))
    batch = next(batches)
    end = time.perf_counter()
    images = batch["image"] if isinstance(batch, dict) else batch
    if len(images) != BATCH:
        raise SystemExit(f"the first batch has {len(images)} images, expected {BATCH}")
    main = _memory(os.getpid())
    workers = [_memory(pid) for pid in _children()]
    return {
        "imports_s": imported - start,
        "first_batch_s": end - begin,
        "main_rss_mib": main["Rss"],
        "main_grown_mib": max(0.1, main["Rss"] - idle["Rss"]),
        "worker_rss_mib": max((worker["Rss"] for worker in workers), default=0.1),
        "worker_uss_mib": max((worker["Private_Clean"] + worker["Private_Dirty"] for worker in workers), default=0.1),
        "all_pss_mib": main["Pss"] + sum(worker["Pss"] for worker in workers),
    }


def _children() -> list[int]:
    """Return the processes of this one: DataLoader's workers, and what others start without multiprocessing."""
    found = {child.pid for child in multiprocessing.active_children() if child.pid is not None}
    for thread in Path("/proc/self/task").iterdir():
        found |= set(map(int, (thread / "children").read_text().split()))
    return sorted(found)


def _memory(pid: int) -> dict[str, float]:
    """Return the memory of a process (MiB): Rss with what it shares, Pss with its part of that, Private_* its own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_shard(*sys.argv[2:])
    else:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))), flush=True)
        if sys.argv[1] != "streaming":  # which shares memory under a name, and gives it back at its end
            os._exit(0)  # shutting down is no part of a start
