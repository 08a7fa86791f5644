"""Building a dataset: from the samples of a source to shards, indexes and a manifest.

What a build promises, in order; if the code disagrees, the code is wrong:

1. *Checked first*: a source or a destination that cannot be used is refused, and nothing remains of the attempt.
2. *Claimed*: the destination, a folder or behind a URL, gets a marker that is held as long as the build lives. A second
   build at the same place is refused; a file that no marker vouches for is never touched.
3. *Planned*: order and cut of the shards follow from names, sizes and the seed alone, before any image is read, so that
   shards are independent tasks and any number of worker processes writes the same bytes. A bad image leaves its shard
   shorter; a shard that would hold none is left out, and its number with it.
4. *Recorded*: before the first shard, the options and the input's fingerprint (`feeder.shards.plan_file`); after each
   shard, that it is finished. A file appears under its name when it is whole.
5. *Gone on with*: whatever stops the build (an error, Ctrl-C, a kill, a full disk, a dead store), what is finished
   stays and no manifest stands. The same command again writes only what is missing, and the result is that of a build
   that nothing had stopped. Other input or other options are refused. If nothing is finished, nothing remains.
6. *Committed*: when all shards are there come the list of bad images, the manifests, and then the marker goes.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from feeder.arguments import one_of
from feeder.errors import ConfigError
from feeder.shards.bad_samples import BadLimit, counted
from feeder.shards.committing import BuildReport, commit, committed
from feeder.shards.destinations.claiming import check_destination, claim_destination
from feeder.shards.destinations.protocol import Claim, Destination
from feeder.shards.duplicates import MODES, treat_duplicates
from feeder.shards.errors import NoGoodImageError
from feeder.shards.formats import WRITTEN_FORMATS, shard_name
from feeder.shards.images import MAX_PIXELS
from feeder.shards.manifest import Manifest, new_manifest
from feeder.shards.packing import Advance, ShardTask, WrittenShard, no_progress
from feeder.shards.plan_file import record_of
from feeder.shards.planning import DEFAULT_SHARD_BYTES, Plan, plan_shards
from feeder.shards.recoding import NO_RULES, ImageRules
from feeder.shards.resuming import begin
from feeder.shards.shard_table import shard_table
from feeder.shards.sources.opening import open_source
from feeder.shards.sources.options import SourceOptions
from feeder.shards.spooling import opened
from feeder.shards.table import SampleTable
from feeder.shards.workers import write_shards

SHARDS_PER_WORKER = 3  # a process takes half a second to start, in which one alone writes as many


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What decides the bytes of a dataset, and what happens to bad images.

    Attributes:
        format: of the shards, one of `feeder.shards.formats.WRITTEN_FORMATS`.
        seed: of the shuffle.
        shuffle: lay the samples in random order over all shards; else in the order of the source.
        balanced: with shuffle, let classes take turns for as long as they have samples.
        shard_bytes: the size that tar shards do not pass (bytes); other formats put the same samples into a shard.
        shard_samples: at most this many samples in a shard, if given.
        shards: so many shards, of each split, of equally many samples, whatever their bytes; if given.
        max_pixels: images whose header names more are bad.
        images: what is done to images, and which are left out; none of it by default. Shards are cut by the sizes in
            the source, so that images that become smaller give smaller shards.
        on_error: ``"skip"`` sets bad images aside, ``"fail"`` stops at the first, ``"keep"`` takes them as they are.
        max_bad_fraction: with skip, more than this fraction of bad images stops the build; a few
            (`feeder.shards.bad_samples.ALWAYS_ALLOWED_BAD`) are always allowed, unless it is 0. What ``images`` filters
            is not counted.
        duplicates: of images with the same bytes, ``"keep"`` takes all, ``"drop"`` the first, ``"fail"`` refuses them;
            the latter two read images of equal size once more.
    """

    format: str = "tar"
    seed: int = 0
    shuffle: bool = True
    balanced: bool = False
    shard_bytes: int = DEFAULT_SHARD_BYTES
    shard_samples: int | None = None
    shards: int | None = None
    max_pixels: int = MAX_PIXELS
    images: ImageRules = NO_RULES
    on_error: str = "skip"
    max_bad_fraction: float = 0.01
    duplicates: str = "keep"

    def __post_init__(self) -> None:
        if self.format not in WRITTEN_FORMATS:
            raise ConfigError(f"format is {self.format!r}, expected {' or '.join(map(repr, WRITTEN_FORMATS))}")
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}, expected an integer of 64 bits")
        counts = (self.shard_bytes, self.max_pixels, self.shard_samples, self.shards)
        if any(count is not None and count < 1 for count in counts):
            raise ConfigError("shard_bytes, shard_samples, shards and max_pixels must be at least 1")
        if self.shards is not None and self.shard_samples is not None:
            raise ConfigError(f"shards is {self.shards} and shard_samples {self.shard_samples}; give one of the two")
        if self.on_error not in ("skip", "fail", "keep"):
            raise ConfigError(f"on_error is {self.on_error!r}, expected 'skip', 'fail' or 'keep'")
        one_of("duplicates", self.duplicates, MODES)
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {self.max_bad_fraction}, expected a number from 0 to 1")

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide the bytes of shards: to go on with a build, they must be the same."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del options["images"], options["max_bad_fraction"]
        options["on_error"] = "keep" if self.on_error == "keep" else "leave out"
        options["duplicates"] = "drop" if self.duplicates == "drop" else "keep"
        return options | dataclasses.asdict(self.images)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildPreview:
    """What a build would do, as far as names and sizes tell.

    Attributes:
        tables: the samples, one table a split; where `SampleTable.estimated`, sizes and numbers of shards are so.
        shards: how many shards each split gets.
    """

    tables: list[SampleTable]
    shards: list[int]


def build(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    source_options: SourceOptions | None = None,
    workers: int = 1,
    start: Callable[[int], Advance] | None = None,
    restart: bool = False,
) -> BuildReport:
    """Build a dataset, or one a split, from a source of any kind; go on with one that was interrupted.

    Args:
        source: a path, a URL or a pattern; see `feeder.shards.sources`.
        dest: a folder, local or a URL of fsspec, that is empty or does not exist, or in which the same build was
            interrupted; splits go to ``dest/train`` and so on.
        options: what decides the bytes, and what to do with bad images.
        source_options: what may be said about the source.
        workers: at most this many processes write shards, one for every few shards (`SHARDS_PER_WORKER`) or, where
            images are encoded anew, for every shard; 1 writes in this process. The bytes are the same for any number.
        start: called with the number of samples to be written once it is known; returns what takes the progress.
        restart: discard what an interrupted build has written, whatever it was.

    Raises:
        ConfigError: options that cannot be.
        SourceError: no images, clashing keys, too many bad images, or a source that changes meanwhile.
        DestinationError: the destination is not empty, in use, or cannot be written; `ResumeError` if an interrupted
            build there is another.
        StorageError: the source cannot be listed, or the machine or the mount that holds it fails.
    """
    options = _checked(options, workers)
    with claim_destination(dest, source) as claim, opened(source, source_options, claim.folder) as tables:
        return write_tables(claim, tables, options, workers=workers, start=start, restart=restart)


def build_tables(
    tables: Sequence[SampleTable],
    dest: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    workers: int = 1,
    start: Callable[[int], Advance] | None = None,
    restart: bool = False,
) -> BuildReport:
    """Build a dataset, or one a split, from the samples of any source; arguments and errors as in `build`."""
    options = _checked(options, workers)
    with claim_destination(dest, tables[0].root) as claim:
        return write_tables(claim, tables, options, workers=workers, start=start, restart=restart)


def preview(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    source_options: SourceOptions | None = None,
) -> BuildPreview:
    """Return what a build would do, after checking its destination; nothing is written. Errors as in `build`."""
    options = _checked(options, 1)
    check_destination(dest, source)
    tables = open_source(source, source_options, estimated=True)
    return BuildPreview(tables=tables, shards=[len(_plan(table, options)) for table in tables])


def write_tables(
    claim: Claim,
    tables: Sequence[SampleTable],
    options: BuildOptions,
    *,
    workers: int,
    start: Callable[[int], Advance] | None = None,
    restart: bool = False,
) -> BuildReport:
    """Write the shards of some tables, one a split, into a claimed destination, and the manifests of them."""
    folder = claim.folder
    tables, repeated = treat_duplicates(tables, options.duplicates)
    plans = [_plan(table, options) for table in tables]
    record = record_of(tables, plans, options.deciding())
    finished = begin(folder, record, tables, plans, options.format, restart=restart)
    if finished is None:
        return committed(folder, tables)
    total = sum(map(len, tables))
    advance = start(total - sum(shard.planned for shard in finished.values())) if start else no_progress
    limit = BadLimit(options.max_bad_fraction, total)
    written = [
        _write_split(claim, table, plan, finished, options, workers, limit, advance)
        for table, plan in zip(tables, plans, strict=True)
    ]
    manifests = [_manifest(table, shards.values(), options) for table, shards in zip(tables, written, strict=True)]
    bad = [[image for shard in shards.values() for image in shard.bad] for shards in written]
    commit(claim, tables, manifests, bad, repeated)
    new = [one.shard for shards in written for name, one in shards.items() if name not in finished]
    return committed(folder, tables, [shard for shard in new if shard is not None])


def _checked(options: BuildOptions | None, workers: int) -> BuildOptions:
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    return options or BuildOptions()


def _plan(table: SampleTable, options: BuildOptions) -> Plan:
    return plan_shards(
        table,
        seed=options.seed if options.shuffle else None,
        shard_bytes=options.shard_bytes,
        shard_samples=options.shard_samples,
        shards=options.shards,
        balanced=options.balanced,
    )


def _write_split(
    claim: Claim,
    table: SampleTable,
    plan: Plan,
    finished: Mapping[str, WrittenShard],
    options: BuildOptions,
    workers: int,
    limit: BadLimit,
    advance: Advance,
) -> dict[str, WrittenShard]:
    """Write the shards of a split that are not finished; return all of them by name, in order."""
    names = [table.prefix + shard_name(number, options.format) for number in range(len(plan))]
    shards = {name: finished[name] for name in names if name in finished}
    for shard in shards.values():
        limit.count(table, shard.bad)
    missing = len(plan) - len(shards)
    processes = min(workers, max(1, missing // (1 if options.images.rewrites else SHARDS_PER_WORKER)))
    tasks = (
        _task(claim.folder, name, table.take(rows), options)
        for name, rows in zip(names, plan, strict=True)
        if name not in shards
    )
    with contextlib.closing(write_shards(tasks, processes, claim.folder, advance)) as results:
        for task, shard in results:
            claim.check()
            limit.count(table, shard.bad)
            shards[task.name] = shard
    if not any(shard.shard for shard in shards.values()):
        causes = Counter(image.cause for shard in shards.values() for image in shard.bad)
        raise NoGoodImageError(f"no good image in {table.root}: all {len(table)} are bad, {counted(causes)}")
    return {name: shards[name] for name in names}


def _task(folder: Destination, name: str, table: SampleTable, options: BuildOptions) -> ShardTask:
    return ShardTask(
        folder=folder,
        name=name,
        format=options.format,
        table=table,
        max_pixels=options.max_pixels,
        images=options.images,
        on_error=options.on_error,
    )


def _manifest(table: SampleTable, written: Iterable[WrittenShard], options: BuildOptions) -> Manifest:
    return new_manifest(
        shards=shard_table(one.shard for one in written if one.shard is not None),
        classes=table.classes,
        split=table.split,
        fields=table.fields,
        shard_format=options.format,
        shuffled=options.shuffle or table.shuffled,
        shuffle_seed=options.seed if options.shuffle else table.shuffle_seed,
        build={
            "shard_bytes": options.shard_bytes,
            "shard_samples": options.shard_samples,
            "shards": options.shards,
            "balanced": options.balanced,
            "max_pixels": options.max_pixels,
            "images": options.images.settings(),
        },
    )
