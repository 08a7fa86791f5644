"""One writer of shards, measured in a process of its own: ``python -m benchmarks.writers WAY SOURCE DEST``.

It prints a JSON object of what the work took, imports apart. Only the standard library is imported at the top, because
a peer may live in an environment of its own, without this package.
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

SHARD_BYTES = 64 << 20  # of every writer: the default of `feeder build` and of Streaming
SHORTER = 256  # pixels
QUALITY = 90

Work = Callable[[str, str], None]
Change = Callable[[bytes], bytes]


def _ours(shard_format: str, workers: int, *options: str) -> Work:
    """``feeder build``."""
    import pyarrow as pa

    import feeder.tools.building  # noqa: F401  the command imports it when it is called
    from feeder.tools.main import main

    pa.array([])  # imports pandas, where that is installed

    def work(source: str, dest: str) -> None:
        command = ["build", source, dest, "--format", shard_format, "--workers", str(workers), "--quiet", *options]
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(command)
        if code:
            raise SystemExit(code)

    return work


def _ours_unflushed() -> Work:
    """``feeder build`` without the flushes to the disk, which peers do not make."""
    os.fsync = lambda descriptor: None
    return _ours("tar", 1)


def _ours_resized(workers: int) -> Work:
    return _ours("tar", workers, "--resize", f"shorter={SHORTER}", "--quality", str(QUALITY))


def _webdataset(change: Change = bytes) -> Work:
    """webdataset's ShardWriter, in a loop as its documentation has it."""
    import webdataset

    def work(source: str, dest: str) -> None:
        os.mkdir(dest)
        pattern = f"{dest}/shard-%06d.tar"
        with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, maxcount=1 << 40, verbose=0) as writer:
            for key, image, label in _samples(source):
                writer.write({"__key__": key, "jpg": change(image), "cls": label})

    return work


def _streaming(*hashes: str, change: Change = bytes) -> Work:
    """Streaming's MDSWriter, in a loop as its documentation has it, with images as bytes."""
    from streaming import MDSWriter

    def work(source: str, dest: str) -> None:
        columns = {"key": "str", "image": "bytes", "label": "int"}
        with MDSWriter(out=dest, columns=columns, hashes=list(hashes), size_limit=SHARD_BYTES) as writer:
            for key, image, label in _samples(source):
                writer.write({"key": key, "image": change(image), "label": label})

    return work


def _resize() -> Change:
    """What ``feeder build --resize`` does to a JPEG, written as a user of Pillow would."""
    from PIL import Image

    def resized(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data))
        scale = SHORTER / min(image.size)
        if scale >= 1:
            return data
        width, height = (round(side * scale) for side in image.size)
        image.draft(None, (2 * width, 2 * height))
        buffer = io.BytesIO()
        image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    return resized


def _program(*command: str) -> Work:
    """A program that gets SOURCE and DEST for ``{source}`` and ``{dest}``."""

    def work(source: str, dest: str) -> None:
        subprocess.run([part.format(source=source, dest=dest) for part in command], check=True)

    return work


def _samples(source: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield key, bytes and label of every image of class folders, in random order as shards want them."""
    classes = sorted(entry.name for entry in os.scandir(source))
    found = [(name, entry.name) for name in classes for entry in os.scandir(f"{source}/{name}")]
    random.Random(0).shuffle(found)
    numbers = {name: number for number, name in enumerate(classes)}
    for name, file in found:
        yield f"{name}/{file.partition('.')[0]}", Path(source, name, file).read_bytes(), numbers[name]


OURS: dict[str, Callable[[], Work]] = {
    "feeder tar, 1 worker": lambda: _ours("tar", 1),
    "feeder tar, 2 workers": lambda: _ours("tar", 2),
    "feeder arrow, 1 worker": lambda: _ours("arrow", 1),
    "feeder arrow, 2 workers": lambda: _ours("arrow", 2),
}
PEERS: dict[str, Callable[[], Work]] = {
    "feeder tar, 1 worker, no fsync": _ours_unflushed,
    "webdataset.ShardWriter": _webdataset,
    "streaming.MDSWriter": _streaming,
    "streaming.MDSWriter, xxh128": lambda: _streaming("xxh128"),
    "tar cf": lambda: _program("tar", "cf", "{dest}", "--hard-dereference", "-C", "{source}", "."),
    "cp -r": lambda: _program("cp", "-r", "--reflink=never", "{source}", "{dest}"),
}
RESIZED: dict[str, Callable[[], Work]] = {
    "feeder tar, shorter=256, 1 worker": lambda: _ours_resized(1),
    "feeder tar, shorter=256, 2 workers": lambda: _ours_resized(2),
    "webdataset.ShardWriter, Pillow to 256": lambda: _webdataset(_resize()),
    "streaming.MDSWriter, Pillow to 256": lambda: _streaming(change=_resize()),
}


def _measure(way: str, source: str, dest: str) -> dict[str, float]:
    """Return seconds and memory of one writer's work, and the CPU seconds of its imports.

    Children count: CPU time is theirs too, and memory that of the largest process.
    """
    work = (OURS | PEERS | RESIZED)[way]()
    imports_s = _cpu_s()
    start = time.perf_counter()
    work(source, dest)
    wall_s = time.perf_counter() - start
    largest_child_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own_kib = 0 if way in ("tar cf", "cp -r") else _own_peak_kib()
    return {
        "wall_s": wall_s,
        "cpu_s": _cpu_s() - imports_s,
        "imports_cpu_s": imports_s,
        "peak_mib": max(largest_child_kib, own_kib) / 1024,
    }


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of its children that have ended, in user and system mode."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _own_peak_kib() -> int:
    """Return the most memory that this program had; getrusage would count what its parent had before it."""
    status: dict[str, Any] = {}
    with open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            status[name] = value
    return int(status["VmHWM"].split()[0])


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
