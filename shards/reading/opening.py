"""Opening and reading a dataset: sample ids in, rows and checked bytes out.

A shard is opened on first use: its size is held against the manifest and its index against the index's digest. Open
shards stay in a bounded cache, least recently used out first. Local shards are read with ``pread`` (no shared file
position, so any number of threads), remote ones with ranged requests of fsspec; every image is checked against its
CRC-32C.
"""

import contextlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.shards.dataset.loading import (
    check_size,
    compare_size,
    find_datasets,
    load_column,
    load_index,
    missing,
    open_local,
)
from feeder.shards.dataset.manifest import MANIFEST_NAME, Manifest, locate_manifest, read_manifest
from feeder.shards.errors import ManifestError, ShardError
from feeder.shards.fields import ABSENT
from feeder.shards.formats.index import ShardIndex, StoredColumns, index_name
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.images.headers import FORMAT_NAMES
from feeder.shards.reading.folder import FolderReader
from feeder.shards.reading.rows import Reader, Rows, checked_ids, joined_rows, no_such_field
from feeder.shards.storage import Folder, LocalFolder, open_folder, read_regular_file, unreadable

__all__ = [
    "Reader",
    "Rows",
    "ShardReader",
    "check_size",
    "find_datasets",
    "load_column",
    "load_index",
    "open_dataset",
]

_MAX_OPEN_SHARDS = 512  # two descriptors and about 100 kB of mapped index each
_DESCRIPTOR_SHARE = 8  # open shards take at most 2/8 of the descriptors a process may have: the rest is not ours


def open_dataset(source: str | os.PathLike[str]) -> Reader:
    """Open a dataset.

    Args:
        source: the folder or URL of a dataset made by ``feeder build`` or ``feeder index``, or of an earlier generation
            of it (``…/generations/000003.json``), or a plain folder of images (class folders, or flat), which is
            adopted in memory.

    Raises:
        ManifestError: there is a manifest and it cannot be used, or there is none and `source` is not a local folder.
        SourceError: a plain folder that holds no images, or several splits.
        StorageError: the storage answered with an error.
    """
    folder, name = locate_manifest(source)
    try:
        return ShardReader(folder, read_manifest(folder, name))
    except ManifestError as error:
        if not isinstance(error.__cause__, FileNotFoundError) or name != MANIFEST_NAME:
            raise
        if splits := find_datasets(folder.url):
            raise ManifestError(
                f"{folder.url} holds several datasets, expected one; open {' or '.join(splits)}"
            ) from error
        if not isinstance(folder, LocalFolder) or not os.path.isdir(folder.url):
            raise
        if shard := _first_shard(folder.url):
            raise ManifestError(
                f"{folder.url} holds shards, such as {shard}, but no manifest, so it is not a whole dataset; copy"
                f" {MANIFEST_NAME} from its origin, or build it again"
            ) from error
    return FolderReader(folder.url)


def _first_shard(folder: str) -> str | None:
    """Return the name of a shard in a local folder, or None."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.name.endswith(index_name(""))), None)
    return None


class ShardReader:
    """The reader of datasets made of shards; see `feeder.shards.reading.rows.Reader` for what it promises."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.manifest = manifest
        self.url = folder.url
        self._folder = folder
        self._open = _OpenShards(folder, manifest)

    def __getstate__(self) -> tuple[Folder, Manifest]:
        return self._folder, self.manifest

    def __setstate__(self, state: tuple[Folder, Manifest]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # the same object as from its folder and manifest

    def describe(self, ids: NDArray[np.int64]) -> Rows:
        """Return the rows of samples; only indexes are read. Errors as in `read`, but for those of image bytes."""
        return joined_rows([self._rows(places, "image") for places in self._locate(ids)])

    def read(self, ids: NDArray[np.int64], field: str = "image") -> tuple[Rows, list[bytes]]:
        """Return the rows of samples and the bytes of a stored field, each checked against its CRC-32C.

        Raises:
            ShardError: a shard or its index is missing, cut, altered or of another dataset.
            StorageError: the storage answered with an error.
            IndexError: an id is outside the dataset.
            ConfigError: the dataset has no such field, or it is a column.
        """
        if field != "image" and not (field in self.manifest.fields and self.manifest.fields[field].stored):
            raise no_such_field(self, field)
        rows, images = [], []
        for places in self._locate(ids):
            if isinstance(self._open.data, LocalFolder):
                images += [shard.read(row, field) for shard, row in places]
            else:
                images += self._read_ranges(places, field)
            rows.append(self._rows(places, field))
        return joined_rows(rows), images

    def values(self, ids: NDArray[np.int64], field: str) -> list[Any]:
        """Return the values of a column field, None where a sample has none. Errors as in `read`."""
        if field not in self.manifest.fields or self.manifest.fields[field].stored:
            raise no_such_field(self, field)
        if field in self.manifest.columns:
            return _picked(self._open.column(field), checked_ids(ids, self.manifest.num_samples))
        return [shard.index.column(field)[row].as_py() for places in self._locate(ids) for shard, row in places]

    def close(self) -> None:
        """Release descriptors and mappings; a later read opens what it needs."""
        self._open = _OpenShards(self._folder, self.manifest)

    def _locate(self, ids: NDArray[np.int64]) -> Iterator[list[tuple["OpenShard", int]]]:
        """Yield lists of (shard, row in it), for all ids in their order.

        A shard in a list stays open while the list does: so a list has no more shards than may be open.
        """
        ids = checked_ids(ids, self.manifest.num_samples)
        first_ids = self.manifest.first_ids
        numbers = np.searchsorted(first_ids, ids, side="right") - 1
        rows = (ids - first_ids[numbers]).tolist()
        shards: dict[int, OpenShard] = {}
        places: list[tuple[OpenShard, int]] = []
        for number, row in zip(numbers.tolist(), rows, strict=True):
            shard = shards.get(number)
            if shard is None:
                if len(shards) == self._open.capacity:
                    yield places
                    shards, places = {}, []
                shard = shards[number] = self._open.get(number)
            places.append((shard, row))
        yield places

    def _read_ranges(self, places: list[tuple["OpenShard", int]], field: str) -> list[bytes]:
        present = [place for place, (shard, row) in enumerate(places) if shard.stored(field).sizes[row] != ABSENT]
        ranges = [places[place][0].range(places[place][1], field) for place in present]
        images = [b""] * len(places)
        if not ranges:
            return images
        try:
            found = self._open.data.read_ranges(ranges)
        except FileNotFoundError as error:
            raise missing("shard", str(error.filename or self.url)) from error
        for place, image in zip(present, found, strict=True):
            shard, row = places[place]
            shard.check(row, shard.stored(field), image)
            images[place] = image
        return images

    @staticmethod
    def _rows(places: list[tuple["OpenShard", int]], field: str) -> Rows:
        rows = [(shard.index, shard.stored(field), row) for shard, row in places]
        headers = [
            (0, 0, "")
            if stored.widths is None or stored.heights is None or stored.formats is None
            else (stored.widths[row], stored.heights[row], FORMAT_NAMES[stored.formats[row]])
            for _, stored, row in rows
        ]
        return Rows(
            keys=[index.keys[row] for index, _, row in rows],
            labels=np.array(
                [index.labels[row] if index.labels is not None else -1 for index, _, row in rows], np.int64
            ),
            widths=np.array([width for width, _, _ in headers], np.int32),
            heights=np.array([height for _, height, _ in headers], np.int32),
            formats=[name for _, _, name in headers],
        )


def _picked(column: pa.ChunkedArray, ids: NDArray[np.int64]) -> list[Any]:
    """Return values of a column. `ChunkedArray.take` puts the whole column together first, when it is of text."""
    starts = np.cumsum([0, *map(len, column.chunks)])
    chunks = np.searchsorted(starts, ids, side="right") - 1
    rows = ids - starts[chunks]
    return [column.chunk(chunk)[row].as_py() for chunk, row in zip(chunks.tolist(), rows.tolist(), strict=True)]


class OpenShard:
    """A shard with its index and, if local, its descriptor, which is closed when nobody uses the shard any more."""

    __slots__ = ("_descriptor", "index", "name", "where")

    def __init__(self, name: str, where: str, index: ShardIndex, descriptor: int) -> None:
        self.name = name
        self.where = where
        self.index = index
        self._descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        if self._descriptor >= 0:
            close(self._descriptor)

    def stored(self, field: str) -> StoredColumns:
        """Return what the index says of a stored field."""
        return self.index.image if field == "image" else self.index.stored(field)

    def range(self, row: int, field: str) -> tuple[str, int, int]:
        """Return the file, offset and size of a sample's field."""
        stored = self.stored(field)
        return self.name, stored.offsets[row], stored.sizes[row]

    def read(self, row: int, field: str) -> bytes:
        """Return the checked bytes of a sample's field, of a local shard; none where it is absent."""
        stored = self.stored(field)
        size = stored.sizes[row]
        if size == ABSENT:
            return b""
        try:
            image = os.pread(self._descriptor, size, stored.offsets[row])
        except OSError as error:
            raise unreadable(self.where, error) from error
        if len(image) != size or google_crc32c.value(image) != stored.crcs[row]:
            self.check(row, stored, image)
        return image

    def check(self, row: int, stored: StoredColumns, image: bytes) -> None:
        """Raise `ShardError` unless these are the bytes that the index describes."""
        at = self.place(row, stored)
        next_step = "run 'feeder verify --level full' on the dataset, and copy the shard again from its origin"
        if len(image) != stored.sizes[row]:
            raise ShardError(f"{at} is cut: got {len(image)} bytes, expected {stored.sizes[row]}; {next_step}")
        if (crc := google_crc32c.value(image)) != stored.crcs[row]:
            raise ShardError(f"{at} was altered: CRC-32C {crc:08x}, expected {stored.crcs[row]:08x}; {next_step}")

    def place(self, row: int, stored: StoredColumns) -> str:
        """Return a sample's place, for messages."""
        return f"sample {self.index.keys[row]!r} at offset {stored.offsets[row]} of {self.where}"


class OpenFiles(OpenShard):
    """A group of files, one a sample, adopted in place: the index names them in its column ``path``."""

    __slots__ = ("_paths",)

    def __init__(self, name: str, where: str, index: ShardIndex) -> None:
        super().__init__(name, where, index, -1)
        self._paths = index.strings("path")

    def range(self, row: int, field: str) -> tuple[str, int, int]:
        return self._paths[row], 0, self.stored(field).sizes[row]

    def read(self, row: int, field: str) -> bytes:
        stored = self.stored(field)
        path = os.path.join(self.where, self._paths[row])
        try:
            image = read_regular_file(path)
        except FileNotFoundError as error:
            raise missing("file", path) from error
        except OSError as error:
            raise unreadable(path, error) from error
        if len(image) != stored.sizes[row] or google_crc32c.value(image) != stored.crcs[row]:
            self.check(row, stored, image)
        return image

    def place(self, row: int, stored: StoredColumns) -> str:
        return f"sample {self.index.keys[row]!r} in {self.where}/{self._paths[row]}"


class _OpenShards:
    """The bounded cache of open shards of one process.

    Evicting drops a reference: a reader in another thread keeps its own.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.data = folder if manifest.origin is None else open_folder(manifest.origin)
        self._folder = folder
        self._manifest = manifest
        self._columns: dict[str, Any] = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        share = limit // _DESCRIPTOR_SHARE if limit != resource.RLIM_INFINITY else _MAX_OPEN_SHARDS
        self.capacity = max(2, min(_MAX_OPEN_SHARDS, share))
        self._of_process = self._empty()

    @staticmethod
    def _empty() -> "tuple[int, threading.Lock, OrderedDict[int, OpenShard]]":
        return os.getpid(), threading.Lock(), OrderedDict()

    def get(self, number: int) -> OpenShard:
        pid, lock, shards = self._of_process
        if pid != os.getpid():  # a forked child: the lock may be held by a thread that exists only in the parent
            _, lock, shards = self._of_process = self._empty()
        with lock:
            shard = shards.get(number)
            if shard is not None:
                shards.move_to_end(number)
                return shard
        shard = self._load(number)  # outside the lock: two threads may open one shard, and the second is dropped
        with lock:
            shard = shards.setdefault(number, shard)
            while len(shards) > self.capacity:
                shards.popitem(last=False)
        return shard

    def column(self, field: str) -> Any:
        """Return a field of all samples, opened on first use."""
        column = self._columns.get(field)
        if column is None:
            column = self._columns[field] = load_column(self._folder, self._manifest, field)
        return column

    def _load(self, number: int) -> OpenShard:
        name = self._manifest.shards.names[number]
        if SHARD_FORMATS[self._manifest.format].files:
            return OpenFiles(name, self.data.url, load_index(self._folder, self._manifest, number, mapped=True))
        where = self.data.where(name)
        descriptor = -1
        try:
            if isinstance(self.data, LocalFolder):
                descriptor = open_local(where)
                compare_size(where, os.fstat(descriptor).st_size, self._manifest, number)
            else:
                check_size(self.data, self._manifest, number)
            index = load_index(self._folder, self._manifest, number, mapped=True)
            return OpenShard(name, where, index, descriptor)
        except FileNotFoundError as error:
            raise missing("shard", where) from error
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise
