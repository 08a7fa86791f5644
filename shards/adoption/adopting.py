"""Adopting data where they lie: a manifest and indexes for shards that others have written, without moving a byte.

What an adoption promises, in order; if the code disagrees, the code is wrong:

1. *Checked first*: a source or a destination that cannot be used is refused, and nothing remains of the attempt.
2. *Surveyed*: every shard is read once, in worker processes, in large pieces; its survey
   (`feeder.shards.adoption.surveys`) is written into ``.adopting`` in the destination. A survey that is there already,
   of a shard whose size is the same, is
   kept: so an adoption that was interrupted, at whatever moment, goes on where it was.
3. *Complete*: a sample that has an image stands in the index in the order of its shard, also when its image cannot be
   parsed (then of unknown format and 0×0 pixels: bad in training, and replaced there). Samples without an image are
   left out and counted.
4. *Committed*: indexes are written when the fields of all shards are known, manifests after them; ``.adopting`` goes.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from feeder.errors import ConfigError
from feeder.shards.adoption.claiming import LOCK_NAME, AdoptionFolder, claim_adoption, is_in_place, prefix_of
from feeder.shards.adoption.finding import AdoptableSplit, find_adoptable
from feeder.shards.adoption.indexes import (
    AdoptedField,
    AdoptedIndex,
    FoundFields,
    Labels,
    SortedLabels,
    adopted_index,
    column_values,
    folder_fields,
    mds_fields_adopted,
    tar_fields,
)
from feeder.shards.adoption.surveys import Survey, SurveyTask, load_survey, survey
from feeder.shards.archives.mds import MdsFields, MdsShard, mds_fields, walk_mds
from feeder.shards.building.workers import run_tasks
from feeder.shards.dataset.manifest import MANIFEST_NAME, Manifest, encode_manifest, new_manifest
from feeder.shards.dataset.shard_table import ShardRecord, segment_starts, shard_table
from feeder.shards.destinations.local import hold_marker
from feeder.shards.errors import DestinationError, ShardsError, SourceError
from feeder.shards.formats.index import encode_index, index_name
from feeder.shards.reading.folder import FILES_PER_GROUP
from feeder.shards.sources.options import SourceOptions
from feeder.shards.sources.webdataset import archive_prefixes
from feeder.shards.storage import open_folder

BYTES_PER_WORKER = 256 << 20  # a process takes half a second to start, in which one alone reads as much


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedDataset:
    """One dataset that was adopted: a whole one, or a split.

    Attributes:
        url: the path or URL of the folder with its manifest and indexes.
        manifest: its manifest.
        unreadable: samples whose image has a header that cannot be parsed.
        dropped: samples that have no image, which were left out.
        labels_look_sorted: labels come in runs, though the dataset is taken as shuffled.
    """

    url: str
    manifest: Manifest
    unreadable: int
    dropped: int
    labels_look_sorted: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptReport:
    """What an adoption did.

    Attributes:
        datasets: one entry, or one a split.
        surveyed, kept: shards that were read now, and that an earlier run had read.
    """

    datasets: list[AdoptedDataset]
    surveyed: int
    kept: int


def adopt(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    options: SourceOptions | None = None,
    *,
    workers: int = 1,
    start: Callable[[int, int], Callable[[int, int], None]] | None = None,
) -> AdoptReport:
    """Write manifest and indexes for data that others have written, where they lie.

    Args:
        sources: tar archives by path, URL or pattern; or one folder or URL of archives, of an MDS set, or of images;
            see `feeder.shards.adoption.finding`.
        dest: a folder, local or a URL of fsspec, that is empty or does not exist, or that of the shards itself; splits
            go to ``dest/train`` and so on.
        options: the file of classes counts; nothing else does.
        workers: processes that read shards; 1 reads in this process.
        start: called with the number of shards to read and their bytes; returns what is called with numbers of shards
            and bytes done since its last call.

    Raises:
        ConfigError: no workers.
        SourceError: nothing to adopt, or data that cannot be adopted: cut, compressed, or of mixed fields.
        DestinationError: the destination is not empty, in use, or cannot be written.
        StorageError: the storage of the source answered with an error.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    options = options or SourceOptions()
    listed = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    splits = find_adoptable(listed, options)
    with claim_adoption(dest, splits) as claimed:
        scratch = claimed.scratch
        try:
            jobs = [job for split in splits for job in _jobs(split, scratch)]
            surveyed = _run(jobs, workers, scratch / LOCK_NAME, start)
            datasets = _commit(claimed, splits, jobs, options)
        except ShardsError:
            raise
        except OSError as error:
            raise DestinationError(
                f"cannot write {scratch}: {error.strerror or error}; free space or choose another destination, and run "
                "the command again: what was read is kept"
            ) from error
    return AdoptReport(datasets=datasets, surveyed=surveyed, kept=len(jobs) - surveyed)


# Surveys -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """One shard, and where its survey is; `mds` of MDS shards, what their columns become."""

    split: AdoptableSplit
    number: int
    path: Path
    mds: MdsFields | None

    @property
    def name(self) -> str:
        return self.split.names[self.number]

    @property
    def size_bytes(self) -> int:
        return int(self.split.sizes[self.number])

    @property
    def where(self) -> str:
        return open_folder(self.split.root).where(self.name)

    def task(self) -> SurveyTask:
        """Return what a worker gets: made when it is its turn, as it holds the paths of a group."""
        task = SurveyTask(root=self.split.root, name=self.name, size_bytes=self.size_bytes, out=str(self.path))
        if self.mds is not None:
            task = dataclasses.replace(task, mds=(self.split.mds[self.number], self.mds))
        if (table := self.split.table) is not None:
            first = self.number * FILES_PER_GROUP
            rows = np.arange(first, min(first + FILES_PER_GROUP, len(table)))
            labels = table.labels[rows].tolist() if table.labelled else []
            task = dataclasses.replace(task, paths=list(table.stored["image"].files.take(rows)), labels=labels)
        return task

    def load(self) -> Survey | None:
        return load_survey(self.path, self.name, self.size_bytes)


def _jobs(split: AdoptableSplit, scratch: Path) -> Iterator[_Job]:
    fields = _mds_fields(split) if split.mds else None
    for number, name in enumerate(split.names):
        path = scratch / f"{xxhash.xxh3_128_hexdigest(f'{split.split}/{name}'.encode())}.arrow"  # names may be long
        yield _Job(split=split, number=number, path=path, mds=fields)


def _mds_fields(split: AdoptableSplit) -> MdsFields:
    """Return what the columns of an MDS set become, judged by its first sample."""
    shard: MdsShard = split.mds[0]
    folder = open_folder(split.root)
    where = folder.where(shard.name)

    def read(offset: int, size: int) -> bytes:
        return folder.read_ranges([(shard.name, offset, size)])[0]

    try:
        first = next(walk_mds(read, shard, where))
    except FileNotFoundError as error:
        raise SourceError(f"{where} is missing, but the set's index lists it; copy it again from its origin") from error
    return mds_fields(shard, first.values, split.root)


def _run(
    jobs: Sequence[_Job],
    workers: int,
    lock: Path,
    start: Callable[[int, int], Callable[[int, int], None]] | None,
) -> int:
    """Survey the shards that have no survey yet; return how many."""
    missing = [job for job in jobs if job.load() is None]
    size_bytes = sum(job.size_bytes for job in missing)
    advance = start(len(missing), size_bytes) if start else None
    processes = min(workers, len(missing), 1 + size_bytes // BYTES_PER_WORKER) or 1
    hold = functools.partial(hold_marker, lock)
    with contextlib.closing(run_tasks(survey, (job.task() for job in missing), processes, hold)) as finished:
        for task, _ in finished:
            if advance:
                advance(1, task.size_bytes)
    return len(missing)


# Indexes and manifests -----------------------------------------------------------------------------------------------


def _commit(
    claimed: AdoptionFolder, splits: Sequence[AdoptableSplit], jobs: Sequence[_Job], options: SourceOptions
) -> list[AdoptedDataset]:
    """Write the indexes of all splits, then their manifests."""
    common = _settle(splits, jobs, options)
    datasets = [_write_indexes(claimed, split, [job for job in jobs if job.split is split], common) for split in splits]
    folder = claimed.folder
    folder.flush()
    claimed.check()
    for split, dataset in zip(splits, datasets, strict=True):
        folder.put(prefix_of(split) + MANIFEST_NAME, encode_manifest(dataset.manifest))
    folder.flush()
    return datasets


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What the shards of all splits have in common.

    Attributes:
        fields, classes, labels: one mapping for all.
        prefixes: what stands before the keys of each shard; empty where no two shards hold the same key.
    """

    fields: Sequence[AdoptedField]
    classes: tuple[str, ...]
    labels: Labels
    prefixes: Mapping[_Job, str]


def _settle(splits: Sequence[AdoptableSplit], jobs: Sequence[_Job], options: SourceOptions) -> _Common:
    """Return what the surveys of all shards have in common."""
    root = splits[0].root
    labels = Labels(options.classes())
    prefixes: dict[_Job, str] = {}
    if (table := splits[0].table) is not None:
        fields = folder_fields(table.labelled)
        return _Common(fields=fields, classes=table.classes, labels=labels, prefixes=prefixes)
    if jobs[0].mds is not None:
        fields = mds_fields_adopted(jobs[0].mds)
    else:
        fields = _tar_fields(jobs, root)
        prefixes = _prefixes(jobs)
    label = next((field for field in fields if field.name == "label"), None)
    if label is None:
        return _Common(fields=fields, classes=(), labels=labels, prefixes=prefixes)
    for job in jobs:
        labels.add(column_values(_loaded(job), label, job.where))
    return _Common(fields=fields, classes=labels.settle(root), labels=labels, prefixes=prefixes)


def _tar_fields(jobs: Sequence[_Job], root: str) -> list[AdoptedField]:
    found = FoundFields()
    for job in jobs:
        found.add(_loaded(job), job.where)
    if not found.parts:
        raise SourceError(f"there are no samples in {root}; expected members named like 0001.jpg and 0001.cls")
    fields = tar_fields(found)
    if fields[0].name != "image":
        raise SourceError(
            f"no sample in {root} has an image: its members end in {', '.join(sorted(found.parts))}; expected jpg, "
            "png, webp and the like"
        )
    return fields


def _prefixes(jobs: Sequence[_Job]) -> dict[_Job, str]:
    """Return what stands before keys, if two archives hold the same one, as in a build of them."""
    keys = (key for job in jobs for key in _loaded(job).table.column("key").to_pylist())
    digests = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64)
    if len(np.unique(digests)) == len(digests):
        return {}
    return dict(zip(jobs, archive_prefixes([job.where for job in jobs]), strict=True))


def _loaded(job: _Job) -> Survey:
    found = job.load()
    if found is None:
        raise DestinationError(f"{job.path} vanished or was altered while data were adopted; run the command again")
    return found


def _write_indexes(
    claimed: AdoptionFolder,
    split: AdoptableSplit,
    jobs: Sequence[_Job],
    common: _Common,
) -> AdoptedDataset:
    """Write the indexes of a split; return its dataset, whose manifest is not written yet."""
    folder = claimed.folder
    order = SortedLabels()
    records = []
    unreadable = dropped = 0
    for job in jobs:
        claimed.check()
        found = _loaded(job)
        values: dict[str, Any] = {
            field.name: column_values(found, field, job.where) for field in common.fields if not field.field.stored
        }
        index = adopted_index(found, job.name, common.fields, values, common.labels, common.prefixes.get(job))
        unreadable += index.unreadable
        dropped += index.dropped
        order.add(index.labels)
        if index.samples:
            data = encode_index(index.columns, found.digest)
            folder.put(prefix_of(split) + index_name(job.name), data)
            records.append(_record(job, found, index, xxhash.xxh3_128_hexdigest(data)))
    if not records:
        raise SourceError(f"no sample in {split.root} has an image; expected members named like 0001.jpg")
    shuffled = split.format != "folder"
    manifest = new_manifest(
        shards=shard_table(records),
        fields={field.name: field.field for field in common.fields},
        classes=common.classes,
        split=split.split,
        shuffled=shuffled,
        build={"adopted": True},
        shard_format=split.format,
        origin=None if is_in_place(folder.url, split) else split.root,
    )
    return AdoptedDataset(
        url=folder.where(prefix_of(split)).rstrip("/"),
        manifest=manifest,
        unreadable=unreadable,
        dropped=dropped,
        labels_look_sorted=shuffled and order.look_sorted,
    )


def _record(job: _Job, found: Survey, index: AdoptedIndex, index_digest: str) -> ShardRecord:
    return ShardRecord(
        name=job.name,
        samples=index.samples,
        size_bytes=max(1, found.size_bytes),  # a group of empty files has none
        digest=found.digest,
        index_digest=index_digest,
        dropped=index.dropped,
        segments=() if job.split.table is not None else segment_starts(index.ends, found.size_bytes),
    )
