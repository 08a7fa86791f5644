"""Removing samples from a dataset: a new generation without them, and on demand without their bytes.

A drop writes a new index, without the rows, for each shard concerned, and the consolidated columns once more; the
shard's bytes stay, and older generations with them. Programs that read shards without our index still find the samples.

A purge rewrites every shard of which samples were dropped, now or before, under a new name, and takes the old shards,
indexes and columns away with the generations that need them (`feeder.shards.changing.generations.Change.purge`), and
the lines that name them out of the lists of duplicates and bad images (`feeder.shards.changing.forgetting`). After it
no file of the dataset holds a byte, a name or a text of the samples; only ``lost-samples.jsonl``, where a repair lists
what was lost, stays as it is. A job that still reads an older generation fails at the next shard that it opens; copies
elsewhere (caches, other folders) are not touched.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.building.packing import Advance, ShardTask, WrittenShard, no_progress, sample_ends
from feeder.shards.building.workers import write_shards
from feeder.shards.building.writing import SHARDS_PER_WORKER
from feeder.shards.changing.forgetting import forget_purged
from feeder.shards.changing.generations import Change, change_dataset
from feeder.shards.columns.consolidated import column_runs, rewrite_columns
from feeder.shards.columns.key_lists import find_keys
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.dataset.shard_table import ShardRecord, segment_starts, shard_table
from feeder.shards.errors import ShardError, SourceError
from feeder.shards.formats.index import encode_index
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.images.headers import MAX_PIXELS
from feeder.shards.reading.opening import load_index
from feeder.shards.sources.dataset import dataset_table
from feeder.shards.storage import Folder
from feeder.shards.table import SampleTable

_NAMED = 3  # keys in a sentence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DropReport:
    """What a drop did.

    Attributes:
        manifest: the current generation.
        dropped: samples removed.
        missing: keys that no sample has, in the order in which they were given.
        shards: how many got a new index, or are no longer there.
        rewritten: how many were rewritten without the bytes of dropped samples.
        gone: the numbers of the generations that were taken away.
    """

    manifest: Manifest
    dropped: int
    missing: list[str]
    shards: int = 0
    rewritten: int = 0
    gone: list[int] = dataclasses.field(default_factory=list)


def drop(
    dataset: str | os.PathLike[str],
    keys: Iterable[str],
    *,
    ignore_missing: bool = False,
    purge: bool = False,
    workers: int = 1,
    start: Callable[[int], Advance] | None = None,
) -> DropReport:
    """Remove samples from a dataset, and commit the generation without them.

    Args:
        dataset: the folder or URL of one dataset: of one split.
        keys: of the samples; none is enough to purge what was dropped before.
        ignore_missing: keys that no sample has are reported, not refused.
        purge: also remove the bytes of all samples ever dropped, and the generations that have them.
        workers: processes that rewrite shards.
        start: called with the number of samples to rewrite; returns what is called with the number done since.

    Raises:
        ConfigError: no workers.
        SourceError: no key, one that no sample has, or nothing would be left.
        ShardError: a shard or an index is missing, cut or altered.
        DestinationError: another process is changing the dataset, or it cannot be written.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    wanted = list(dict.fromkeys(keys))
    if not wanted and not purge:
        raise SourceError("no keys to drop; expected one a line")
    with change_dataset(dataset) as change:
        _refuse_purge_of_others(change, purge=purge)
        if purge:
            change.older()  # a generation that cannot be read would keep what is to go
        kept, missing = _kept(change, wanted)
        if missing and not ignore_missing:
            raise _unknown(change, missing, len(wanted))
        if wanted and not kept.any():
            raise SourceError(
                f"all {len(kept)} samples of {change.folder.url} would be dropped; remove the dataset itself"
            )
        remaining = list(_without(change, kept))
        records = [record for record, _ in remaining if record is not None]
        concerned = sum(changed for _, changed in remaining)
        rewritten = sum(record.dropped > 0 for record in records) if purge else 0
        if rewritten:
            records = _rewritten(change, records, workers, start)
        manifest = change.parent
        if concerned or rewritten:
            columns = rewrite_columns(change.parent, change.folder, change.out, kept=kept)
            manifest = change.commit(shard_table(records), columns=columns)
        gone = change.concerned(manifest) if purge else []
        if gone:
            forget_purged(change.folder, change.out, manifest, gone)
            change.purge(manifest, gone)
    return DropReport(
        manifest=manifest,
        dropped=int(len(kept) - kept.sum()),
        missing=missing,
        shards=concerned,
        rewritten=rewritten,
        gone=sorted(older.generation for older in gone),
    )


def _refuse_purge_of_others(change: Change, *, purge: bool) -> None:
    """Raise `SourceError` if shards that are not the dataset's own would have to be rewritten."""
    manifest = change.parent
    if purge and (manifest.origin is not None or manifest.adopted or not SHARD_FORMATS[manifest.format].writer):
        where = manifest.origin or change.folder.url
        raise SourceError(
            f"the shards of {change.folder.url} were adopted from {where} and are not ours to rewrite; drop without "
            "--purge, and remove the bytes there, or convert the dataset first"
        )


def _kept(change: Change, keys: list[str]) -> tuple[NDArray[np.bool_], list[str]]:
    """Return bool[n], which samples stay, and the keys that none has."""
    runs = column_runs(change.parent, change.folder, "key", len(keys))
    dropped, missing = find_keys(runs, keys)
    return ~dropped, missing


def _unknown(change: Change, missing: list[str], count: int) -> SourceError:
    named = ", ".join(map(repr, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
    return SourceError(
        f"{len(missing)} of {count} keys are of no sample of {change.folder.url}: {named}; correct them, or leave them "
        "out with --ignore-missing; the bytes of what was dropped before go with --purge"
    )


def _without(change: Change, kept: NDArray[np.bool_]) -> Iterator[tuple[ShardRecord | None, bool]]:
    """Yield each shard without the samples that go, None where nothing is left, and whether that is a change."""
    manifest = change.parent
    firsts = manifest.first_ids
    for number in range(len(manifest.shards)):
        record = manifest.shards.record(number)
        rows = np.flatnonzero(kept[firsts[number] : firsts[number + 1]])
        if len(rows) == record.samples:
            yield record, False
        elif not len(rows):
            yield None, True
        else:
            index = load_index(change.folder, manifest, number)
            columns = {name: index.column(name).take(pa.array(rows)) for name in index.names}
            data = encode_index(columns, record.digest)
            name = change.named(record.name, "idx.arrow")
            change.out.put(name, data)
            shorter = dataclasses.replace(
                record,
                samples=len(rows),
                index=name,
                index_digest=xxhash.xxh3_128_hexdigest(data),
                dropped=record.dropped + record.samples - len(rows),
                segments=segment_starts(sample_ends(columns), record.size_bytes) if record.segments else (),
            )
            yield shorter, True


def _rewritten(
    change: Change, records: list[ShardRecord], workers: int, start: Callable[[int], Advance] | None
) -> list[ShardRecord]:
    """Write the shards of which samples were dropped once more, without these; return all shards."""
    shorter = dataclasses.replace(change.parent, shards=shard_table(records))
    numbers = {
        number: change.named(record.name, change.parent.format)
        for number, record in enumerate(records)
        if record.dropped
    }
    advance = start(sum(records[number].samples for number in numbers)) if start else no_progress
    tasks = (
        ShardTask(
            folder=change.out,
            name=name,
            format=change.parent.format,
            table=_samples(change.folder, shorter, number),
            max_pixels=MAX_PIXELS,  # not asked with on_error="keep"
            on_error="keep",
        )
        for number, name in numbers.items()
    )
    processes = min(workers, max(1, len(numbers) // SHARDS_PER_WORKER))
    with contextlib.closing(write_shards(tasks, processes, change.out, advance)) as results:
        written = {task.name: _whole(task, shard) for task, shard in results}
    return [written[numbers[number]] if number in numbers else record for number, record in enumerate(records)]


def _samples(folder: Folder, manifest: Manifest, number: int) -> SampleTable:
    """Return the samples of a shard of ours as a table of places in it, with the checksums that their bytes have."""
    index = load_index(folder, manifest, number)
    fields = {name: field for name, field in manifest.fields.items() if field.stored or name in index}
    alone = dataclasses.replace(
        manifest, shards=shard_table([manifest.shards.record(number)]), fields=fields, columns={}
    )
    return dataclasses.replace(dataset_table(folder, alone), fields=fields)


def _whole(task: ShardTask, written: WrittenShard) -> ShardRecord:
    """Return the record of a shard that was rewritten; `ShardError` if a sample is not in it."""
    if written.shard is None or written.bad:
        bad, shard = written.bad[0], task.folder.where(task.table.stored["image"].file(0))
        raise ShardError(
            f"{len(written.bad)} of {len(task.table)} samples of {shard} cannot be rewritten, such as {bad.source}: "
            f"{bad.reason}; run 'feeder verify --level full' on the dataset"
        )
    return written.shard
