"""Building a dataset: from a folder of images to shards, indexes and a manifest.

What a build promises, in order; if the code disagrees, the code is wrong:

1. *Checked first*: a source or a destination that cannot be used is refused, and nothing remains of the attempt.
2. *Marked*: the destination gets a marker file, locked as long as a process of the build lives. A second build at the
   same place is refused; leftovers that a dead build's marker vouches for are removed, anything else is never
   touched.
3. *Planned*: order and cut of the shards follow from paths, sizes and the seed alone, before any image is read, so that
   shards are independent tasks and any number of worker processes writes the same bytes. A bad image leaves its shard
   shorter; a shard that would hold none is left out, and its number with it.
4. *Staged*: a shard and its index are written under a temporary name, flushed to the disk, then renamed.
5. *Committed*: manifests are written when all shards are there, then the marker goes. Whatever stops the build before
   that (an error, Ctrl-C) removes what it wrote; after a kill the next build does, and no manifest stands meanwhile.
"""

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from feeder.errors import ConfigError
from feeder.shards.destination import BAD_IMAGES_NAME, Destination, claim_destination
from feeder.shards.errors import ShardsError, SourceError
from feeder.shards.formats import WRITTEN_FORMATS, shard_name
from feeder.shards.images import MAX_PIXELS
from feeder.shards.manifest import Manifest, new_manifest, save_manifest
from feeder.shards.packing import (
    BadImage,
    ShardTask,
    WrittenShard,
    cannot_write,
)
from feeder.shards.planning import DEFAULT_SHARD_BYTES, Plan, plan_shards
from feeder.shards.recoding import FILTERED, NO_RULES, ImageRules
from feeder.shards.shard_table import ShardRecord, shard_table
from feeder.shards.sources import scan_source
from feeder.shards.storage import flush_folder, staged_file
from feeder.shards.table import SampleTable
from feeder.shards.workers import write_shards

SHARDS_PER_WORKER = 3  # a process takes half a second to start, in which one alone writes as many
ALWAYS_ALLOWED_BAD = 10  # bad images that no fraction forbids: one bad file in a folder of fifty is no reason to stop


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What decides the bytes of a dataset, and what happens to bad images.

    Attributes:
        format: of the shards, one of `feeder.shards.formats.WRITTEN_FORMATS`.
        seed: of the shuffle.
        shuffle: lay the samples in random order over all shards; else in the order of the source.
        shard_bytes: the size that tar shards do not pass (bytes); other formats put the same samples into a shard.
        shard_samples: at most this many samples in a shard, if given.
        max_pixels: images whose header names more are bad.
        images: what is done to images, and which are left out; none of it by default. Shards are cut by the sizes in
            the source, so that images that become smaller give smaller shards.
        on_error: ``"skip"`` sets bad images aside, ``"fail"`` stops at the first, ``"keep"`` takes them as they are.
        max_bad_fraction: with skip, more than this fraction of bad images stops the build; a few
            (`ALWAYS_ALLOWED_BAD`) are always allowed, unless it is 0. What ``images`` filters is not counted.
    """

    format: str = "tar"
    seed: int = 0
    shuffle: bool = True
    shard_bytes: int = DEFAULT_SHARD_BYTES
    shard_samples: int | None = None
    max_pixels: int = MAX_PIXELS
    images: ImageRules = NO_RULES
    on_error: str = "skip"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.format not in WRITTEN_FORMATS:
            raise ConfigError(f"format is {self.format!r}, expected {' or '.join(map(repr, WRITTEN_FORMATS))}")
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}, expected an integer of 64 bits")
        if self.shard_bytes < 1 or self.max_pixels < 1 or (self.shard_samples is not None and self.shard_samples < 1):
            raise ConfigError("shard_bytes, shard_samples and max_pixels must be at least 1")
        if self.on_error not in ("skip", "fail", "keep"):
            raise ConfigError(f"on_error is {self.on_error!r}, expected 'skip', 'fail' or 'keep'")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {self.max_bad_fraction}, expected a number from 0 to 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltDataset:
    """One dataset that a build has made: a whole one, or a split."""

    path: Path
    manifest: Manifest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did.

    Attributes:
        datasets: one entry, or one a split.
        bad: the images set aside, in the order of the source.
        bad_path: the file that lists them, or None when there are none.
    """

    datasets: list[BuiltDataset]
    bad: list[BadImage]
    bad_path: Path | None

    @property
    def num_samples(self) -> int:
        return sum(dataset.manifest.num_samples for dataset in self.datasets)

    @property
    def size_bytes(self) -> int:
        return sum(dataset.manifest.size_bytes for dataset in self.datasets)

    @property
    def bad_by_cause(self) -> dict[str, int]:
        return _most_first(Counter(image.cause for image in self.bad))


def build(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    workers: int = 1,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> BuildReport:
    """Build a dataset, or one a split, from a folder of images.

    Args:
        source: a folder of class folders, a flat folder, or one with ``train/ val/ test/`` above; see
            `feeder.shards.sources`.
        dest: a local folder that is empty or does not exist; splits go to ``dest/train`` and so on.
        options: what decides the bytes, and what to do with bad images.
        workers: at most this many processes write shards, one for every few shards (`SHARDS_PER_WORKER`); 1 writes in
            this process. The bytes are the same for any number.
        start: called with the number of image files once it is known; returns what is called with the number of files
            done since its last call.

    Raises:
        ConfigError: options that cannot be.
        SourceError: no images, clashing keys, too many bad images, or a source that changes meanwhile.
        DestinationError: the destination is not empty, in use, or cannot be written.
        StorageError: the source cannot be listed, or the machine or the mount that holds it fails.
    """
    options = options or BuildOptions()
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    with claim_destination(dest, source) as destination:
        parts = scan_source(source)
        plans = [_plan(table, options) for table in parts]
        total = sum(map(len, parts))
        advance = start(total) if start else _ignore
        limit = _BadLimit(options, total)
        datasets, bad = [], []
        try:
            for table, plan in zip(parts, plans, strict=True):
                dataset, set_aside = _write_split(table, plan, destination, options, workers, limit, advance)
                datasets.append(dataset)
                bad += set_aside
            return _commit(destination, datasets, bad)
        except ShardsError:
            raise
        except OSError as error:
            raise cannot_write(destination.path, error) from error


def _plan(table: SampleTable, options: BuildOptions) -> Plan:
    return plan_shards(
        table,
        seed=options.seed if options.shuffle else None,
        shard_bytes=options.shard_bytes,
        shard_samples=options.shard_samples,
    )


def _write_split(
    table: SampleTable,
    plan: Plan,
    destination: Destination,
    options: BuildOptions,
    workers: int,
    limit: "_BadLimit",
    advance: Callable[[int], None],
) -> tuple[BuiltDataset, list[BadImage]]:
    """Write the shards of a split; return what its manifest will say, and its bad images."""
    folder = destination.path / table.split if table.split else destination.path
    folder.mkdir(exist_ok=True)
    written: list[WrittenShard] = []
    processes = min(workers, max(1, len(plan) // SHARDS_PER_WORKER))
    tasks = _tasks(folder, table, plan, options)
    with contextlib.closing(write_shards(tasks, processes, destination.marker, advance)) as shards:
        for shard in shards:
            limit.count(table, shard.bad)
            written.append(shard)
    good = [one.shard for one in written if one.shard is not None]
    good.sort(key=lambda shard: (len(shard.name), shard.name))
    if not good:
        raise SourceError(f"no good image in {table.root}: all {len(table)} are bad, {limit.described()}")
    return BuiltDataset(path=folder, manifest=_manifest(table, good, options)), _in_source_order(table, written)


class _BadLimit:
    """Counts bad images and stops a build that has too many."""

    def __init__(self, options: BuildOptions, total: int) -> None:
        fraction = options.max_bad_fraction
        self._allowed = max(ALWAYS_ALLOWED_BAD, int(fraction * total)) if fraction else 0
        self._fraction = fraction
        self._total = total
        self._causes: Counter[str] = Counter()

    def count(self, table: SampleTable, bad: Sequence[BadImage]) -> None:
        self._causes.update(image.cause for image in bad)
        unwanted = sum(count for cause, count in self._causes.items() if cause not in FILTERED)
        if unwanted > self._allowed and (example := next((one for one in bad if one.cause not in FILTERED), None)):
            raise SourceError(
                f"too many bad images: {unwanted} of {self._total} so far ({self.described()}), such as "
                f"{os.path.join(table.root, example.source)}: {example.reason}; repair the source, or allow more than "
                f"{self._allowed} with --max-bad-fraction (now {self._fraction:g})"
            )

    def described(self) -> str:
        """Return the counts by cause as text."""
        return ", ".join(f"{count} {cause}" for cause, count in _most_first(self._causes).items())


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _ignore(images: int) -> None:
    """Take progress nobody asked for."""


def _tasks(folder: Path, table: SampleTable, plan: Plan, options: BuildOptions) -> Iterator[ShardTask]:
    """Yield the tasks of a split, one a shard, in order."""
    for number, chosen in enumerate(plan):
        yield ShardTask(
            folder=str(folder),
            name=shard_name(number, options.format),
            format=options.format,
            table=table.take(chosen),
            max_pixels=options.max_pixels,
            images=options.images,
            on_error=options.on_error,
        )


def _manifest(table: SampleTable, shards: list[ShardRecord], options: BuildOptions) -> Manifest:
    return new_manifest(
        shards=shard_table(shards),
        classes=table.classes,
        split=table.split,
        fields=table.fields,
        shard_format=options.format,
        shuffled=options.shuffle,
        shuffle_seed=options.seed if options.shuffle else None,
        build={
            "shard_bytes": options.shard_bytes,
            "shard_samples": options.shard_samples,
            "max_pixels": options.max_pixels,
            "images": options.images.settings(),
        },
    )


def _in_source_order(table: SampleTable, written: list[WrittenShard]) -> list[BadImage]:
    """Return the bad images of a split, in the order of the source, their paths relative to the whole source."""
    bad = sorted((image for shard in written for image in shard.bad), key=lambda image: image.source.split("/"))
    if table.split is None:
        return bad
    return [dataclasses.replace(image, source=f"{table.split}/{image.source}") for image in bad]


def _commit(destination: Destination, datasets: list[BuiltDataset], bad: list[BadImage]) -> BuildReport:
    """Write the list of bad images, make everything durable, then write the manifests."""
    bad_path = destination.path / BAD_IMAGES_NAME if bad else None
    if bad_path:
        with staged_file(bad_path) as file:
            for image in bad:
                file.write(json.dumps(dataclasses.asdict(image)).encode() + b"\n")
    for folder in (*(dataset.path for dataset in datasets), destination.path):
        flush_folder(folder)
    for dataset in datasets:
        save_manifest(dataset.manifest, dataset.path)
    return BuildReport(datasets=datasets, bad=bad, bad_path=bad_path)
