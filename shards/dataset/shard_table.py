"""The shards of a dataset as columns, the segments that they are ordered in, and their records in the manifest.

A record holds ``name``, ``samples``, ``size_bytes``, ``digest`` and ``index_digest``; and, only where it says more than
the default, ``index`` (the name of the index, where it is not that of the shard with ``.idx.arrow``), ``dropped`` (the
samples that the shard holds and its index leaves out) and ``segments`` (of a shard over 128 MiB, the first row of each
run of at most 64 MiB).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.shards.dataset.checked_json import FaultError, optional, required
from feeder.shards.formats.index import index_name

MAX_WHOLE_BYTES = 128 << 20  # a larger shard is ordered, fetched and cached in segments
SEGMENT_BYTES = 64 << 20

_HEX_DIGEST = re.compile("[0-9a-f]{32}")
_MAX_COUNT = 2**47  # of samples and bytes of one shard: sums over 65,536 of them stay within 64 bits
_KEYS = ("name", "samples", "size_bytes", "digest", "index_digest")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One shard; see the module's text."""

    name: str
    samples: int
    size_bytes: int
    digest: str
    index_digest: str
    index: str | None = None
    dropped: int = 0
    segments: tuple[int, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the record as the manifest holds it."""
        record: dict[str, Any] = {key: getattr(self, key) for key in _KEYS}
        if self.index is not None and self.index != index_name(self.name):
            record["index"] = self.index
        if self.dropped:
            record["dropped"] = self.dropped
        if self.segments:
            record["segments"] = list(self.segments)
        return record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentTable:
    """The segments of a dataset as columns, in sample order: what an order permutes, and a cache fetches.

    Attributes:
        shards: int64[K], the number of the shard of each.
        first_rows: int64[K], its first row in that shard.
        samples: int64[K], how many rows.
    """

    shards: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shards)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ShardTable:
    """The shards of a dataset as columns, in manifest order.

    Attributes:
        names: of their files, relative to where the shards lie.
        samples, size_bytes: int64[S].
        digests, index_digests: hexadecimal; "" where there are no files of their own.
        indexes: names of index files, by shard number, where `feeder.shards.formats.index.index_name` does not give
            them.
        dropped: samples that a shard holds and its index leaves out, by shard number.
        segments: first rows of segments, by shard number, of shards that have more than one.
    """

    names: list[str]
    samples: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    digests: list[str]
    index_digests: list[str]
    indexes: Mapping[int, str] = dataclasses.field(default_factory=dict)
    dropped: Mapping[int, int] = dataclasses.field(default_factory=dict)
    segments: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, number: int) -> str:
        """Return the name of the index of a shard."""
        return self.indexes.get(number) or index_name(self.names[number])

    def record(self, number: int) -> ShardRecord:
        """Return one shard."""
        return ShardRecord(
            name=self.names[number],
            samples=int(self.samples[number]),
            size_bytes=int(self.size_bytes[number]),
            digest=self.digests[number],
            index_digest=self.index_digests[number],
            index=self.indexes.get(number),
            dropped=self.dropped.get(number, 0),
            segments=self.segments.get(number, ()),
        )

    def segment_table(self) -> SegmentTable:
        """Return the segments of all shards."""
        count = len(self)
        if not self.segments:
            numbers = np.arange(count, dtype=np.int64)
            return SegmentTable(shards=numbers, first_rows=np.zeros(count, np.int64), samples=self.samples)
        starts = [self.segments.get(number) or (0,) for number in range(count)]
        shards = np.repeat(np.arange(count, dtype=np.int64), [len(rows) for rows in starts])
        first_rows = np.concatenate([np.array(rows, np.int64) for rows in starts])
        ends = np.append(first_rows[1:], 0)
        last = np.append(shards[1:] != shards[:-1], True)
        ends[last] = self.samples
        return SegmentTable(shards=shards, first_rows=first_rows, samples=ends - first_rows)


def shard_table(records: Iterable[ShardRecord]) -> ShardTable:
    """Return the columns of shards."""
    shards = list(records)
    return ShardTable(
        names=[shard.name for shard in shards],
        samples=np.array([shard.samples for shard in shards], np.int64),
        size_bytes=np.array([shard.size_bytes for shard in shards], np.int64),
        digests=[shard.digest for shard in shards],
        index_digests=[shard.index_digest for shard in shards],
        indexes={i: shard.index for i, shard in enumerate(shards) if shard.index not in (None, index_name(shard.name))},
        dropped={i: shard.dropped for i, shard in enumerate(shards) if shard.dropped},
        segments={i: shard.segments for i, shard in enumerate(shards) if shard.segments},
    )


def segment_starts(ends: NDArray[np.int64], size_bytes: int) -> tuple[int, ...]:
    """Return the first rows of the segments of a shard, or () where it is small enough to be one.

    Args:
        ends: int64[n], where the bytes of each sample end in the shard, in ascending order.
        size_bytes: the size of the shard.
    """
    if size_bytes <= MAX_WHOLE_BYTES:
        return ()
    starts = [0]
    begin = 0
    while True:
        row = max(int(np.searchsorted(ends, begin + SEGMENT_BYTES, side="right")), starts[-1] + 1)
        if row >= len(ends):
            return tuple(starts) if len(starts) > 1 else ()
        begin = int(ends[row - 1])
        starts.append(row)


def documents(table: ShardTable) -> list[dict[str, Any]]:
    """Return the records of shards as the manifest holds them."""
    columns = (table.names, table.samples.tolist(), table.size_bytes.tolist(), table.digests, table.index_digests)
    records = [dict(zip(_KEYS, row, strict=True)) for row in zip(*columns, strict=True)]
    for number in sorted({*table.indexes, *table.dropped, *table.segments}):
        records[number] = table.record(number).document()
    return records


def parse_shards(shards: list[Any], *, folders: bool) -> ShardTable:
    """Return the columns of the shard records of a manifest.

    Checks run over whole columns: quick. Only when one fails, the fault is looked for record by record.

    Args:
        shards: the records.
        folders: names may lead through folders, as those of adopted data do.

    Raises:
        FaultError: a record cannot be.
    """
    try:
        names, samples, sizes, digests, index_digests = ([shard[key] for shard in shards] for key in _KEYS)
        more = [number for number, shard in enumerate(shards) if len(shard) > len(_KEYS)]
    except (KeyError, TypeError, IndexError):
        _find_fault(shards, folders)
        raise
    numbers = (samples, sizes)
    well_formed = (
        all(set(map(type, column)) <= {str} for column in (names, digests, index_digests))
        and all(set(map(type, column)) <= {int} for column in numbers)
        and all(min(column, default=1) >= 1 and max(column, default=1) < _MAX_COUNT for column in numbers)
        and all(map(_HEX_DIGEST.fullmatch, digests + index_digests))
        and all(is_plain_name(name, folders=folders) for name in names)
        and len(set(names)) == len(names)
    )
    if not well_formed:
        _find_fault(shards, folders)
    further = {number: _further(shards[number], f"shards[{number}].", folders) for number in more}
    return ShardTable(
        names,
        np.array(samples, np.int64),
        np.array(sizes, np.int64),
        digests,
        index_digests,
        indexes={number: index for number, (index, _, _) in further.items() if index is not None},
        dropped={number: dropped for number, (_, dropped, _) in further.items() if dropped},
        segments={number: segments for number, (_, _, segments) in further.items() if segments},
    )


def _further(shard: dict[str, Any], at: str, folders: bool) -> tuple[str | None, int, tuple[int, ...]]:
    """Return what a record may say beyond its five values: the index, dropped samples, segments."""
    index = optional(shard, str, "index", at)
    if index is not None and not is_plain_name(index, folders=folders):
        raise FaultError(f"{at}index is {index!r}, expected the name of a file beside the manifest,")
    dropped = optional(shard, int, "dropped", at) or 0
    if not 0 <= dropped < _MAX_COUNT:
        raise FaultError(f"{at}dropped is {dropped}, expected a count,")
    segments: Sequence[Any] = optional(shard, list, "segments", at) or []
    rows = (*segments, shard["samples"])
    if segments and (
        not set(map(type, segments)) <= {int} or segments[0] != 0 or any(a >= b for a, b in pairwise(rows))
    ):
        raise FaultError(f"{at}segments is {segments}, expected first rows from 0, ascending,")
    return index, dropped, tuple(segments)


def _find_fault(shards: list[Any], folders: bool) -> None:
    """Raise the fault of the first shard record that has one."""
    seen: set[str] = set()
    for number, shard in enumerate(shards):
        at = f"shards[{number}]."
        if type(shard) is not dict:
            raise FaultError(f"shards[{number}] is {type(shard).__name__}, expected an object,")
        name = required(shard, str, "name", at)
        if not is_plain_name(name, folders=folders):
            raise FaultError(f"{at}name is {name!r}, expected the name of a file beside the manifest,")
        if name in seen:
            raise FaultError(f"{at}name is {name!r}, which an earlier shard has,")
        seen.add(name)
        for key in ("samples", "size_bytes"):
            if not 1 <= required(shard, int, key, at) < _MAX_COUNT:
                raise FaultError(f"{at}{key} is {shard[key]}, expected a positive count,")
        for key in ("digest", "index_digest"):
            if not _HEX_DIGEST.fullmatch(required(shard, str, key, at)):
                raise FaultError(f"{at}{key} is {shard[key]!r}, expected 32 hexadecimal digits,")


def is_plain_name(name: str, *, folders: bool = False) -> bool:
    """Say whether a file's name stays inside its folder: nothing hidden, no way up, no control characters."""
    if folders and "/" in name:
        return all(map(is_plain_name, name.split("/")))
    return bool(name) and name[0] != "." and "/" not in name and "\\" not in name and name.isprintable()
