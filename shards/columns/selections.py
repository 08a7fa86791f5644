"""Which samples an expression holds for: computed over memory-mapped columns, and kept in a small file.

The file is a line of JSON (version, dataset digest, expression, counts, digest) and one bit a sample, 5.7 MB for 45.5
million. It lies in the cache folder, under a name made of version, dataset digest and canonical expression; it appears
whole, its digest is compared when it is read, and what is damaged is computed again. So the same question costs a few
milliseconds the second time, in any process of the machine.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.resources import usable_cores
from feeder.shards.columns.cached_files import cache_folder, keep_cached
from feeder.shards.columns.consolidated import ROWS_A_BATCH, Column, format_names
from feeder.shards.columns.dataset_columns import DatasetColumns
from feeder.shards.columns.expressions import Expression, parse_expression
from feeder.shards.columns.folder_columns import FolderColumns
from feeder.shards.dataset.manifest import Manifest, locate_manifest, read_manifest
from feeder.shards.reading.folder import FolderReader
from feeder.shards.reading.rows import Reader
from feeder.shards.storage import open_folder

VERSION = 1  # of what expressions mean and of the file: another one finds none of the older files
_FOLDER = "selections"
_COUNTED_AT_ONCE = 1 << 20  # bytes of bits, which take eight times the memory while they are counted
_ROWS_AT_ONCE = 8 * ROWS_A_BATCH  # what a thread computes before it looks for more; a multiple of 8, the bits of a byte


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The samples of a dataset for which an expression holds.

    Attributes:
        dataset: the dataset digest.
        expression: in canonical form.
        num_samples, num_selected: of the dataset, and those chosen.
        digest: xxh3-128 of `bits`, hexadecimal.
        bits: uint8[⌈num_samples / 8⌉]: sample i is bit i mod 8, the lowest first, of byte i // 8.
    """

    dataset: str
    expression: str
    num_samples: int
    num_selected: int
    digest: str
    bits: NDArray[np.uint8]

    def mask(self) -> NDArray[np.bool_]:
        """Return bool[num_samples]."""
        return np.unpackbits(self.bits, count=self.num_samples, bitorder="little").view(np.bool_)

    def ids(self) -> NDArray[np.int64]:
        """Return int64[num_selected]: the ids of the samples chosen, ascending."""
        return np.flatnonzero(self.mask()).astype(np.int64, copy=False)


def dataset_columns(source: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> DatasetColumns:
    """Return the columns of the dataset at a path or URL; nothing is read but its manifest.

    Args:
        source: of the dataset, of its manifest, or of an earlier generation.
        cache: the folder of what can be made again; by default `feeder.shards.columns.cached_files.cache_folder`.
    """
    folder, name = locate_manifest(source)
    return DatasetColumns(
        folder=folder, manifest=read_manifest(folder, name), cache=cache_folder() if cache is None else Path(cache)
    )


class Columns(Protocol):
    """The columns of a dataset, as questions need them; opening is safe from many threads."""

    @property
    def manifest(self) -> Manifest:
        """Of the dataset; its digest is a part of the names of what is kept."""
        ...

    @property
    def cache(self) -> Path:
        """The folder of what can be made again."""
        ...

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns that there are, by name, with their types; ``image.format`` is text here."""
        ...

    def open(self, names: Iterable[str]) -> dict[str, Column]:
        """Return open columns by name; those called ``image.format`` hold numbers."""
        ...


def reader_columns(reader: Reader) -> Columns:
    """Return the columns of an open dataset, a plain folder included, with the user's cache folder."""
    if isinstance(reader, FolderReader):
        return FolderColumns(reader=reader, cache=cache_folder())
    return DatasetColumns(folder=open_folder(reader.url), manifest=reader.manifest, cache=cache_folder())


def select(columns: Columns, expression: str, *, threads: int | None = None) -> Selection:
    """Return which samples of a dataset an expression holds for, from the cache if it was asked before.

    Args:
        columns: of the dataset.
        expression: see `feeder.shards.columns.expressions`.
        threads: that compute; by default as many as the cores that this process may use.

    Raises:
        ExpressionError: the expression cannot be, or an integer passes 64 bits.
        ShardError: a column, or an index that it is made from, is missing, cut or altered.
        StorageError: the storage answered with an error.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}, expected at least 1")
    parsed = parse_expression(expression, columns.types)
    dataset = columns.manifest.digest
    path = columns.cache / _FOLDER / f"{_key(dataset, parsed.text)}.bits"
    found = _read(path, dataset, parsed.text, columns.manifest.num_samples)
    if found is not None:
        return found
    bits = _compute(parsed, columns, threads or usable_cores())
    selection = Selection(
        dataset=dataset,
        expression=parsed.text,
        num_samples=columns.manifest.num_samples,
        num_selected=_count(bits),
        digest=xxhash.xxh3_128_hexdigest(bits.data),
        bits=bits,
    )
    _write(path, selection)
    return selection


def _compute(expression: Expression, columns: Columns, threads: int) -> NDArray[np.uint8]:
    """Return the bits of a selection: every thread takes runs of rows until none are left."""
    opened = columns.open(expression.columns)
    total = columns.manifest.num_samples
    bits = np.zeros((total + 7) // 8, np.uint8)

    def run(start: int) -> None:
        for begin in range(start, min(start + _ROWS_AT_ONCE, total), ROWS_A_BATCH):
            end = min(begin + ROWS_A_BATCH, total)
            batch = {name: column_values(column, begin, end) for name, column in opened.items()}
            packed = np.packbits(expression.mask(batch, end - begin), bitorder="little")
            bits[begin // 8 : begin // 8 + len(packed)] = packed

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(run, range(0, total, _ROWS_AT_ONCE)):
            pass
    return bits


def column_values(column: Column, begin: int, end: int) -> pa.Array:
    """Return the values of rows begin … end − 1; texts may come as a dictionary array."""
    values = column.rows(begin, end)
    return format_names(values) if values.type == pa.uint8() else values


def _count(bits: NDArray[np.uint8]) -> int:
    return sum(
        int(np.unpackbits(bits[start : start + _COUNTED_AT_ONCE]).sum())
        for start in range(0, len(bits), _COUNTED_AT_ONCE)
    )


def _key(dataset: str, expression: str) -> str:
    text = json.dumps([VERSION, dataset, expression])
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def _write(path: Path, selection: Selection) -> None:
    """Keep a selection."""
    head = dataclasses.asdict(dataclasses.replace(selection, bits=np.zeros(0, np.uint8)))
    del head["bits"]

    def pieces() -> Iterator[bytes]:
        yield json.dumps({"version": VERSION, **head}).encode("ascii") + b"\n"
        yield selection.bits.tobytes()

    keep_cached(path, pieces(), "a selection")


def _read(path: Path, dataset: str, expression: str, num_samples: int) -> Selection | None:
    """Return a selection that was kept, or None: there is none, or it is damaged."""
    try:
        line, _, data = path.read_bytes().partition(b"\n")
        head = json.loads(line)
        expected = {"version": VERSION, "dataset": dataset, "expression": expression, "num_samples": num_samples}
        if {name: head[name] for name in expected} != expected or xxhash.xxh3_128_hexdigest(data) != head["digest"]:
            return None
        bits = np.frombuffer(data, np.uint8)
        if len(bits) != (num_samples + 7) // 8:
            return None
        return Selection(
            dataset=dataset,
            expression=expression,
            num_samples=num_samples,
            num_selected=_count(bits),
            digest=str(head["digest"]),
            bits=bits,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
