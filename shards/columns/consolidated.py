"""Consolidated columns: one column of the indexes for all samples, in sample order, in one Arrow IPC file.

A question about all samples (`feeder.shards.columns.selections`) would have to open every index; a column of 45.5
million labels is one file of 364 MB instead, mapped into memory. ``columns/NAME.DIGEST8.arrow`` holds the column
``NAME``, uncompressed, in record batches of `ROWS_A_BATCH` rows (the last one may be shorter, and so may batches of
long texts, which hold at most `BATCH_BYTES`); the manifest names the file and its xxh3-128 digest under ``columns``. A
build writes every column of its indexes but places and checksums:

========================================================  ======  ==============================================
column                                                    type    bytes a sample
========================================================  ======  ==============================================
``key``, ``source``                                       string  4 and the text
``label`` and other columns of type int64, float64        same    8
``image.width``, ``image.height`` (and of other images)   int32   4
``image.format``                                          uint8   1; a position in `FORMATS` of `images.headers`
columns of type string                                    string  4 and the text
columns of type bool                                      bool    ⅛
========================================================  ======  ==============================================

Rows without a value add ⅛ byte a sample. All that is about 0.1 % of photographs of 110 kB. A dataset without these
files (adopted, or older) gets them on first use in the user's cache folder (`feeder.shards.columns.dataset_columns`).
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.shards.dataset.loading import load_column, load_index
from feeder.shards.dataset.manifest import COLUMNS_FOLDER, ColumnFile, Manifest
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import Destination, writing_errors
from feeder.shards.fields import Field
from feeder.shards.formats.index import ShardIndex, column_type
from feeder.shards.formats.samples import DigestedFile
from feeder.shards.images.headers import FORMAT_NAMES
from feeder.shards.storage import PIECE_BYTES, STAGED, Folder, LocalFolder, flush_folder

ROWS_A_BATCH = 1 << 16  # half a MiB of int64, which stays in a core's cache while an expression is computed
BATCH_BYTES = 1 << 30  # of text in one batch or run: positions in a string array have 32 bits
MAX_RUN = 8 << 20  # rows looked up at once: the hash table of what is looked for is made anew for each such run
_DIGEST_DIGITS = 8  # in the names of files, so that a column that changed has another one
_FETCHED_AT_ONCE = 16  # indexes behind a URL: what takes time is to wait for each
_FORMATS = pa.array(FORMAT_NAMES[: FORMAT_NAMES.index("") + 1])


def consolidated_types(fields: Mapping[str, Field]) -> dict[str, pa.DataType]:
    """Return the columns that datasets with these fields are consolidated into, by name, with their types."""
    types: dict[str, pa.DataType] = {"key": pa.string(), "source": pa.string()}
    for name, field in fields.items():
        if field.type == "image":
            types |= {f"{name}.width": pa.int32(), f"{name}.height": pa.int32(), f"{name}.format": pa.uint8()}
        elif not field.stored:
            types[name] = column_type(field)
    return types


def expression_types(fields: Mapping[str, Field]) -> dict[str, pa.DataType]:
    """Return the columns that expressions may name, with their types there; ``image.format`` is text."""
    types = consolidated_types(fields)
    return {name: pa.string() if kind == pa.uint8() else kind for name, kind in types.items()}


class Column:
    """One column of all samples, open. Safe from many threads; the mapped file stays open as long as its arrays live.

    Attributes:
        name: as in the indexes.
        chunks: its values, one array a record batch.
    """

    def __init__(self, name: str, chunks: list[pa.Array]) -> None:
        self.name = name
        self.chunks = chunks
        self._starts: NDArray[np.int64] = np.cumsum([0, *map(len, chunks)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, start: int, stop: int) -> pa.Array:
        """Return the values of rows start … stop − 1; nothing is copied if they lie in one record batch."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            begin = int(self._starts[first])
            part = self.chunks[first].slice(start - begin, stop - start)
            parts.append(part)
            start += len(part)
            first += 1
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts or [self.chunks[0].slice(0, 0)])


def format_names(codes: pa.Array) -> pa.Array:
    """Return the column ``image.format`` as text: a dictionary array, in which equal names share one number."""
    numbers = np.minimum(np.asarray(codes), len(_FORMATS) - 1)
    return pa.DictionaryArray.from_arrays(pa.array(numbers), _FORMATS)


class ColumnWriter:
    """Writes one column as it comes, a record batch at a time; memory is bounded by that of a batch.

    Leaving the `with` block with an exception discards the file. `finish` gives it its name.
    """

    def __init__(self, name: str, kind: pa.DataType, folder: Path) -> None:
        self.name = name
        self._schema = pa.schema([pa.field(name, kind)])
        self._folder = folder
        descriptor, staged = tempfile.mkstemp(suffix=STAGED, prefix="column-", dir=folder)
        self._staged = Path(staged)
        self._file: BinaryIO = open(descriptor, "wb", buffering=1 << 20)  # noqa: SIM115 closed by `finish` or `discard`
        self._digested = DigestedFile(self._file)
        self._writer = pa.ipc.new_file(self._digested, self._schema)
        self._waiting: list[pa.Array] = []
        self._rows = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def append(self, values: pa.Array) -> None:
        """Append values of further samples."""
        start = 0
        while start < len(values):
            part = values.slice(start, min(ROWS_A_BATCH - self._rows, _rows_within(values, start, BATCH_BYTES)))
            if self._rows and self._bytes + text_bytes(part) > BATCH_BYTES:
                self._flush()
                continue
            start += len(part)
            self._waiting.append(part)
            self._rows += len(part)
            self._bytes += text_bytes(part)
            if self._rows == ROWS_A_BATCH:
                self._flush()

    def _flush(self) -> None:
        """Write what is waiting as one batch."""
        values = pa.concat_arrays([part.cast(self._schema.field(0).type) for part in self._waiting])
        self._writer.write_batch(pa.record_batch([values], schema=self._schema))
        self._waiting, self._rows, self._bytes = [], 0, 0

    def finish(self, digits: int = _DIGEST_DIGITS) -> ColumnFile:
        """Write what is left and put the file in place; return its name in the folder, and its digest."""
        if self._rows:
            self._flush()
        self._writer.close()
        self._file.flush()
        os.fchmod(self._file.fileno(), 0o644)  # a temporary file is its owner's alone
        os.fsync(self._file.fileno())
        self._file.close()
        digest = self._digested.hexdigest()
        name = f"{self.name}.{digest[:digits]}.arrow"
        os.replace(self._staged, self._folder / name)
        return ColumnFile(file=name, digest=digest)

    def discard(self) -> None:
        """Remove what was written, unless it is in place."""
        self._file.close()
        self._staged.unlink(missing_ok=True)


def text_bytes(values: pa.Array) -> int:
    """Return the bytes of the texts in an array; 0 if it holds none."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)) or not len(values):
        return 0
    ends = _text_ends(values)
    return int(ends[-1] - ends[0])


def _text_ends(values: pa.Array) -> NDArray[np.int64]:
    """Return int64[n + 1]: where the texts of an array begin and end in its bytes."""
    kind = np.int64 if pa.types.is_large_string(values.type) else np.int32
    offsets = np.frombuffer(values.buffers()[1], kind)[values.offset : values.offset + len(values) + 1]
    return offsets.astype(np.int64)


def _rows_within(values: pa.Array, start: int, most: int) -> int:
    """Return how many rows from `start` on have at most so many bytes of text; at least 1."""
    if not text_bytes(values):
        return len(values)
    ends = _text_ends(values)
    return max(1, int(np.searchsorted(ends, ends[start] + most, side="right")) - 1 - start)


def consolidate(
    manifest: Manifest, folder: Folder, out: Destination, *, prefix: str = "", names: Iterable[str] | None = None
) -> dict[str, ColumnFile]:
    """Write the columns of a dataset from its indexes, in one pass over them; return what its manifest says of them.

    Args:
        manifest: names the shards and their indexes.
        folder: holds the indexes.
        out: the dataset's folder, or one around it, to write into.
        prefix: what stands before the dataset's names in `out`, such as ``"train/"``.
        names: of the columns to write; all when None.

    Raises:
        ShardError: an index is missing, cut or altered.
        DestinationError: the files cannot be written.
    """
    types = consolidated_types(manifest.fields)
    wanted = types if names is None else {name: types[name] for name in names}
    return place_columns(out, lambda place: write_columns(wanted, all_indexes(manifest, folder), place), prefix)


def all_indexes(manifest: Manifest, folder: Folder) -> Iterator[ShardIndex]:
    """Yield the indexes of all shards, in order; those behind a URL are fetched some at a time."""
    numbers = range(len(manifest.shards))
    if isinstance(folder, LocalFolder):
        yield from (load_index(folder, manifest, number) for number in numbers)
        return
    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        for start in range(0, len(numbers), 4 * _FETCHED_AT_ONCE):
            some = numbers[start : start + 4 * _FETCHED_AT_ONCE]
            yield from pool.map(lambda number: load_index(folder, manifest, number), some)


def column_runs(manifest: Manifest, folder: Folder, name: str, rows: int = 1) -> Iterator[pa.Array]:
    """Yield a column of all samples in order, at least so many rows at a time, but `MAX_RUN` are enough.

    Texts come in runs of at most `BATCH_BYTES`, or of one shard.
    """
    if name in manifest.columns:
        chunks: Iterable[pa.Array] = load_column(folder, manifest, name).chunks
    else:
        chunks = (_alone(index.column(name)) for index in all_indexes(manifest, folder))
    yield from joined_runs(chunks, rows)


def joined_runs(chunks: Iterable[pa.Array], rows: int) -> Iterator[pa.Array]:
    """Yield the values of arrays in order, joined into runs as `column_runs` has them."""
    waiting: list[pa.Array] = []
    count = size = 0
    for chunk in chunks:
        if waiting and size + text_bytes(chunk) > BATCH_BYTES:
            yield pa.concat_arrays(waiting)
            waiting, count, size = [], 0, 0
        waiting.append(chunk)
        count += len(chunk)
        size += text_bytes(chunk)
        if count >= min(max(rows, ROWS_A_BATCH), MAX_RUN):
            yield pa.concat_arrays(waiting)
            waiting, count, size = [], 0, 0
    if waiting:
        yield pa.concat_arrays(waiting)


def _alone(column: pa.Array) -> pa.Array:
    """Return a copy of a column, which does not keep the index that it comes from in memory."""
    return column.take(pa.array(np.arange(len(column))))


def place_columns(
    out: Destination, write: Callable[[Path], dict[str, ColumnFile]], prefix: str = ""
) -> dict[str, ColumnFile]:
    """Put columns into ``columns/`` of a dataset; return what its manifest says of them.

    Args:
        out: the dataset's folder, or one around it, to write into.
        write: writes them into a local folder, and returns their names there and their digests.
        prefix: what stands before the dataset's names in `out`.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(out, LocalDestination):
            place = out.path / prefix / COLUMNS_FOLDER
            with writing_errors(str(place)):
                place.mkdir(exist_ok=True)
                columns = write(place)
                flush_folder(place)
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feeder-columns-")))
            with writing_errors(str(place)):
                columns = write(place)
            for column in columns.values():
                file = stack.enter_context(open(place / column.file, "rb"))
                with out.staged(f"{prefix}{COLUMNS_FOLDER}/{column.file}") as target:
                    shutil.copyfileobj(file, target, PIECE_BYTES)
    return {name: dataclasses.replace(one, file=f"{COLUMNS_FOLDER}/{one.file}") for name, one in columns.items()}


def rewrite_columns(
    manifest: Manifest,
    folder: Folder,
    out: Destination,
    *,
    kept: NDArray[np.bool_] | None = None,
    added: Callable[[], Iterable[ShardIndex]] = tuple,
) -> dict[str, ColumnFile]:
    """Write the columns that a dataset has once more, without some samples or with further ones behind.

    Args:
        manifest, folder: of the dataset as it is.
        out: its folder, to write into.
        kept: bool[n], which samples stay; all when None.
        added: gives the indexes of further shards; what one does not have is null there.
    """

    def write(place: Path) -> dict[str, ColumnFile]:
        columns = {name: load_column(folder, manifest, name) for name in manifest.columns}
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(ColumnWriter(name, one.type, place)) for name, one in columns.items()]
            for writer in writers:
                start = 0
                for chunk in columns[writer.name].chunks:
                    mask = None if kept is None else pa.array(kept[start : start + len(chunk)])
                    writer.append(chunk if mask is None else chunk.filter(mask))
                    start += len(chunk)
            for index in added():
                for writer in writers:
                    kind = columns[writer.name].type
                    there = writer.name in index
                    writer.append(index.column(writer.name) if there else pa.nulls(index.num_samples, kind))
            return {writer.name: writer.finish() for writer in writers}

    return place_columns(out, write)


def write_columns(
    types: Mapping[str, pa.DataType], indexes: Iterable[ShardIndex], place: Path, digits: int = _DIGEST_DIGITS
) -> dict[str, ColumnFile]:
    """Write columns of a run of indexes into a folder, in one pass; return their names there, and their digests."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(ColumnWriter(name, kind, place)) for name, kind in types.items()]
        for index in indexes:
            for writer in writers:
                writer.append(index.column(writer.name))
        return {writer.name: writer.finish(digits) for writer in writers}
