"""One writer of shards, measured in a process of its own: ``python -m benchmarks.writers WAY SOURCE DEST``.

It prints a JSON object of what the work took, imports apart. Only the standard library is imported at the top, because
peers may live in an environment of their own, without this package.
"""

import contextlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHARD_BYTES = 64 << 20  # of every writer: what this package and Streaming take by default

Work = Callable[[str, str], None]


def _ours(shard_format: str, workers: int, *options: str) -> Work:
    """``feeder build``."""
    import feeder.tools.building  # noqa: F401  the command imports it when it is called
    from feeder.tools.main import main

    def work(source: str, dest: str) -> None:
        command = ["build", source, dest, "--format", shard_format, "--workers", str(workers), "--quiet", *options]
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(command)
        if code:
            raise SystemExit(code)

    return work


def _ours_unflushed() -> Work:
    """``feeder build`` without the flushes to the disk, which peers do not make."""
    work = _ours("tar", 1)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    return work


def _webdataset() -> Work:
    """webdataset's ShardWriter in the loop that its documentation shows."""
    import webdataset

    def work(source: str, dest: str) -> None:
        os.mkdir(dest)
        pattern = f"{dest}/shard-%06d.tar"
        with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, maxcount=1 << 40, verbose=0) as writer:
            for key, image, label in _samples(source):
                writer.write({"__key__": key, "jpg": image, "cls": label})

    return work


def _streaming(*hashes: str) -> Work:
    """Streaming's MDSWriter in the loop that its documentation shows, images as bytes."""
    from streaming import MDSWriter

    def work(source: str, dest: str) -> None:
        columns = {"key": "str", "image": "bytes", "label": "int"}
        with MDSWriter(out=dest, columns=columns, hashes=list(hashes), size_limit=SHARD_BYTES) as writer:
            for key, image, label in _samples(source):
                writer.write({"key": key, "image": image, "label": label})

    return work


def _program(*command: str) -> Work:
    """A program that gets SOURCE and DEST for ``{source}`` and ``{dest}``."""

    def work(source: str, dest: str) -> None:
        subprocess.run([part.format(source=source, dest=dest) for part in command], check=True)

    return work


def _samples(source: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield key, bytes and label of every image of class folders, in random order as they go into shards."""
    classes = sorted(entry.name for entry in os.scandir(source))
    found = [(name, entry.name) for name in classes for entry in os.scandir(f"{source}/{name}")]
    random.Random(0).shuffle(found)
    numbers = {name: number for number, name in enumerate(classes)}
    for name, file in found:
        yield f"{name}/{file.partition('.')[0]}", Path(source, name, file).read_bytes(), numbers[name]


WAYS: dict[str, Callable[[], Work]] = {
    "feeder tar, 1 worker": lambda: _ours("tar", 1),
    "feeder tar, 2 workers": lambda: _ours("tar", 2),
    "feeder arrow, 1 worker": lambda: _ours("arrow", 1),
    "feeder arrow, 2 workers": lambda: _ours("arrow", 2),
    "feeder tar, 1 worker, no fsync": _ours_unflushed,
    "webdataset.ShardWriter": _webdataset,
    "streaming.MDSWriter": _streaming,
    "streaming.MDSWriter, xxh128": lambda: _streaming("xxh128"),
    "tar cf": lambda: _program("tar", "cf", "{dest}", "--hard-dereference", "-C", "{source}", "."),
    "cp -r": lambda: _program("cp", "-r", "--reflink=never", "{source}", "{dest}"),
}


def _measure(way: str, source: str, dest: str) -> dict[str, float]:
    """Return seconds and bytes of one writer's work, and those of its imports.

    Children count: CPU time is theirs too, and the memory that of the largest process.
    """
    work = WAYS[way]()
    imports_s = _cpu_s()
    start = time.perf_counter()
    work(source, dest)
    wall_s = time.perf_counter() - start
    children_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own_kib = 0 if way in ("tar cf", "cp -r") else _own_peak_kib()
    return {
        "wall_s": wall_s,
        "cpu_s": _cpu_s() - imports_s,
        "imports_cpu_s": imports_s,
        "peak_mib": max(children_kib, own_kib) / 1024,
    }


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of its children that have ended, in user and system mode."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _own_peak_kib() -> int:
    """Return the most memory that this program had; getrusage would count the parent's, from before the exec."""
    status: dict[str, Any] = {}
    with open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            status[name] = value
    return int(status["VmHWM"].split()[0])


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
