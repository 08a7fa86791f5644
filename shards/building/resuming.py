"""What an interrupted build has finished: the same command goes on from there.

A shard is finished when its record is there, which is written after the shard itself: its index, or for a shard without
a good sample the list of its bad ones. ``shard-000012.bad.jsonl`` lists the bad samples of a shard, one JSON object a
line; it is written before the index and is gone when the build is complete. A record counts only if good and bad
samples together are as many as the plan put into the shard.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import xxhash

from feeder.shards.building.bad_samples import bad_list_name, parse_bad
from feeder.shards.building.packing import WrittenShard, sample_ends
from feeder.shards.building.plan_file import PlanRecord, parse_record, refuse_another
from feeder.shards.building.planning import Plan
from feeder.shards.dataset.manifest import MANIFEST_NAME
from feeder.shards.dataset.shard_table import ShardRecord, segment_starts
from feeder.shards.destinations.protocol import PLAN_NAME, SPOOL_NAME, Destination, not_empty
from feeder.shards.formats.index import index_name
from feeder.shards.formats.known import shard_name
from feeder.shards.table import SampleTable

_READ_AT_ONCE = 16  # records are small: what takes time behind a URL is to wait for each


def begin(
    folder: Destination,
    record: PlanRecord,
    tables: Sequence[SampleTable],
    plans: Sequence[Plan],
    shard_format: str,
    *,
    restart: bool = False,
) -> dict[str, WrittenShard] | None:
    """Make a claimed destination ready to be written; return the finished shards by name, None if all is committed.

    Args:
        folder: the destination.
        record: of this build.
        tables, plans: its splits.
        shard_format: of the shards.
        restart: remove what an interrupted build has written.

    Raises:
        ResumeError: what was begun there is another build.
        DestinationError: it holds a finished dataset, or cannot be read or written.
    """
    files = dict(folder.files())
    if PLAN_NAME not in files and any(name.rpartition("/")[2] == MANIFEST_NAME for name in files):
        raise not_empty(folder.url, "a finished dataset")  # its build was killed just before the marker went
    if restart or PLAN_NAME not in files:
        folder.remove(
            name for name in files if name != SPOOL_NAME
        )  # nothing vouches for what is left, and the plan comes first by its name
        folder.put(PLAN_NAME, record.encoded())
        return {}
    refuse_another(parse_record(folder.read(PLAN_NAME), folder.where(PLAN_NAME)), record, tables, folder.url)
    if all(table.prefix + MANIFEST_NAME in files for table in tables):
        return None
    finished: dict[str, WrittenShard] = {}
    for table, plan in zip(tables, plans, strict=True):
        finished |= finished_shards(folder, table.prefix, plan, shard_format, files)
    kept = {PLAN_NAME, SPOOL_NAME, *(file for name, written in finished.items() for file in _files_of(name, written))}
    folder.remove(name for name in files if name not in kept)
    return finished


def finished_shards(
    folder: Destination, prefix: str, plan: Plan, shard_format: str, files: Mapping[str, int]
) -> dict[str, WrittenShard]:
    """Return the finished shards of one split, by name.

    Args:
        folder: the destination.
        prefix: what stands before names of the split: ``""`` or ``"train/"``.
        plan: that of the split, which those shards were written by.
        shard_format: of the shards.
        files: what is in the destination, with sizes.

    Raises:
        DestinationError, StorageError: a record cannot be read.
    """
    planned = {prefix + shard_name(number, shard_format): len(rows) for number, rows in enumerate(plan)}
    names = [name for name in planned if _may_be_finished(name, files)]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        found = pool.map(lambda name: _finished(folder, name, files), names)
        return {
            name: written
            for name, written in zip(names, found, strict=True)
            if written is not None and written.planned == planned[name]
        }


def _files_of(name: str, written: WrittenShard) -> list[str]:
    """Return the files that a finished shard has in the destination."""
    return [name, index_name(name)] * bool(written.shard) + [bad_list_name(name)] * bool(written.bad)


def _may_be_finished(name: str, files: Mapping[str, int]) -> bool:
    return (name in files and index_name(name) in files) or bad_list_name(name) in files


def _finished(folder: Destination, name: str, files: Mapping[str, int]) -> WrittenShard | None:
    """Return what the records of a shard say; None if one of them is not whole."""
    bad, shard = [], None
    try:
        if bad_list_name(name) in files:
            bad = parse_bad(folder.read(bad_list_name(name)))
    except (ValueError, TypeError):
        return None
    if name in files and index_name(name) in files:
        shard = _record(name, files[name], folder.read(index_name(name)))
    return WrittenShard(shard=shard, bad=bad)


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
