"""Adding samples to a dataset: new shards behind those it has, of the same format and with the same settings.

New shards are numbered on; the samples of the source are shuffled among themselves with the dataset's seed, if it was
shuffled. Classes are told by their names; new ones get numbers behind those that there are. The source has the fields
that the shards have; columns that were added later by an annotation are missing for the new samples.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feeder.errors import ConfigError
from feeder.shards.building.bad_samples import BadImage, BadLimit, bad_lines, bad_list_name, by_cause
from feeder.shards.building.packing import Advance, ShardTask, WrittenShard, no_progress
from feeder.shards.building.planning import plan_shards, refuse_clashes
from feeder.shards.building.workers import write_shards
from feeder.shards.building.writing import SHARDS_PER_WORKER, BuildOptions
from feeder.shards.changing.generations import Change, change_dataset
from feeder.shards.columns.consolidated import all_indexes, column_runs, rewrite_columns
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.dataset.shard_table import ShardTable, shard_table
from feeder.shards.destinations.protocol import BAD_IMAGES_NAME
from feeder.shards.errors import NoGoodImageError, SourceError
from feeder.shards.formats.index import ShardIndex
from feeder.shards.formats.known import SHARD_FORMATS, shard_name
from feeder.shards.images.rules import NO_RULES, ImageRules, Resize
from feeder.shards.names import readable
from feeder.shards.reading.opening import load_index
from feeder.shards.sources.columns import combined
from feeder.shards.table import SampleTable

_NAMED = 3  # keys in a sentence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AppendReport:
    """What an append did.

    Attributes:
        manifest: the current generation; the one before if there was nothing to add.
        samples, shards: added.
        classes: names of new classes, in order of their numbers.
        skipped: samples of the source whose key the dataset had.
        bad: the images set aside, in the order of the source.
        bad_name: the file in the dataset that lists them, or None when there are none.
    """

    manifest: Manifest
    samples: int
    shards: int
    classes: list[str]
    skipped: int
    bad: list[BadImage]
    bad_name: str | None

    @property
    def bad_by_cause(self) -> dict[str, int]:
        return by_cause(Counter(image.cause for image in self.bad))


def append(
    dataset: str | os.PathLike[str],
    table: SampleTable,
    *,
    skip_existing: bool = False,
    on_error: str = "skip",
    max_bad_fraction: float = 0.01,
    workers: int = 1,
    start: Callable[[int], Advance] | None = None,
) -> AppendReport:
    """Add the samples of a source to a dataset, and commit the generation that has them.

    Args:
        dataset: the folder or URL of one dataset: of one split.
        table: the samples; see `feeder.shards.sources`.
        skip_existing: samples whose key the dataset has are left out; else they are refused.
        on_error, max_bad_fraction: what becomes of bad images; see `feeder.shards.building.writing.BuildOptions`.
        workers: processes that write shards.
        start: called with the number of samples to be written once it is known; returns what takes the progress.

    Raises:
        ConfigError: options that cannot be.
        SourceError: other fields than the dataset's, classes that are numbers in one and have names in the other, keys
            that the dataset has or the source has twice, or too many bad images.
        DestinationError: another process is changing the dataset, or it cannot be written.
        StorageError: the source, or the machine or the mount that holds it, fails.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    with change_dataset(dataset) as change:
        manifest = change.parent
        _refuse_adopted(change)
        table = _aligned(change, table)
        table, skipped = _without_existing(change, table, skip=skip_existing)
        if not len(table):
            return AppendReport(
                manifest=manifest, samples=0, shards=0, classes=[], skipped=skipped, bad=[], bad_name=None
            )
        options = _options(manifest, on_error, max_bad_fraction)
        written = _write(change, table, options, workers, start)
        records = [shard.shard for shard in written if shard.shard is not None]
        bad = sorted((image for shard in written for image in shard.bad), key=lambda image: image.source.split("/"))
        bad_name = change.named(BAD_IMAGES_NAME, "jsonl") if bad else None
        if bad_name is not None:
            change.out.put(bad_name, bad_lines(bad))
        shards = shard_table([*(manifest.shards.record(i) for i in range(len(manifest.shards))), *records])
        columns = rewrite_columns(
            manifest, change.folder, change.out, added=lambda: _new_indexes(change, shard_table(records))
        )
        committed = change.commit(shards, classes=table.classes, columns=columns)
    return AppendReport(
        manifest=committed,
        samples=sum(record.samples for record in records),
        shards=len(records),
        classes=list(table.classes[len(manifest.classes) :]),
        skipped=skipped,
        bad=bad,
        bad_name=bad_name,
    )


def _refuse_adopted(change: Change) -> None:
    manifest = change.parent
    if manifest.origin is not None or manifest.adopted or not SHARD_FORMATS[manifest.format].writer:
        raise SourceError(
            f"{change.folder.url} was adopted from {manifest.origin or 'shards of others'}, where nothing is written; "
            "convert it first, then append to the new dataset"
        )


def _options(manifest: Manifest, on_error: str, max_bad_fraction: float) -> BuildOptions:
    """Return the settings that a dataset was built with, as far as it says."""
    names = ("shard_bytes", "shard_samples", "max_pixels")
    return BuildOptions(
        format=manifest.format,
        seed=manifest.shuffle_seed or 0,
        shuffle=manifest.shuffled,
        images=_image_rules(manifest.build.get("images")),
        on_error=on_error,
        max_bad_fraction=max_bad_fraction,
        **{name: manifest.build[name] for name in names if name in manifest.build},
    )


def _image_rules(settings: Mapping[str, Any] | None) -> ImageRules:
    """Return the rules for images that a manifest states; see `feeder.shards.images.rules.ImageRules.settings`."""
    if settings is None:
        return NO_RULES
    resize = Resize.parse(settings["resize"]) if settings["resize"] else None
    return ImageRules(**{**settings, "resize": resize})


def _aligned(change: Change, table: SampleTable) -> SampleTable:
    """Return a table with the fields of the dataset's shards and labels that are numbers of its classes."""
    manifest = change.parent
    index = load_index(change.folder, manifest, 0)
    fields = {name: field for name, field in manifest.fields.items() if field.stored or name in index}
    wanted, got = ({name: field.type for name, field in one.items()} for one in (fields, table.fields))
    if wanted != got:
        difference = sorted(wanted.items() ^ got.items())[0][0]
        raise SourceError(
            f"{table.root} has the fields {_listed(got)}, but the shards of {change.folder.url} have "
            f"{_listed(wanted)}: they differ in {difference!r}; append samples with the same fields"
        )
    classes = table.classes or tuple(map(str, range(int(table.labels.max(initial=-1)) + 1)))  # numbers without names
    _refuse_other_classes(change, table, classes)
    numbers = {name: number for number, name in enumerate(manifest.classes)}
    for name in classes if table.classes or manifest.classes else ():
        numbers.setdefault(name, len(numbers))
    mapped = np.array([numbers[name] for name in classes] + [-1], np.int64)  # label −1 is the last one
    labels = mapped[table.labels] if numbers else table.labels
    return dataclasses.replace(table, split=None, fields=fields, labels=labels, classes=tuple(numbers))


def _refuse_other_classes(change: Change, table: SampleTable, classes: Sequence[str]) -> None:
    """Raise `SourceError` if classes are numbers in the source and have names in the dataset, or the other way round.

    Which number belongs to which name is nothing that could be guessed: 0 and 1 would become new classes "0" and "1".
    """
    there = change.parent.classes
    if _numbers(classes) and there and not any(map(str.isdecimal, there)):
        raise SourceError(
            f"the labels of {readable(table.root)} are numbers ({_some(classes)}), but the classes of "
            f"{change.folder.url} have names ({_some(there)}); give names instead, or a file with the name of each "
            "number with --classes"
        )
    if _numbers(there) and classes and not any(map(str.isdecimal, classes)):
        raise SourceError(
            f"the classes of {readable(table.root)} have names ({_some(classes)}), but those of {change.folder.url} "
            f"are numbers ({_some(there)}); give the numbers instead"
        )


def _numbers(classes: Sequence[str]) -> bool:
    return bool(classes) and all(map(str.isdecimal, classes))


def _some(classes: Sequence[str]) -> str:
    return ", ".join(map(readable, classes[:_NAMED])) + (", …" if len(classes) > _NAMED else "")


def _listed(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in fields.items())


def _without_existing(change: Change, table: SampleTable, *, skip: bool) -> tuple[SampleTable, int]:
    """Return a table without the samples whose key the dataset has, and how many these are.

    Raises:
        SourceError: two samples of the table have one key, or, unless they are to be skipped, the dataset has one.
    """
    refuse_clashes(table)
    texts = pa.array((table.key(row) for row in range(len(table))), pa.large_string())
    keys = combined(pa.chunked_array([texts]))
    there = np.zeros(len(keys), np.bool_)
    for run in column_runs(change.parent, change.folder, "key", len(keys)):
        there[pc.index_in(run.cast(keys.type), value_set=keys).drop_null().to_numpy(zero_copy_only=False)] = True
    count = int(there.sum())
    if count and not skip:
        rows = np.flatnonzero(there)[:_NAMED].tolist()
        named = ", ".join(f"{keys[row].as_py()!r} ({table.name(row)})" for row in rows)
        raise SourceError(
            f"{count} of the {len(table)} samples of {table.root} have keys that {change.folder.url} has already: "
            f"{named}{', …' if count > _NAMED else ''}; rename them, or leave them out with --skip-existing"
        )
    return (table.take(np.flatnonzero(~there)) if count else table), count


def _write(
    change: Change,
    table: SampleTable,
    options: BuildOptions,
    workers: int,
    start: Callable[[int], Advance] | None,
) -> list[WrittenShard]:
    """Write the new shards; return them in order."""
    plan = plan_shards(
        table,
        seed=options.seed if options.shuffle else None,
        shard_bytes=options.shard_bytes,
        shard_samples=options.shard_samples,
    )
    first = change.reserve_shards(len(plan))
    tasks = (
        ShardTask(
            folder=change.out,
            name=shard_name(first + number, options.format),
            format=options.format,
            table=table.take(rows),
            max_pixels=options.max_pixels,
            images=options.images,
            on_error=options.on_error,
        )
        for number, rows in enumerate(plan)
    )
    limit = BadLimit(options.max_bad_fraction, len(table))
    advance = start(len(table)) if start else no_progress
    processes = min(workers, max(1, len(plan) // SHARDS_PER_WORKER))
    written: dict[str, WrittenShard] = {}
    with contextlib.closing(write_shards(tasks, processes, change.out, advance)) as results:
        for task, shard in results:
            limit.count(table, shard.bad)
            written[task.name] = shard
    if not any(shard.shard for shard in written.values()):
        raise NoGoodImageError(f"no good image in {table.root}: all {len(table)} are bad, {limit.described()}")
    change.out.remove(bad_list_name(name) for name, shard in written.items() if shard.bad)
    return [written[name] for name in sorted(written, key=lambda name: (len(name), name))]


def _new_indexes(change: Change, shards: ShardTable) -> Iterator[ShardIndex]:
    """Yield the indexes of shards that are not committed yet."""
    return all_indexes(dataclasses.replace(change.parent, shards=shards), change.folder)
