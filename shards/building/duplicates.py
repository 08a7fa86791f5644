"""Exact duplicates: samples whose images have the same bytes, wherever they come from and in whichever split.

Only images of one size can be equal, so only those are read, in two rounds: first the last 4 KiB of each, where encoded
images differ almost surely, then whole those that agree there. What has the same size and the same xxh3-128 digest is a
duplicate: two different images do so by accident once in 2**64 pairs of a size. The first in the order of splits and
samples is kept. An image that cannot be read is no duplicate; the build sets it aside.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash
from numpy.typing import NDArray

from feeder.arguments import one_of
from feeder.shards.building.fetching import fetch
from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from feeder.shards.names import PathTable, readable
from feeder.shards.table import Places, SampleTable

MODES = ("keep", "drop", "fail")
TAIL_BYTES = 4096  # a page: costs no more to read than a few bytes
_BLOCK = 256  # samples that a thread reads at a time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A sample that has the image of one before it: the keys of both, and their splits."""

    key: str
    kept: str
    split: str | None
    kept_split: str | None


def treat_duplicates(
    tables: Sequence[SampleTable],
    mode: str,
    *,
    threads: int = 8,
    advance: Callable[[int], None] = lambda samples: None,
) -> tuple[list[SampleTable], list[Duplicate]]:
    """Return the tables without duplicates, and which those are.

    Args:
        tables: of a source, one a split.
        mode: ``"keep"`` looks for none, ``"drop"`` leaves them out, ``"fail"`` refuses them.
        threads: that read and digest; both release the interpreter.
        advance: called with numbers of samples looked at.

    Raises:
        ConfigError: another mode.
        SourceError: there are some and the mode is ``"fail"``; or a split would be empty without them.
        StorageError: the storage does not give the bytes.
    """
    one_of("duplicates", mode, MODES)
    if mode == "keep":
        return list(tables), []
    rows, firsts = find_duplicates(tables, threads=threads, advance=advance)
    starts = np.cumsum([0, *map(len, tables)])

    def place(row: int) -> tuple[SampleTable, int]:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return tables[number], row - int(starts[number])

    found = []
    for row, first in zip(rows.tolist(), firsts.tolist(), strict=True):
        (table, inner), (kept_table, kept) = place(row), place(first)
        if mode == "fail":
            raise SourceError(
                f"{len(rows)} of {starts[-1]} images are exact duplicates, such as {table.prefix}{table.name(inner)}, "
                f"which has the bytes of {kept_table.prefix}{kept_table.name(kept)} in {readable(kept_table.root)}; "
                "take them out of the source, or leave them out with --duplicates drop"
            )
        found.append(
            Duplicate(key=table.key(inner), kept=kept_table.key(kept), split=table.split, kept_split=kept_table.split)
        )
    return [_without(table, rows - start) for table, start in zip(tables, starts, strict=False)], found


def _without(table: SampleTable, rows: NDArray[np.int64]) -> SampleTable:
    """Return a table without some rows; those outside of it do not count."""
    kept = np.ones(len(table), bool)
    kept[rows[(rows >= 0) & (rows < len(table))]] = False
    if kept.all():
        return table
    if not kept.any():
        raise SourceError(
            f"every image of the split {table.split!r} in {readable(table.root)} is a duplicate of one before it, so "
            "the split would be empty; build without --duplicates drop, or leave the split out"
        )
    return table.take(np.flatnonzero(kept))


def find_duplicates(
    tables: Sequence[SampleTable], *, threads: int = 8, advance: Callable[[int], None] = lambda samples: None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of duplicates, ascending, and of each the row that it repeats; rows count through all tables."""
    sizes = np.concatenate([table.stored["image"].sizes for table in tables])
    total = len(sizes)
    groups = sizes.astype(np.uint64)[:, None]
    candidates = _repeated(groups, np.flatnonzero(sizes > 0))
    advance(total - len(candidates))
    tails = _digests(tables, candidates, TAIL_BYTES, threads, advance)
    digests = np.zeros((total, 2), np.uint64)
    digests[candidates] = tails
    readable_rows = candidates[tails.any(axis=1)]
    agreeing = _repeated(np.hstack([groups, digests]), readable_rows)
    whole = agreeing[sizes[agreeing] > TAIL_BYTES]
    digests[whole] = _digests(tables, whole, None, threads, lambda samples: None)
    agreeing = agreeing[digests[agreeing].any(axis=1)]
    order, first = _grouped(np.hstack([groups, digests]), agreeing)
    repeats = order != first
    ascending = np.argsort(order[repeats])
    return order[repeats][ascending], first[repeats][ascending]


def _grouped(values: NDArray[np.uint64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows so that those of equal values stand together, and of each the first with its values."""
    order = rows[np.lexsort((rows, *values[rows].T))] if rows.size else rows
    new = np.ones(len(order), bool)
    new[1:] = (values[order[1:]] != values[order[:-1]]).any(axis=1)
    return order, order[new][np.cumsum(new) - 1]


def _repeated(values: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those rows whose values another of the rows has too, ascending."""
    order, first = _grouped(values, rows)
    repeated = order != first
    repeated[:-1] |= repeated[1:]  # the first of a group stands before the second
    return np.sort(order[repeated])


def _digests(
    tables: Sequence[SampleTable],
    rows: NDArray[np.int64],
    tail: int | None,
    threads: int,
    advance: Callable[[int], None],
) -> NDArray[np.uint64]:
    """Return uint64[n, 2]: the digest of each image, or of its tail (bytes); zeros where it cannot be read."""
    digests = np.zeros((len(rows), 2), np.uint64)
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="duplicates") as pool:
        try:
            for found in pool.map(_digest_block, _blocks(tables, rows, tail)):
                digests[done : done + len(found)] = found
                done += len(found)
                advance(len(found))
        finally:
            pool.shutdown(cancel_futures=True)
    return digests


def _blocks(tables: Sequence[SampleTable], rows: NDArray[np.int64], tail: int | None) -> Iterator[SampleTable]:
    """Yield tables of images alone, of at most `_BLOCK` samples."""
    start = 0
    for table in tables:
        inner = rows[(rows >= start) & (rows < start + len(table))] - start
        start += len(table)
        for first in range(0, len(inner), _BLOCK):
            places = table.stored["image"].take(inner[first : first + _BLOCK])
            yield SampleTable(
                root=table.root,
                names=PathTable([""] * len(places)),
                labels=np.full(len(places), -1, np.int64),
                fields={"image": Field(type="image")},
                stored={"image": places if tail is None else _tails(places, tail)},
            )


def _tails(places: Places, tail: int) -> Places:
    sizes = np.minimum(places.sizes, tail)
    starts = 0 if places.offsets is None else places.offsets
    return dataclasses.replace(places, sizes=sizes, offsets=starts + places.sizes - sizes)


def _digest_block(table: SampleTable) -> NDArray[np.uint64]:
    digests = [
        xxhash.xxh3_128_digest(data) if isinstance(data := sample.get("image"), bytes) else bytes(16)
        for sample in fetch(table)
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
