"""The end of a build: the list of bad images, the manifests, and what a build says of itself."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from feeder.shards.building.bad_samples import BAD_LIST, BadImage, bad_lines, by_cause, parse_bad
from feeder.shards.building.duplicates import Duplicate
from feeder.shards.columns.consolidated import consolidate
from feeder.shards.dataset.manifest import MANIFEST_NAME, Manifest, encode_manifest, parse_manifest, sealed
from feeder.shards.dataset.shard_table import ShardRecord
from feeder.shards.destinations.protocol import (
    BAD_IMAGES_NAME,
    DUPLICATES_NAME,
    PLAN_NAME,
    Claim,
    Destination,
    cannot_write,
)
from feeder.shards.errors import StorageError
from feeder.shards.storage import is_remote, open_folder
from feeder.shards.table import SampleTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltDataset:
    """One dataset that a build has made: a whole one, or a split. A path is a URL if the destination is."""

    path: Path | str
    manifest: Manifest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did.

    Attributes:
        datasets: one entry, or one a split.
        bad: the images set aside, in the order of the source.
        bad_path: the file that lists them, or None when there are none.
        duplicates: how many were left out for having the bytes of an image before them; a file lists them.
        resumed_shards: shards that an interrupted build had finished before.
        written_samples, written_bytes: what this one added, as it counts for its speed.
    """

    datasets: list[BuiltDataset]
    bad: list[BadImage]
    bad_path: Path | str | None
    duplicates: int
    resumed_shards: int
    written_samples: int
    written_bytes: int

    @property
    def num_samples(self) -> int:
        return sum(dataset.manifest.num_samples for dataset in self.datasets)

    @property
    def size_bytes(self) -> int:
        return sum(dataset.manifest.size_bytes for dataset in self.datasets)

    @property
    def bad_by_cause(self) -> dict[str, int]:
        return by_cause(Counter(image.cause for image in self.bad))


def commit(
    claim: Claim,
    tables: Sequence[SampleTable],
    manifests: Sequence[Manifest],
    bad: Sequence[Sequence[BadImage]],
    duplicates: Sequence[Duplicate] = (),
) -> None:
    """Write the lists of bad images and duplicates and the columns, make all that durable, then write the manifests.

    Args:
        claim: of the destination.
        tables: one a split.
        manifests, bad: theirs.
        duplicates: what was left out for being one.
    """
    folder = claim.folder
    listed = [image for table, images in zip(tables, bad, strict=True) for image in _in_source_order(table, images)]
    if listed:
        folder.put(BAD_IMAGES_NAME, bad_lines(listed))
    if duplicates:
        lines = (json.dumps(dataclasses.asdict(duplicate)) for duplicate in duplicates)
        folder.put(DUPLICATES_NAME, "".join(line + "\n" for line in lines).encode("ascii"))
    folder.flush()
    claim.check()
    whole = [_with_columns(folder, table, manifest) for table, manifest in zip(tables, manifests, strict=True)]
    folder.flush()
    claim.check()
    for table, manifest in zip(tables, whole, strict=True):
        folder.put(table.prefix + MANIFEST_NAME, encode_manifest(manifest))
    folder.flush()


def _with_columns(folder: Destination, table: SampleTable, manifest: Manifest) -> Manifest:
    """Write the consolidated columns of a split; return the manifest that names them."""
    place = open_folder(folder.where(table.prefix).rstrip("/"))
    try:
        columns = consolidate(manifest, place, folder, prefix=table.prefix)
    except StorageError as error:  # it is the destination that no longer answers
        raise cannot_write(place.url, error) from error
    return sealed(dataclasses.replace(manifest, columns=columns))


def committed(folder: Destination, tables: Sequence[SampleTable], new: Sequence[ShardRecord] = ()) -> BuildReport:
    """Remove what only a build needs, the plan last; return the report of what stands now.

    Args:
        folder: the destination.
        tables: one a split.
        new: the shards that this build has written; the rest had been finished before.
    """
    files = folder.files()
    folder.remove([*(name for name in files if name.endswith(BAD_LIST)), PLAN_NAME])
    names = [table.prefix + MANIFEST_NAME for table in tables]
    manifests = [parse_manifest(folder.read(name), folder.where(name)) for name in names]
    listed = BAD_IMAGES_NAME in files
    return BuildReport(
        datasets=[
            BuiltDataset(path=_place(folder, table.split), manifest=manifest)
            for table, manifest in zip(tables, manifests, strict=True)
        ],
        bad=parse_bad(folder.read(BAD_IMAGES_NAME)) if listed else [],
        bad_path=_place(folder, BAD_IMAGES_NAME) if listed else None,
        duplicates=folder.read(DUPLICATES_NAME).count(b"\n") if DUPLICATES_NAME in files else 0,
        resumed_shards=sum(len(manifest.shards) for manifest in manifests) - len(new),
        written_samples=sum(shard.samples for shard in new),
        written_bytes=sum(shard.size_bytes for shard in new),
    )


def _in_source_order(table: SampleTable, bad: Sequence[BadImage]) -> list[BadImage]:
    """Return bad images of a split in the order of the source, their paths relative to the whole source."""
    ordered = sorted(bad, key=lambda image: image.source.split("/"))
    return [dataclasses.replace(image, source=table.prefix + image.source) for image in ordered]


def _place(folder: Destination, name: str | None) -> Path | str:
    where = folder.where(name) if name else folder.url
    return where if is_remote(where) else Path(where)
