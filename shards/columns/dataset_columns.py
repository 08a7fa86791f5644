"""The columns of a dataset for who asks questions of it: its own, or made and fetched once into the user's cache."""

import contextlib
import dataclasses
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import xxhash

from feeder.shards.columns.cached_files import write_cached
from feeder.shards.columns.consolidated import Column, all_indexes, consolidated_types, expression_types, write_columns
from feeder.shards.dataset.loading import load_column
from feeder.shards.dataset.manifest import COLUMNS_FOLDER, ColumnFile, Manifest
from feeder.shards.errors import ShardError, StorageError
from feeder.shards.storage import Folder, LocalFolder, read_pieces


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
        cache: the folder of cached files, see `feeder.shards.columns.cached_files.cache_folder`.
    """

    folder: Folder
    manifest: Manifest
    cache: Path

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns that there are, by name, with their types; ``image.format`` is text here."""
        return expression_types(self.manifest.fields)

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
