"""The bytes of a table's samples, in order: local files one by one, remote ones in batches fetched together."""

import errno
import os
from collections.abc import Iterator
from typing import Self

import google_crc32c
import numpy as np

from feeder.shards.errors import BadImageError, ShardError, SourceError
from feeder.shards.fields import ABSENT
from feeder.shards.images import MAX_IMAGE_BYTES
from feeder.shards.names import readable
from feeder.shards.storage import RemoteFolder, is_remote, read_regular_file, read_url_ranges, unreadable
from feeder.shards.table import FORBIDDEN, UNREADABLE, Places, SampleTable

Fetched = dict[str, bytes | BadImageError]
"""Of each stored field that a sample has its bytes, or why there are none."""

# Remote samples: enough requests in flight to hide their latency, few enough, of few enough bytes, to hold in memory.
_FETCHED_TOGETHER = 64
_FETCHED_BYTES = 64 << 20

# These say nothing about one file: setting aside what they met would lose good images in silence.
_FAILURES_OF_THE_MACHINE = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}


def fetch(table: SampleTable) -> Iterator[Fetched]:
    """Yield the stored fields of each sample.

    Raises:
        SourceError: a file has vanished, or has another size than when the table was made.
        ShardError: bytes of a shard are not those that its index describes.
        StorageError: the machine, the mount or the storage fails, not one file.
    """
    with _LocalFiles() as files:
        for rows in _together(table):
            columns = {field: _Column(table, field, rows) for field in table.stored}
            for row in rows:
                fetched = {field: column.read(row, files) for field, column in columns.items()}
                yield {field: data for field, data in fetched.items() if data is not None}


def _together(table: SampleTable) -> Iterator[range]:
    """Yield the rows of samples that are fetched together: a single one may pass `_FETCHED_BYTES`."""
    sizes = np.zeros(len(table), np.int64)
    for places in table.stored.values():
        sizes += np.where(places.sizes <= MAX_IMAGE_BYTES, np.maximum(places.sizes, 0), 0)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(table):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + _FETCHED_BYTES, side="right"))
        end = max(start + 1, min(end, start + _FETCHED_TOGETHER))
        yield range(start, end)
        start = end


class _LocalFiles:
    """The open file that samples lie in side by side, such as a tar: the last one used stays open."""

    def __init__(self) -> None:
        self._path = ""
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return a range of a file; one beyond the end comes back short."""
        if path != self._path or self._descriptor < 0:
            self._close()
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._path = path
        return os.pread(self._descriptor, size, offset)


class _Column:
    """One stored field of some rows of a table; what is remote is fetched at once, on first use."""

    def __init__(self, table: SampleTable, field: str, rows: range) -> None:
        self._places: Places = table.stored[field]
        self._root = table.root
        self._rows = rows
        self._fetched: dict[int, bytes] | None = None

    def read(self, row: int, files: _LocalFiles) -> bytes | BadImageError | None:
        """Return the bytes of a row, why they cannot be read, or None where there are none to be."""
        places = self._places
        size = int(places.sizes[row])
        if size == ABSENT:
            return None
        if size == FORBIDDEN:
            return BadImageError(
                "unreadable",
                f"its path {readable(places.file(row))!r} leads out of the folder of the file that names it",
            )
        if size > MAX_IMAGE_BYTES:
            return BadImageError("too large", f"it has {size} bytes, more than the {MAX_IMAGE_BYTES} allowed")
        where = self._where(row)
        if is_remote(where):
            if size == UNREADABLE:
                return BadImageError("unreadable", "it cannot be read: No such file or directory")
            data = self._remote()[row]
        else:
            try:
                if places.offsets is None:
                    data = read_regular_file(where)
                else:
                    data = files.read(where, int(places.offsets[row]), size)
            except OSError as error:
                return _unread(where, size, error)
        if len(data) != size:
            raise SourceError(
                f"{readable(where)} changed while it was read: it had {size} bytes and now has {len(data)}; "
                "run the command again when the source is at rest"
            )
        if places.crcs is not None and (crc := google_crc32c.value(data)) != places.crcs[row]:
            raise ShardError(
                f"{readable(where)} was altered at offset {0 if places.offsets is None else places.offsets[row]}: "
                f"CRC-32C {crc:08x}, expected {places.crcs[row]:08x}; run 'feeder verify --level full' on the dataset, "
                "and copy the shard again from its origin"
            )
        return data

    def _where(self, row: int) -> str:
        file = self._places.file(row)
        if is_remote(file) or os.path.isabs(file):
            return file
        return f"{self._root}/{file}" if is_remote(self._root) else os.path.join(self._root, file)

    def _remote(self) -> dict[int, bytes]:
        """Return the bytes of the remote rows, fetched together."""
        if self._fetched is None:
            places = self._places
            rows = [
                row
                for row in self._rows
                if 0 <= int(places.sizes[row]) <= MAX_IMAGE_BYTES and is_remote(self._where(row))
            ]
            ranges = []
            for row in rows:
                offset = 0 if places.offsets is None else int(places.offsets[row])
                ranges.append((self._where(row), offset, int(places.sizes[row])))
            try:
                data = read_url_ranges(ranges)
            except FileNotFoundError as error:
                raise _vanished(_first_gone([url for url, _, _ in ranges])) from error
            self._fetched = dict(zip(rows, data, strict=True))
        return self._fetched


def _first_gone(urls: list[str]) -> str:
    """Return the first URL of those where nothing is; the error of reads together does not say which."""
    for url in dict.fromkeys(urls):
        folder, _, name = url.rpartition("/")
        try:
            RemoteFolder(folder).size(name)
        except FileNotFoundError:
            return url
    return urls[0]


def _unread(path: str, size: int, error: OSError) -> BadImageError:
    """Return why one file cannot be read; raise where that is no fault of the file."""
    if isinstance(error, FileNotFoundError) and size >= 0:
        raise _vanished(readable(path)) from error
    if error.errno in _FAILURES_OF_THE_MACHINE:
        raise unreadable(readable(path), error) from error
    return BadImageError("unreadable", f"it cannot be read: {error.strerror or error}")


def _vanished(where: str) -> SourceError:
    return SourceError(f"{where} vanished while it was read; run the command again when the source is at rest")
