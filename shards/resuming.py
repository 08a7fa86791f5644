"""What an interrupted build has finished: the same command goes on from there.

A shard is finished when its record is there, which is written after the shard itself: its index, or for a shard without
a good sample the list of its bad ones. ``shard-000012.bad.jsonl`` lists the bad samples of a shard, one JSON object a
line; it is written before the index and is gone when the build is complete. A record counts only if good and bad
samples together are as many as the plan put into the shard.
"""

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import xxhash

from feeder.shards.destinations.protocol import Destination
from feeder.shards.formats import shard_name
from feeder.shards.index import index_name
from feeder.shards.packing import BadImage, WrittenShard, bad_list_name, parse_bad, sample_ends
from feeder.shards.planning import Plan
from feeder.shards.shard_table import ShardRecord, segment_starts

_READ_AT_ONCE = 16  # records are small: what takes time behind a URL is to wait for each


def finished_shards(
    folder: Destination, prefix: str, plan: Plan, shard_format: str, files: Mapping[str, int]
) -> dict[int, WrittenShard]:
    """Return the finished shards of one split, by their numbers in the plan.

    Args:
        folder: the destination.
        prefix: what stands before names of the split: ``""`` or ``"train/"``.
        plan: that of the split, which those shards were written by.
        shard_format: of the shards.
        files: what is in the destination, with sizes.

    Raises:
        DestinationError, StorageError: a record cannot be read.
    """
    planned = np.diff(plan.starts).tolist()
    names = [prefix + shard_name(number, shard_format) for number in range(len(plan))]
    numbers = [number for number, name in enumerate(names) if _may_be_finished(name, files)]

    def read(number: int) -> WrittenShard | None:
        return _finished(folder, names[number], planned[number], files)

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        found = zip(numbers, pool.map(read, numbers), strict=True)
        return {number: written for number, written in found if written is not None}


def unfinished_files(
    prefix: str, finished: Mapping[int, WrittenShard], shard_format: str, files: Mapping[str, int]
) -> list[str]:
    """Return the files of one split that no finished shard has: staged, or written before a record."""
    kept = set()
    for number, written in finished.items():
        name = prefix + shard_name(number, shard_format)
        kept |= {name, index_name(name)} if written.shard else set()
        kept |= {bad_list_name(name)} if written.bad else set()
    inside = (name for name in files if name.rpartition("/")[0] == prefix.rstrip("/"))
    return [name for name in inside if name.startswith(f"{prefix}shard-") and name not in kept]


def _may_be_finished(name: str, files: Mapping[str, int]) -> bool:
    return (name in files and index_name(name) in files) or bad_list_name(name) in files


def _finished(folder: Destination, name: str, planned: int, files: Mapping[str, int]) -> WrittenShard | None:
    """Return a shard if its record says that it is finished."""
    bad: list[BadImage] = []
    shard = None
    if bad_list_name(name) in files:
        with contextlib.suppress(ValueError, TypeError):  # cut: then the count will not be right
            bad = parse_bad(folder.read(bad_list_name(name)))
    if name in files and index_name(name) in files:
        shard = _record(name, files[name], folder.read(index_name(name)))
    samples = shard.samples if shard else 0
    return WrittenShard(shard=shard, bad=bad) if samples + len(bad) == planned else None


def _record(name: str, size_bytes: int, index: bytes) -> ShardRecord | None:
    """Return the record of a shard in the manifest, from its index; None if that is not whole or the shard is cut."""
    try:
        with pa.ipc.open_file(pa.py_buffer(index)) as reader:
            table = reader.get_batch(0)
            digest = reader.schema.metadata[b"shard_digest"].decode("ascii")
            ends = sample_ends({column: table.column(column) for column in reader.schema.names})
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError):
        return None
    if size_bytes < int(ends[-1]):
        return None
    return ShardRecord(
        name=name.rpartition("/")[2],
        samples=table.num_rows,
        size_bytes=size_bytes,
        digest=digest,
        index_digest=xxhash.xxh3_128_hexdigest(index),
        segments=segment_starts(ends, size_bytes),
    )
