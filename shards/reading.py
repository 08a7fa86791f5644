"""Opening and reading a dataset: sample ids in, rows and checked bytes out.

A shard is opened on first use: its size is held against the manifest and its index against the index's digest. Open
shards stay in a bounded cache, least recently used out first. Local shards are read with ``pread`` (no shared file
position, so any number of threads), remote ones with ranged requests of fsspec; every image is checked against its
CRC-32C.
"""

import contextlib
import mmap
import os
import resource
import threading
from collections import OrderedDict
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import ManifestError, ShardError
from feeder.shards.folder import FolderReader
from feeder.shards.images import FORMATS
from feeder.shards.index import ShardIndex, index_name, open_index
from feeder.shards.manifest import MANIFEST_NAME, Manifest, dataset_folder, read_manifest
from feeder.shards.rows import Reader, Rows, checked_ids
from feeder.shards.sources import SPLITS
from feeder.shards.storage import Folder, LocalFolder, unreadable

__all__ = ["Reader", "Rows", "ShardReader", "open_dataset"]

_MAX_OPEN_SHARDS = 512  # two descriptors and about 100 kB of mapped index each
_DESCRIPTOR_SHARE = 8  # open shards take at most 2/8 of the descriptors a process may have: the rest is not ours


def open_dataset(source: str | os.PathLike[str]) -> Reader:
    """Open a dataset.

    Args:
        source: the folder or URL of a dataset made by ``feeder build``, or a plain folder of images (class folders, or
            flat), which is adopted in memory.

    Raises:
        ManifestError: there is a manifest and it cannot be used, or there is none and `source` is not a local folder.
        SourceError: a plain folder that holds no images, or several splits.
        StorageError: the storage answered with an error.
    """
    folder = dataset_folder(source)
    try:
        return ShardReader(folder, read_manifest(folder))
    except ManifestError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
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


def find_datasets(source: str | os.PathLike[str]) -> list[str]:
    """Return the folders or URLs of the datasets at a place: itself, or its splits; empty when there is none."""
    folder = dataset_folder(source)
    names = [split for split in ("", *SPLITS) if _exists(folder, os.path.join(split, MANIFEST_NAME))]
    return [folder.where(name) if name else folder.url for name in names]


def _exists(folder: Folder, name: str) -> bool:
    try:
        return folder.size(name) >= 0
    except FileNotFoundError:
        return False


class ShardReader:
    """The reader of datasets made of shards; see `feeder.shards.rows.Reader` for what it promises."""

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
        return self._rows([(shard.index, row) for shard, row in self._locate(ids)])

    def read(self, ids: NDArray[np.int64]) -> tuple[Rows, list[bytes]]:
        """Return the rows of samples and their encoded images, each checked against its CRC-32C.

        Raises:
            ShardError: a shard or its index is missing, cut, altered or of another dataset.
            StorageError: the storage answered with an error.
            IndexError: an id is outside the dataset.
        """
        places = self._locate(ids)
        if isinstance(self._folder, LocalFolder):
            images = [shard.read(row) for shard, row in places]
        else:
            images = self._read_ranges(places)
        return self._rows([(shard.index, row) for shard, row in places]), images

    def close(self) -> None:
        """Release descriptors and mappings; a later read opens what it needs."""
        self._open = _OpenShards(self._folder, self.manifest)

    def _locate(self, ids: NDArray[np.int64]) -> list[tuple["OpenShard", int]]:
        """Return (shard, row in it) of every id. A shard in this list stays open while the list does."""
        ids = checked_ids(ids, self.manifest.num_samples)
        first_ids = self.manifest.first_ids
        numbers = np.searchsorted(first_ids, ids, side="right") - 1
        rows = (ids - first_ids[numbers]).tolist()
        shards: dict[int, OpenShard] = {}
        places = []
        for number, row in zip(numbers.tolist(), rows, strict=True):
            shard = shards.get(number)
            if shard is None:
                shard = shards[number] = self._open.get(number)
            places.append((shard, row))
        return places

    def _read_ranges(self, places: list[tuple["OpenShard", int]]) -> list[bytes]:
        ranges = [(shard.name, shard.index.offsets[row], shard.index.sizes[row]) for shard, row in places]
        if not ranges:
            return []
        try:
            images = self._folder.read_ranges(ranges)
        except FileNotFoundError as error:
            raise _missing("shard", str(error.filename or self.url)) from error
        for (shard, row), image in zip(places, images, strict=True):
            shard.check(row, image)
        return images

    @staticmethod
    def _rows(places: list[tuple[ShardIndex, int]]) -> Rows:
        return Rows(
            keys=[index.keys[row] for index, row in places],
            labels=np.array([index.labels[row] if index.labels is not None else -1 for index, row in places], np.int64),
            widths=np.array([index.widths[row] for index, row in places], np.int32),
            heights=np.array([index.heights[row] for index, row in places], np.int32),
            formats=[FORMATS[index.formats[row]] for index, row in places],
        )


class OpenShard:
    """A shard with its index and, if local, its descriptor, which is closed when nobody uses the shard any more."""

    __slots__ = ("_descriptor", "index", "name", "where")

    def __init__(self, name: str, where: str, index: ShardIndex, descriptor: int) -> None:
        self.name = name
        self.where = where
        self.index = index
        self._descriptor = descriptor

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, row: int) -> bytes:
        """Return the checked image of a sample of a local shard."""
        index = self.index
        size = index.sizes[row]
        try:
            image = os.pread(self._descriptor, size, index.offsets[row])
        except OSError as error:
            raise unreadable(self.where, error) from error
        if len(image) != size or google_crc32c.value(image) != index.crcs[row]:
            self.check(row, image)
        return image

    def check(self, row: int, image: bytes) -> None:
        """Raise `ShardError` unless these are the bytes that the index describes."""
        index = self.index
        at = f"sample {index.keys[row]!r} at offset {index.offsets[row]} of {self.where}"
        next_step = "run 'feeder verify --level full' on the dataset, and copy the shard again from its origin"
        if len(image) != index.sizes[row]:
            raise ShardError(f"{at} is cut: got {len(image)} bytes, expected {index.sizes[row]}; {next_step}")
        if (crc := google_crc32c.value(image)) != index.crcs[row]:
            raise ShardError(f"{at} was altered: CRC-32C {crc:08x}, expected {index.crcs[row]:08x}; {next_step}")


class _OpenShards:
    """The bounded cache of open shards of one process.

    Evicting drops a reference: a reader in another thread keeps its own.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        share = limit // _DESCRIPTOR_SHARE if limit != resource.RLIM_INFINITY else _MAX_OPEN_SHARDS
        self._capacity = max(2, min(_MAX_OPEN_SHARDS, share))
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
            while len(shards) > self._capacity:
                shards.popitem(last=False)
        return shard

    def _load(self, number: int) -> OpenShard:
        name = self._manifest.shards.names[number]
        where = self._folder.where(name)
        descriptor = -1
        try:
            if isinstance(self._folder, LocalFolder):
                descriptor = _open_local(where)
                _compare_size(where, os.fstat(descriptor).st_size, self._manifest, number)
            else:
                check_size(self._folder, self._manifest, number)
            return OpenShard(name, where, load_index(self._folder, self._manifest, number), descriptor)
        except FileNotFoundError as error:
            raise _missing("shard", where) from error
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise


def check_size(folder: Folder, manifest: Manifest, number: int) -> None:
    """Raise `ShardError` if a shard is missing or has not the size that the manifest says."""
    name = manifest.shards.names[number]
    try:
        _compare_size(folder.where(name), folder.size(name), manifest, number)
    except FileNotFoundError as error:
        raise _missing("shard", folder.where(name)) from error


def _compare_size(where: str, size: int, manifest: Manifest, number: int) -> None:
    if size != (expected := int(manifest.shards.size_bytes[number])):
        raise ShardError(
            f"shard {where} has {size} bytes, but the manifest says {expected}; copy it again from the dataset's origin"
        )


def load_index(folder: Folder, manifest: Manifest, number: int) -> ShardIndex:
    """Return the index of a shard, mapped if local; `ShardError` if it is missing, cut, altered or of another shard."""
    table = manifest.shards
    name = index_name(table.names[number])
    try:
        buffer = _map(folder.where(name)) if isinstance(folder, LocalFolder) else folder.read(name)
    except FileNotFoundError as error:
        raise _missing("index", folder.where(name)) from error
    return open_index(
        buffer,
        folder.where(name),
        samples=int(table.samples[number]),
        shard_digest=table.digests[number],
        index_digest=table.index_digests[number],
    )


def _open_local(path: str) -> int:
    """Return a descriptor of a local file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def _map(path: str) -> Any:
    """Return a read-only mapping of a local file; all processes of a machine share its pages.

    If somebody cuts the file later, touching the mapping is SIGBUS. Shards are immutable, and their indexes small and
    whole when opened: that risk is taken. Images are not mapped.
    """
    descriptor = _open_local(path)
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) if os.fstat(descriptor).st_size else b""
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _missing(what: str, where: str) -> ShardError:
    return ShardError(f"{what} {where} is missing, but the manifest lists it; copy it again from the dataset's origin")
