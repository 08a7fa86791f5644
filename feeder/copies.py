"""How often each sample occurs in an epoch: a table of whole numbers, in units of a fraction of a copy.

With unit 1 the table counts copies. With unit K sample i has the quota q_i and occurs floor(q_i / K) or ceil(q_i / K)
times in an epoch, q_i / K times on average. Which samples get the odd copy is systematic sampling with unequal
probabilities: quotas are laid end to end, and every K-th unit from a drawn one on is a row (Madow, "On the theory of
systematic sampling, II", Annals of Mathematical Statistics 20, 1949). The samples of a segment are laid in an order
drawn for the epoch, so that any two of them may occur together (Hartley and Rao, "Sampling with unequal probabilities
and without replacement", ibid. 33, 1962). All of it is integer arithmetic, exact and the same on every machine.

A table of 45.5 million samples is 46 MB with unit 1. One that lies in a file is mapped, and pickles as the file's path.
"""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, draw

Int64Array = NDArray[np.int64]

_FILE_VERSION = 1
_HEAD_BYTES = 4096  # of a file, so that the table behind it begins on a page
_AT_ONCE = 1 << 20  # samples summed at once: their quotas as int64 take 8 MiB
_MAX_TOTAL = 1 << 62  # units of all samples; with a row's place inside a segment added they stay in 63 bits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Copies:
    """How often each sample of a dataset occurs in an epoch; made by `copies_of` or `map_copies`.

    Attributes:
        table: uint8, uint16 or uint32[N], in units of 1 / ``unit``; 0 leaves a sample out.
        unit: K, at least 1.
        num_rows: rows of an epoch: the sum of the table, divided by the unit.
        digest: hexadecimal; identifies table and unit.
        path: of the file that the table is mapped from, or None.
    """

    table: NDArray[Any]
    unit: int
    num_rows: int
    digest: str
    path: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:
            return _mapped_again, (self.path, self.digest)
        return copies_of, (self.table, self.unit)

    def segment_quotas(self, first_ids: Int64Array) -> Int64Array:
        """Return the sum of the table in each segment, int64[S].

        Args:
            first_ids: int64[S + 1], segment s holds the samples first_ids[s] … first_ids[s + 1] - 1.
        """
        if len(self.table) != int(first_ids[-1]):
            raise ConfigError(
                f"the table of copies has {len(self.table)} entries and the dataset {int(first_ids[-1])} samples; it"
                " needs one for each: make it from this dataset"
            )
        quotas = np.zeros(len(first_ids) - 1, np.int64)
        occupied = np.flatnonzero(np.diff(first_ids))  # reduceat gives nonsense for empty segments
        starts = first_ids[occupied]
        cuts = np.searchsorted(starts, np.arange(0, len(self.table), _AT_ONCE)).tolist()
        for begin, end in itertools.pairwise([*cuts, len(starts)]):
            if begin < end:  # a segment may be longer than what is summed at once
                last = starts[end] if end < len(starts) else len(self.table)
                part = self.table[starts[begin] : last].astype(np.int64)
                quotas[occupied[begin:end]] = np.add.reduceat(part, starts[begin:end] - starts[begin])
        return quotas

    def resolve(
        self, first: int, last: int, offsets: Int64Array, key: UInt64Array | None = None
    ) -> tuple[Int64Array, Int64Array]:
        """Return the sample and the number of its copy at offsets into a segment's quotas, int64[n] each.

        Args:
            first, last: the segment's samples are first … last - 1.
            offsets: int64[n], in units, from 0, below the segment's sum.
            key: of the order in which the quotas of the samples are laid; None for manifest order.
        """
        quotas = self.table[first:last].astype(np.int64)
        laid = None if key is None else np.argsort(draw(key, np.arange(last - first)), kind="stable")
        ends = np.cumsum(quotas if laid is None else quotas[laid])
        place = np.searchsorted(ends, offsets, side="right")
        sample = place if laid is None else laid[place]
        # rows of one sample are a unit apart, the first less than a unit behind where its quota begins
        copy = (offsets - (ends[place] - quotas[sample])) // self.unit
        return first + sample, copy


def copies_of(table: NDArray[Any], unit: int = 1) -> Copies:
    """Return a table of copies with its digest.

    Args:
        table: unsigned integers[N] below 2**32, of any unsigned type: the digest depends on the values alone.
        unit: K; the sum of the table is a multiple of it, so that every epoch has the same number of rows.

    Raises:
        ConfigError: the table is no such array, or its sum is no multiple of the unit or beyond 2**62.
    """
    if not isinstance(table, np.ndarray) or table.dtype.kind != "u" or table.ndim != 1:
        got = f"{table.dtype}{list(table.shape)}" if isinstance(table, np.ndarray) else type(table).__name__
        raise ConfigError(f"the table of copies is {got}; expected a one-dimensional array of unsigned integers")
    most = int(table.max(initial=0))
    if most >= 1 << 32 or most * len(table) >= _MAX_TOTAL:
        raise ConfigError(
            f"the table of copies has entries up to {most} for {len(table)} samples; an entry must be below 2**32, and"
            " entries times samples below 2**62: take a smaller unit"
        )
    total = int(table.sum(dtype=np.int64))
    if unit < 1 or total % unit:
        raise ConfigError(
            f"the table of copies sums to {total} in units of 1/{unit}; the sum must be a multiple of the unit, so that"
            " every epoch has the same length"
        )
    narrow = table.astype(np.min_scalar_type(most), copy=False)
    rows = total // unit
    return Copies(table=narrow, unit=unit, num_rows=rows, digest=_digest(narrow, unit, rows))


def _digest(table: NDArray[Any], unit: int, num_rows: int) -> str:
    """Return the xxh3-128 digest of the unit, the rows and the table in the narrowest type, little-endian."""
    digest = xxhash.xxh3_128(f"{unit}:{num_rows}:{table.itemsize}:".encode("ascii"))
    digest.update(table.astype(table.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def encoded_copies(copies: Copies, about: str) -> Iterator[bytes]:
    """Yield the bytes of a file that holds a table: a line of JSON, filled up to a page, and the table, little-endian.

    Args:
        copies: to keep.
        about: says in a few hundred characters at most what the table is; `map_copies` compares it.
    """
    head = {
        "version": _FILE_VERSION,
        "about": about,
        "samples": len(copies.table),
        "bytes": copies.table.itemsize,
        "unit": copies.unit,
        "rows": copies.num_rows,
        "digest": copies.digest,
    }
    line = json.dumps(head).encode("ascii")
    yield line + b" " * (_HEAD_BYTES - 1 - len(line)) + b"\n"
    little = copies.table.astype(copies.table.dtype.newbyteorder("<"), copy=False)
    for start in range(0, len(little), 1 << 20):
        yield little[start : start + (1 << 20)].tobytes()


def map_copies(path: Path, *, about: str | None = None, digest: str | None = None) -> Copies | None:
    """Return the table in a file, mapped into memory; None if there is none, or it is damaged or another one.

    Args:
        path: of the file.
        about: what the file must say that it is; None for anything.
        digest: that the table must have; None for any.
    """
    try:
        with open(path, "rb") as file:
            head = json.loads(file.read(_HEAD_BYTES))
            size = os.fstat(file.fileno()).st_size
        samples, item = head["samples"], head["bytes"]
        if head["version"] != _FILE_VERSION or size != _HEAD_BYTES + samples * item:
            return None
        table: NDArray[Any] = np.memmap(path, np.dtype(f"<u{item}"), mode="r", offset=_HEAD_BYTES, shape=(samples,))
        found = _digest(table, head["unit"], head["rows"])
        if found != head["digest"] or digest not in (None, found) or about not in (None, head["about"]):
            return None
        return Copies(table=table, unit=head["unit"], num_rows=head["rows"], digest=found, path=os.fspath(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped_again(path: str, digest: str) -> Copies:
    """Return the table that another process mapped from a file."""
    copies = map_copies(Path(path), digest=digest)
    if copies is None:
        raise ConfigError(
            f"the selection of samples in {path} is gone or was altered since the dataset was opened; open the dataset"
            " again"
        )
    return copies
