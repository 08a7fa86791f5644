"""Consolidated columns: one column of the indexes for all samples, in sample order, in one Arrow IPC file.

A question about all samples (`feeder.shards.selections`) would have to open every index; a column of 45.5 million
labels is one file of 364 MB instead, mapped into memory. ``columns/NAME.DIGEST8.arrow`` holds the column ``NAME``,
uncompressed, in record batches of `ROWS_A_BATCH` rows (the last one may be shorter); the manifest names the file and
its xxh3-128 digest under ``columns``. A build writes every column of its indexes but places and checksums:

========================================================  ======  ==============================================
column                                                    type    bytes a sample
========================================================  ======  ==============================================
``key``, ``source``                                       string  4 and the text
``label`` and other columns of type int64, float64        same    8
``image.width``, ``image.height`` (and of other images)   int32   4
``image.format``                                          uint8   1; a position in `feeder.shards.images.FORMATS`
columns of type string                                    string  4 and the text
columns of type bool                                      bool    ⅛
========================================================  ======  ==============================================

Rows without a value add ⅛ byte a sample. All that is about 0.1 % of photographs of 110 kB. A dataset without these
files (adopted, or older) gets them on first use in the user's cache folder, which also keeps the columns of a remote
dataset after they were fetched once.
"""

import contextlib
import dataclasses
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import Destination, writing_errors
from feeder.shards.errors import ShardError, StorageError
from feeder.shards.fields import Field
from feeder.shards.images import FORMAT_NAMES
from feeder.shards.index import ShardIndex, column_type
from feeder.shards.manifest import COLUMNS_FOLDER, ColumnFile, Manifest
from feeder.shards.reading import load_column, load_index
from feeder.shards.samples import DigestedFile
from feeder.shards.storage import STAGED, Folder, LocalFolder, flush_folder

ROWS_A_BATCH = 1 << 16  # half a MiB of int64, which stays in a core's cache while an expression is computed
MAX_RUN = 8 << 20  # rows looked up at once: the hash table of what is looked for is made anew for each such run
_DIGEST_DIGITS = 8  # in the names of files, so that a column that changed has another one
_FETCHED_AT_ONCE = 16  # indexes behind a URL: what takes time is to wait for each
_PIECE_BYTES = 32 << 20  # of a remote file in one request
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def append(self, values: pa.Array) -> None:
        """Append values of further samples."""
        self._waiting.append(values)
        self._rows += len(values)
        if self._rows >= ROWS_A_BATCH:
            values = pa.concat_arrays(self._waiting)
            whole = self._rows - self._rows % ROWS_A_BATCH
            for start in range(0, whole, ROWS_A_BATCH):
                self._write(values.slice(start, ROWS_A_BATCH))
            self._waiting = [values.slice(whole)]
            self._rows -= whole

    def _write(self, values: pa.Array) -> None:
        self._writer.write_batch(pa.record_batch([values], schema=self._schema))

    def finish(self, digits: int = _DIGEST_DIGITS) -> ColumnFile:
        """Write what is left and put the file in place; return its name in the folder, and its digest."""
        if self._rows:
            self._write(pa.concat_arrays(self._waiting))
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
    """Yield a column of all samples in order, at least so many rows at a time, but `MAX_RUN` are enough."""
    if name in manifest.columns:
        chunks: Iterable[pa.Array] = load_column(folder, manifest, name).chunks
    else:
        chunks = (index.column(name) for index in all_indexes(manifest, folder))
    waiting: list[pa.Array] = []
    count = 0
    for chunk in chunks:
        waiting.append(chunk)
        count += len(chunk)
        if count >= min(max(rows, ROWS_A_BATCH), MAX_RUN):
            yield pa.concat_arrays(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.concat_arrays(waiting)


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
                    shutil.copyfileobj(file, target, _PIECE_BYTES)
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


def _open_cached(path: Path, name: str, digest: str, num_samples: int) -> Column:
    """Return a column in the cache, mapped into memory; `ShardError` if it is absent, cut, altered or another one."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:  # ValueError: it has no bytes
        raise ShardError(f"no column in {path}: {error}") from error
    if (got := xxhash.xxh3_128_hexdigest(mapped)) != digest:
        raise ShardError(f"column {path} was cut or altered: digest {got}, expected {digest}")
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        column = Column(name, [reader.get_batch(number).column(0) for number in range(reader.num_record_batches)])
    if len(column) != num_samples:
        raise ShardError(f"column {path} holds {len(column)} values, expected {num_samples}")
    return column


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetColumns:
    """The columns of a dataset, opened on demand: from its own files, or made and kept in the cache folder.

    Attributes:
        folder, manifest: of the dataset.
        cache: the folder of cached files, see `cache_folder`.
    """

    folder: Folder
    manifest: Manifest
    cache: Path

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns that there are, by name, with their types; ``image.format`` is text here."""
        types = consolidated_types(self.manifest.fields)
        return {name: pa.string() if kind == pa.uint8() else kind for name, kind in types.items()}

    def open(self, names: Iterable[str]) -> dict[str, Column]:
        """Return open columns by name.

        Raises:
            ShardError: a column of the dataset, or an index that one is made from, is missing, cut or altered.
            StorageError: the storage answered with an error.
        """
        columns: dict[str, Column] = {}
        absent = []
        for name in names:
            record = self.manifest.columns.get(name)
            if record is None:
                absent.append(name)
            elif isinstance(self.folder, LocalFolder):
                columns[name] = Column(name, load_column(self.folder, self.manifest, name).chunks)
            else:
                with self._cache_written():
                    columns[name] = self._fetched(name, record)
        with self._cache_written():
            return columns | self._made(absent)

    @contextlib.contextmanager
    def _cache_written(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"cannot write {self._cached()}: {error.strerror or error}; set XDG_CACHE_HOME to a folder with "
                "space for the columns of the dataset"
            ) from error

    def _fetched(self, name: str, record: ColumnFile) -> Column:
        """Return a column of a remote dataset, fetched unless the cache has it whole."""
        path = self._cached() / f"{name}.{record.digest}.arrow"
        with contextlib.suppress(ShardError):
            return _open_cached(path, name, record.digest, self.manifest.num_samples)
        try:
            digest = write_cached(path, read_pieces(self.folder, record.file), expected=record.digest)
        except FileNotFoundError as error:
            raise ShardError(
                f"column {self.folder.where(record.file)} is missing, but the manifest lists it; copy it again from "
                "the dataset's origin"
            ) from error
        if digest != record.digest:
            raise ShardError(
                f"column {self.folder.where(record.file)} was cut or altered: digest {digest}, expected "
                f"{record.digest}; copy it again from the dataset's origin"
            )
        return _open_cached(path, name, record.digest, self.manifest.num_samples)

    def _made(self, names: list[str]) -> dict[str, Column]:
        """Return columns that the dataset has no files of: from the cache, which vouches for them by their names."""
        columns: dict[str, Column] = {}
        place = self._cached()
        missing = {}
        types = consolidated_types(self.manifest.fields)
        for name in names:
            for path in place.glob(f"{name}.*.arrow"):
                digest = path.name.removeprefix(f"{name}.").removesuffix(".arrow")
                with contextlib.suppress(ShardError):
                    columns[name] = _open_cached(path, name, digest, self.manifest.num_samples)
            if name not in columns:
                missing[name] = types[name]
        if missing:
            place.mkdir(parents=True, exist_ok=True)
            indexes = all_indexes(self.manifest, self.folder)
            for name, record in write_columns(missing, indexes, place, digits=len(self.manifest.digest)).items():
                columns[name] = _open_cached(place / record.file, name, record.digest, self.manifest.num_samples)
        return columns

    def _cached(self) -> Path:
        return self.cache / COLUMNS_FOLDER / self.manifest.digest


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``shardfeed`` in XDG_CACHE_HOME, which is ~/.cache by default."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "shardfeed"


def write_cached(path: Path, pieces: Iterable[bytes], expected: str | None = None) -> str:
    """Write a file of the cache so that it appears whole; two processes may write the same one at the same time.

    Returns the xxh3-128 digest of its bytes; if that is not the `expected` one, the file does not appear.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(suffix=STAGED, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            digested = DigestedFile(file)
            for piece in pieces:
                digested.write(piece)
        digest = digested.hexdigest()
        if expected in (None, digest):
            os.replace(staged, path)
        return digest
    finally:
        Path(staged).unlink(missing_ok=True)


def read_pieces(folder: Folder, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file of any size, a piece at a time; `FileNotFoundError` if there is none."""
    size = folder.size(name)
    for offset in range(0, size, _PIECE_BYTES):
        yield from folder.read_ranges([(name, offset, min(_PIECE_BYTES, size - offset))])
