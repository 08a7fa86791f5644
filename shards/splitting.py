"""Splits made of one table, and orders that deal classes out evenly.

*Split by hash*: a sample belongs to a split by a hash of its key alone, so that it stays where it is when others are
added or removed, in any order: what was held out once is never trained on later. The blake2b digest of the key (8
bytes, read as a little-endian integer, over 2**64) is a number in [0, 1). The splits that are cut off take intervals
from 0 on, in the order of `feeder.shards.table.SPLITS`, each as long as its fraction: ``val`` and ``test`` with 0.02
and 0.1 take [0, 0.02) and [0.02, 0.12). So a fraction that grows later only moves samples out of ``train`` if it is
that of the last one. All parts share the classes: one that is absent from a part keeps its number.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from feeder.keyed import derive_key, draw
from feeder.shards.errors import SourceError
from feeder.shards.names import readable
from feeder.shards.table import REST, SPLITS, SampleTable


def split_by_hash(tables: Sequence[SampleTable], fractions: Mapping[str, float]) -> list[SampleTable]:
    """Return the tables with splits cut off one of them: the only one, or ``train`` where there are several.

    Args:
        tables: of a source, one a split.
        fractions: of the samples, by the name of their split, each more than 0 and less than 1 in all.

    Raises:
        SourceError: the source has such a split already, or a part would be empty.
    """
    if not fractions:
        return list(tables)
    names = [split for split in SPLITS if split in fractions]
    chosen = next((table for table in tables if len(tables) == 1 or table.split == REST), None)
    present = {table.split for table in tables if table is not chosen} - {None}
    if chosen is None or present & {*names, REST} or REST in names:
        there = ", ".join(str(table.split) for table in tables)
        raise SourceError(
            f"{readable(tables[0].root)} cannot be split into {', '.join([REST, *names])}, because it has the splits "
            f"{there}; splits by hash are cut off the samples of 'train', or of a source without splits"
        )
    points = hash_points(chosen)
    ends = np.cumsum([fractions[name] for name in names])
    parts = cut_table(chosen, np.searchsorted(ends, points, side="right"), [*names, REST])
    for name in (*names, REST):
        if all(part.split != name for part in parts):
            raise SourceError(
                f"the split {name!r} by hash would be empty: {len(chosen)} samples are too few for a fraction of "
                f"{fractions.get(name, 1 - float(ends[-1])):g}; choose a larger one"
            )
    return _in_order([table for table in tables if table is not chosen] + parts)


def hash_points(table: SampleTable) -> NDArray[np.float64]:
    """Return float64[n]: where each sample stands in [0, 1), by its key."""
    digests = b"".join(
        hashlib.blake2b(table.key(row).encode(), digest_size=8).digest() for row in range(len(table))
    )  # 8 bytes a sample
    return np.frombuffer(digests, "<u8").astype(np.float64) * 2.0**-64


def cut_table(table: SampleTable, numbers: NDArray[np.int64], names: Sequence[str | None]) -> list[SampleTable]:
    """Return the parts of a table by the number that each sample has of a split's name, in the order of splits.

    A part without samples is left out; rows keep their order.
    """
    parts = []
    for number, name in enumerate(names):
        rows = np.flatnonzero(numbers == number)
        if rows.size == len(table):
            parts.append(dataclasses.replace(table, split=name))
        elif rows.size:
            parts.append(dataclasses.replace(table.take(rows), split=name))
    return _in_order(parts)


def _in_order(tables: list[SampleTable]) -> list[SampleTable]:
    return sorted(tables, key=lambda table: SPLITS.index(table.split) if table.split in SPLITS else -1)


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return int64[n], an order of rows in which classes take turns for as long as they have samples.

    Within a class, samples stand in the order of one draw each, of the key ("shards.balanced", seed). Round r takes the
    r-th sample of every class that has one, in the order of a draw of (key, class, r). So any stretch of the first
    rounds holds classes in equal numbers, and the order is the same on every machine. Samples without a label (−1) are
    a class like others.

    Args:
        labels: int64[n].
        seed: an integer of 64 bits.
    """
    key = derive_key("shards.balanced", seed)
    rows = np.arange(len(labels), dtype=np.int64)
    within = np.lexsort((draw(key, rows), labels))
    sorted_labels = labels[within]
    starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]]) if len(labels) else rows
    rounds = rows - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    turns = draw(np.asarray(draw(derive_key("shards.balanced.turns", seed), sorted_labels + 1)), rounds)
    return within[np.lexsort((turns, rounds))].astype(np.int64)
