"""Trying again what a build set aside: files that could not be read then, or that were repaired since.

Only the samples that ``bad-images.jsonl`` lists are read. Those that are good now are appended to their dataset, in new
shards of a new generation (`feeder.shards.changing.appending`), and leave the list. A run that is stopped between the
two is made good by the next: what the dataset has already is not appended twice.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from feeder.shards.building.bad_samples import BadImage, bad_lines, parse_bad
from feeder.shards.building.packing import Advance
from feeder.shards.building.spooling import opened
from feeder.shards.changing.appending import append
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import BAD_IMAGES_NAME, Destination
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError, NoGoodImageError
from feeder.shards.sources.options import SourceOptions
from feeder.shards.storage import is_remote, open_folder
from feeder.shards.table import SampleTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryReport:
    """What came of trying again.

    Attributes:
        tried: samples that were bad before.
        recovered: of these, the ones that are in the dataset now.
        bad: those that are still bad, in the order of the list; gone ones among them.
        gone: how many the source does not have any more.
    """

    tried: int
    recovered: int
    bad: list[BadImage]
    gone: int


def retry_failed(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    source_options: SourceOptions | None = None,
    workers: int = 1,
    start: Callable[[int], Advance] | None = None,
) -> RetryReport:
    """Read the bad images of a finished build again, and append those that are good now.

    Args:
        source, source_options: what the dataset was built from.
        dest: where it was built to.
        workers: processes that write shards.
        start: called for each split with the number of samples to be read; returns what takes the progress.

    Raises:
        ConfigError, SourceError, StorageError: see `feeder.shards.building.writing.build`.
        DestinationError: there is no list of bad images, another process is changing the dataset, or it cannot be
            written.
    """
    place = open_folder(dest)
    try:
        listed = parse_bad(place.read(BAD_IMAGES_NAME))
    except FileNotFoundError as error:
        raise DestinationError(
            f"nothing to try again: there is no {place.where(BAD_IMAGES_NAME)}; expected the destination of a build "
            "that set images aside"
        ) from error
    waiting = {image.source: image for image in listed}
    found: set[str] = set()
    still: dict[str, BadImage] = {}
    with opened(source, source_options) as tables:
        for table in tables:
            part = _waiting(table, waiting)
            names = [table.prefix + part.name(row) for row in range(len(part))]
            found.update(names)
            target = place.where(table.split) if table.split else place.url
            try:
                bad = _append(target, part, workers, start) if names else []
                still |= {table.prefix + image.source: image for image in bad}
            except NoGoodImageError:
                still |= {name: waiting[name] for name in names}
    left = [
        dataclasses.replace(still.get(name, image), source=name)
        for name, image in waiting.items()
        if name in still or name not in found
    ]
    _write_list(_destination(place.url), left)
    return RetryReport(
        tried=len(waiting), recovered=len(waiting) - len(left), bad=left, gone=len(waiting.keys() - found)
    )


def _append(dataset: str, part: SampleTable, workers: int, start: Callable[[int], Advance] | None) -> list[BadImage]:
    """Append what is good of some samples and is not there already; return what is bad."""
    return append(dataset, part, skip_existing=True, max_bad_fraction=1, workers=workers, start=start).bad


def _waiting(table: SampleTable, waiting: dict[str, BadImage]) -> SampleTable:
    """Return the samples of a table that are on the list."""
    rows = [row for row in range(len(table)) if table.prefix + table.name(row) in waiting]
    return table.take(np.array(rows, np.int64))


def _destination(url: str) -> Destination:
    return RemoteDestination(url) if is_remote(url) else LocalDestination(Path(url))


def _write_list(folder: Destination, bad: list[BadImage]) -> None:
    if bad:
        folder.put(BAD_IMAGES_NAME, bad_lines(bad))
    else:
        folder.remove([BAD_IMAGES_NAME])
    folder.flush()
