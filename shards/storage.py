"""Where a dataset lies: a local folder, or a folder of any file system that fsspec knows.

Both answer the same three questions (the bytes of a file, its size, ranges of it) and both map their errors to
`StorageError`. What is missing is told apart from what is broken: `FileNotFoundError` passes unmapped, because only the
caller knows what the absence means.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from feeder.errors import FeederError
from feeder.optional import load
from feeder.shards.errors import StorageError

PIECE_BYTES = 32 << 20  # of a large file in one request or copy
STAGED = ".tmp"  # ends the names of files that are not whole yet

_WRITE_BUFFER_BYTES = 1 << 20


class Folder(Protocol):
    """A folder of files. Safe from many threads, picklable, and usable after a fork."""

    url: str

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""
        ...

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        ...

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        ...

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return the bytes of each (file, offset, size); a range beyond the end comes back short."""
        ...


class LocalFolder:
    """A folder on a mounted file system."""

    def __init__(self, path: str) -> None:
        self.url = path

    def where(self, name: str) -> str:
        return os.path.join(self.url, name)

    def size(self, name: str) -> int:
        with _mapped_errors(self.where(name)):
            return os.stat(self.where(name)).st_size

    def read(self, name: str) -> bytes:
        with _mapped_errors(self.where(name)):
            return Path(self.where(name)).read_bytes()

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        return [self._read_range(*one) for one in ranges]

    def _read_range(self, name: str, offset: int, size: int) -> bytes:
        with _mapped_errors(self.where(name)), open(self.where(name), "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)


class RemoteFolder:
    """A folder that fsspec reaches, such as ``s3://bucket/train``.

    The file system object is made per process: connections and event loops do not survive a fork or a pickle.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> str:
        return self.url

    def __setstate__(self, url: str) -> None:
        self.__init__(url)  # type: ignore[misc]  # the same object as from its URL

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def size(self, name: str) -> int:
        with _mapped_errors(self.where(name)):
            return int(self.filesystem().size(self.where(name)))

    def read(self, name: str) -> bytes:
        with _mapped_errors(self.where(name)):
            return bytes(self.filesystem().cat_file(self.where(name)))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        where = self.where(ranges[0][0]) if len(ranges) == 1 else self.url
        urls = [(self.where(name), offset, size) for name, offset, size in ranges]
        return _cat_ranges(self.filesystem(), urls, where)

    def filesystem(self) -> Any:
        """Return fsspec's object for the file system, that of this process."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            import fsspec  # 50 ms to import: only remote data pays it

            if self.url.startswith(("s3://", "s3a://")):
                load("s3")  # fsspec would import it, but says less when it is missing
            # A lock inherited by a forked child may be held by a thread that does not exist there: no lock here. Two
            # threads that both get here receive the same object from fsspec's own instance cache.
            opened = self._opened = (os.getpid(), fsspec.core.url_to_fs(self.url)[0])
        return opened[1]


def read_url_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Return the bytes of each (URL, offset, size), those of one protocol fetched together.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage answered with another error.
    """
    by_protocol: dict[str, list[int]] = {}
    for number, (url, _, _) in enumerate(ranges):
        by_protocol.setdefault(url.partition("://")[0], []).append(number)
    results: dict[int, bytes] = {}
    for numbers in by_protocol.values():
        chosen = [ranges[number] for number in numbers]
        folder = RemoteFolder(chosen[0][0].rpartition("/")[0])
        results |= zip(numbers, _cat_ranges(folder.filesystem(), chosen, folder.url), strict=True)
    return [results[number] for number in range(len(ranges))]


def _cat_ranges(filesystem: Any, ranges: Sequence[tuple[str, int, int]], where: str) -> list[bytes]:
    """Return the bytes of (URL, offset, size); one call, so that asynchronous file systems fetch all at once."""
    asked = [one for one in ranges if one[2]]  # a range without bytes is an error of some storages
    urls = [url for url, _, _ in asked]
    starts = [offset for _, offset, _ in asked]
    ends = [offset + size for _, offset, size in asked]
    with _mapped_errors(where if len(ranges) == 1 else f"{len(ranges)} ranges of {where}"):
        got = iter(filesystem.cat_ranges(urls, starts, ends, on_error="raise"))
    return [bytes(next(got)) if size else b"" for _, _, size in ranges]


@contextlib.contextmanager
def _mapped_errors(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into `StorageError`, except that a file does not exist."""
    try:
        yield
    except NotADirectoryError as error:  # a file stands where a folder was named: so there is no such file in it
        raise FileNotFoundError(error.errno, error.strerror, url) from error
    except (FileNotFoundError, FeederError):
        raise
    except Exception as error:
        raise unreadable(url, error) from error


def read_pieces(folder: Folder, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file of any size, a piece at a time; `FileNotFoundError` if there is none."""
    size = folder.size(name)
    for offset in range(0, size, PIECE_BYTES):
        yield from folder.read_ranges([(name, offset, min(PIECE_BYTES, size - offset))])


def open_folder(source: str | os.PathLike[str]) -> Folder:
    """Return the folder that a path or URL names; nothing is read yet."""
    url = os.fspath(source)
    if is_remote(url):
        return RemoteFolder(url)
    return LocalFolder(os.path.abspath(local_path(url)))


def is_remote(url: str) -> bool:
    """Say whether a URL needs fsspec; ``file://`` and plain paths do not."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> str:
    """Return the path that a plain path or a ``file://`` URL names."""
    return url.removeprefix("file://")


def unreadable(where: str, error: BaseException) -> StorageError:
    """Return the error for a file that the storage would not give."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return StorageError(f"cannot read {where}: {words}; check the path, its permissions and the storage behind it")


def read_regular_file(path: str, limit: int = -1) -> bytes:
    """Return the bytes of a local file, at most `limit` of them if that is not negative.

    What is no regular file is refused with the system's own kind of error, `OSError`; a pipe cannot block.
    """
    if "\0" in path:  # not the system's to refuse: Python does, with another kind of error
        raise OSError(errno.EINVAL, "a zero byte in its name", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read(limit) if 0 <= limit < status.st_size else file.readall()


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once it is whole and on the disk; after an exception it never does."""
    staged = path.with_name(path.name + STAGED)
    try:
        with open(staged, "wb", buffering=_WRITE_BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def flush_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a local folder durable, where its file system can do that for folders."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
