"""The records of the shards of a dataset whose manifest is lost, and its consolidated columns, as its files tell them.

A record names what it is certain of. What is held against it in vain is damaged: the digest of no file stands for that
of a shard or an index that cannot be trusted, so that `feeder.shards.diagnosis` finds the damage as in any dataset.
"""

import dataclasses
import re
from collections.abc import Container, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from feeder.shards.content_check import ContentCheck
from feeder.shards.fields import Field
from feeder.shards.found_shards import UNKNOWN_DIGEST, FoundShard, shard_number
from feeder.shards.index import ShardIndex
from feeder.shards.index_rebuilding import RebuiltIndex, rebuild_index
from feeder.shards.manifest import COLUMNS_FOLDER, ColumnFile, Manifest
from feeder.shards.packing import sample_ends
from feeder.shards.sequential import SequentialShard
from feeder.shards.shard_table import ShardRecord, segment_starts
from feeder.shards.storage import Folder

_COLUMN = re.compile(rf"{COLUMNS_FOLDER}/(.+)\.([0-9a-f]{{8}})\.arrow")


def found_records(
    folder: Folder,
    shard_format: str,
    fields: Mapping[str, Field],
    found: Sequence[FoundShard],
    lines: Sequence[ShardRecord],
    keys: pa.ChunkedArray | None,
) -> list[ShardRecord]:
    """Return the records of all shards, those that the damaged manifest still names first, in its order.

    Args:
        folder, shard_format, fields: of the dataset.
        found: its shards.
        lines: what the damaged manifest says of them.
        keys: the column of the keys of all samples, from `newest_keys`.

    Raises:
        StorageError: a shard cannot be read.
    """
    names = _true_names(found, lines)
    listed = {names[record.name]: dataclasses.replace(record, name=names[record.name]) for record in lines}
    there = {shard.name for shard in found}
    records = {name: record for name, record in listed.items() if name not in there}  # missing
    for shard in found:
        line = listed.get(shard.name)
        try:
            records[shard.name] = found_record(folder, shard_format, fields, shard, line)
        except FileNotFoundError:  # nor is its index there
            if line is not None:
                records[shard.name] = line
    if list(listed) == sorted(listed, key=shard_number):  # as builds and changes have them
        in_order = sorted(records.values(), key=lambda record: shard_number(record.name))
        return _without_dropped(in_order, found, keys)
    order = dict.fromkeys([*listed, *(shard.name for shard in found)])
    places = {name: place for place, name in enumerate(order)}
    in_order = sorted(records.values(), key=lambda record: places[record.name])
    return _without_dropped(in_order, found, keys)


def newest_keys(folder: Folder, files: Mapping[str, int], older: Manifest | None) -> pa.ChunkedArray | None:
    """Return the consolidated column of keys that belongs to no earlier generation, if there is one."""
    before = set() if older is None else {column.file for column in older.columns.values()}
    names = [file for file in files if (match := _COLUMN.fullmatch(file)) and match[1] == "key" and file not in before]
    if len(names) != 1:
        return None
    data = folder.read(names[0])
    match = _COLUMN.fullmatch(names[0])
    if match is None or not xxhash.xxh3_128_hexdigest(data).startswith(match[2]):
        return None
    with pa.ipc.open_file(data) as reader:
        return reader.read_all().column(0)


def _without_dropped(
    records: list[ShardRecord], found: Sequence[FoundShard], keys: pa.ChunkedArray | None
) -> list[ShardRecord]:
    """Return records in which the index of a shard counts as lost that has more samples than the newest column of keys.

    That index is of an earlier generation: the one that left these samples out is gone.
    """
    if keys is None:
        return records
    indexes = {shard.name: shard.index for shard in found}
    changed = []
    for record in records:
        index = indexes.get(record.name)
        if index is not None and index.num_samples == record.samples:
            kept = int(pc.sum(pc.is_in(index.column("key"), value_set=keys.combine_chunks())).as_py())
            if kept < record.samples:
                dropped = record.dropped + record.samples - kept
                forgotten = dataclasses.replace(record, samples=kept, dropped=dropped, index_digest=UNKNOWN_DIGEST)
                changed += [forgotten] if kept else []
                continue
        changed.append(record)
    blind = [place for place, record in enumerate(changed) if indexes.get(record.name) is None]
    rest = len(keys) - sum(record.samples for place, record in enumerate(changed) if place not in blind)
    if len(blind) == 1 and 0 < rest < changed[blind[0]].samples:
        more = changed[blind[0]].samples - rest
        changed[blind[0]] = dataclasses.replace(changed[blind[0]], samples=rest, dropped=more)
    return changed


def _true_names(found: Sequence[FoundShard], lines: Sequence[ShardRecord]) -> dict[str, str]:
    """Return the names of shards by those that a damaged manifest gives them, which may be altered themselves."""
    there = {shard.name for shard in found}
    by_digest = {shard.index_digest: shard.name for shard in found} | {
        shard.shard_digest: shard.name for shard in found
    }
    return {
        record.name: record.name
        if record.name in there
        else by_digest.get(record.digest) or by_digest.get(record.index_digest) or record.name
        for record in lines
    }


def found_record(
    folder: Folder, shard_format: str, fields: Mapping[str, Field], shard: FoundShard, line: ShardRecord | None
) -> ShardRecord:
    """Return a record of a shard, such that what it names in vain is damaged.

    Where nothing tells how many samples it held, the record has one more than can be found.

    Args:
        folder, shard_format, fields: of the dataset; fields that no shard holds do not count.
        shard: the shard and its index.
        line: what the damaged manifest says of it, if that can still be read.

    Raises:
        StorageError: the shard cannot be read.
    """
    try:
        there = SequentialShard(folder, shard.name)
    except FileNotFoundError:
        if shard.index is None:
            raise
        return _record(shard, shard.index, shard.shard_digest, 1, 0)
    size_bytes = there.size_bytes
    held = {name: field for name, field in fields.items() if _held(field, name, shard.index)}
    rebuilt = rebuild_index(there, shard_format, held)
    digest = there.finish()
    index = shard.index
    if index is not None and digest == shard.shard_digest and not rebuilt.damage:
        dropped = _left_out(index, rebuilt.columns)
        known = line is not None and line.index_digest == shard.index_digest
        if dropped is not None or known:
            return _record(shard, index, digest, size_bytes, dropped or 0)
        # the index is damaged: what it left out must not come back
        more = max(len(rebuilt) - index.num_samples, 0)
        samples = line.samples if line is not None else len(rebuilt) - more
        return dataclasses.replace(
            _record(shard, index, digest, size_bytes, more), samples=samples, index_digest=UNKNOWN_DIGEST
        )
    if index is not None:
        return _record(shard, index, shard.shard_digest, size_bytes, 0)
    samples = line.samples if line is not None else len(rebuilt)
    right = line.digest == digest if line is not None else _contents_are_right(folder, shard.name, rebuilt)
    if rebuilt.damage or not right:
        digest = UNKNOWN_DIGEST
    if rebuilt.damage and line is None:
        samples += 1  # one is lost at least
    return ShardRecord(
        name=shard.name,
        samples=samples,
        size_bytes=size_bytes,
        digest=digest,
        index_digest=line.index_digest if line is not None else UNKNOWN_DIGEST,
        index=line.index if line is not None else None,
        dropped=line.dropped if line is not None else int(shard.forgot),
    )


def _held(field: Field, name: str, index: ShardIndex | None) -> bool:
    return field.stored or index is None or name in index


def _record(shard: FoundShard, index: ShardIndex, digest: str, size_bytes: int, dropped: int) -> ShardRecord:
    columns = {name: index.column(name) for name in index.names if name.endswith((".offset", ".size", ".crc32c"))}
    return ShardRecord(
        name=shard.name,
        samples=index.num_samples,
        size_bytes=size_bytes,
        digest=digest,
        index_digest=shard.index_digest,
        index=shard.index_name,
        dropped=dropped,
        segments=segment_starts(sample_ends(columns), size_bytes),
    )


def _contents_are_right(folder: Folder, name: str, rebuilt: RebuiltIndex) -> bool:
    """Say whether contents have the CRCs that their shard names; of a tar, which names none, they always have."""
    if not rebuilt.columns:
        return False
    contents = ContentCheck(ShardIndex(pa.record_batch(list(rebuilt.columns.values()), names=list(rebuilt.columns))))
    SequentialShard(folder, name, contents.take).finish()
    return not contents.finish()


def _left_out(index: ShardIndex, columns: Mapping[str, pa.Array]) -> int | None:
    """Return how many samples of a shard its index leaves out; None if the two contradict each other."""
    rows = pc.index_in(index.column("key"), value_set=columns["key"])
    if rows.null_count:
        return None
    for name, column in columns.items():
        if name not in index or column.take(rows).to_pylist() != index.values(name):
            return None
    return len(columns["key"]) - index.num_samples


# Columns ---------------------------------------------------------------------------------------------------------


def found_columns(
    folder: Folder,
    files: Iterable[str],
    found: Sequence[FoundShard],
    records: Sequence[ShardRecord],
    older: Manifest | None,
    listed: Container[str],
) -> tuple[dict[str, ColumnFile], list[str]]:
    """Return the consolidated columns that fit the samples, and the names of those that are lost.

    Args:
        folder, files: of the dataset.
        found, records: its shards.
        older: the newest earlier generation.
        listed: the files that the damaged manifest names.
    """
    num_samples = sum(record.samples for record in records)
    fitting: dict[str, list[tuple[str, str]]] = {}
    names = set()
    forgot = any(shard.forgot for shard in found)  # then a column of before would bring back what was dropped
    before = set() if older is None else {column.file for column in older.columns.values()}
    for file in files:
        if not (match := _COLUMN.fullmatch(file)) or (forgot and (older is None or file in before)):
            continue
        names.add(match[1])
        data = folder.read(file)
        digest = xxhash.xxh3_128_hexdigest(data)
        if digest.startswith(match[2]) and _rows_in(data) == num_samples:
            fitting.setdefault(match[1], []).append((file, digest))
    columns: dict[str, ColumnFile] = {}
    for name, fit in sorted(fitting.items()):
        chosen = [one for one in fit if one[0] in listed] or fit
        if len(chosen) == 1 and (name != "key" or _has_keys(folder, chosen[0][0], found, records)):
            columns[name] = ColumnFile(file=chosen[0][0], digest=chosen[0][1])
    if "key" in names and "key" not in columns:  # the samples are others than those of the columns
        columns = {}
    return columns, sorted(names - columns.keys())


def _rows_in(data: bytes) -> int:
    try:
        with pa.ipc.open_file(data) as reader:
            return int(reader.read_all().num_rows)
    except (pa.ArrowException, ValueError, OSError):
        return -1


def _has_keys(folder: Folder, file: str, found: Sequence[FoundShard], records: Sequence[ShardRecord]) -> bool:
    """Say whether a column of keys is that of the samples, as far as indexes are left."""
    with pa.ipc.open_file(folder.read(file)) as reader:
        keys = reader.read_all().column(0)
    by_name = {shard.name: shard.index for shard in found}
    start = 0
    for record in records:
        index = by_name.get(record.name)
        run = keys.slice(start, record.samples).to_pylist()
        if index is not None and index.num_samples == record.samples and index.values("key") != run:
            return False
        start += record.samples
    return True
