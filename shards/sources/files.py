"""Files of a source, local or behind a URL: which there are below a folder, and how large they are.

Behind a URL one request for each file would take hours for millions: a folder is listed, which gives a thousand sizes a
request, and only files that are nearly alone in their folder are asked for one by one. A listing of S3 is taken page by
page, and what is kept of a file is its path as bytes and its size; other file systems of fsspec list a folder as one
dict a file.
"""

import itertools
import os
import stat
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from feeder.errors import FeederError
from feeder.shards.errors import SourceError
from feeder.shards.names import PathTable, readable
from feeder.shards.storage import RemoteFolder, is_remote, local_path, unreadable
from feeder.shards.table import UNREADABLE

_LISTED_FROM = 8  # files wanted of one folder: fewer are asked for one by one
_REQUESTS = 32  # in flight
_LOCAL_THREADS = (
    8  # a mount answers them side by side; files in the cache of the machine take no longer than one by one
)
_LOCAL_FILES = 1024  # asked for by one thread in a row
_REMOTE = -4  # stands for a size that is to be asked of a store

Item = TypeVar("Item")
Result = TypeVar("Result")


def joined(root: str, path: str) -> str:
    """Return where a path leads from a root: both may be local or URLs."""
    if is_remote(path) or os.path.isabs(path):
        return path
    if path.startswith("file://"):
        return local_path(path)
    return f"{root.rstrip('/')}/{path}" if is_remote(root) else os.path.join(root, path)


def file_sizes(root: str, paths: Iterable[str | None], absent: int = UNREADABLE) -> NDArray[np.int64]:
    """Return int64[n]: the bytes of each file, `UNREADABLE` for what is no regular file, `absent` for None.

    Raises:
        StorageError: the storage answered with an error.
    """
    wheres = PathTable("" if path is None else joined(root, path) for path in paths)
    blocks = [range(start, min(start + _LOCAL_FILES, len(wheres))) for start in range(0, len(wheres), _LOCAL_FILES)]

    def local_sizes(rows: range) -> list[int]:
        return [_local_size(where) if (where := wheres[row]) else absent for row in rows]

    found = np.fromiter(
        itertools.chain.from_iterable(_in_threads(local_sizes, blocks, _LOCAL_THREADS)), np.int64, len(wheres)
    )
    remote: dict[str, array[int]] = {}  # rows by folder
    for row in np.flatnonzero(found == _REMOTE).tolist():
        remote.setdefault(wheres[row].rpartition("/")[0], array("q")).append(row)
        found[row] = UNREADABLE

    def find_in(folder: str) -> None:
        names: dict[str, list[int]] = {}
        for row in remote[folder]:
            names.setdefault(wheres[row].rpartition("/")[2], []).append(row)
        for name, size in _sizes_in(folder, names):
            found[names[name]] = size

    for _ in _in_threads(find_in, list(remote), _REQUESTS):
        pass
    return found


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Yield function(item) of each item, in order, with few of them under way: their results may be large."""
    if len(items) < 2:
        yield from map(function, items)
        return
    remaining = iter(items)
    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="sizes") as pool:
        try:
            while True:
                under_way += [
                    pool.submit(function, item) for item in itertools.islice(remaining, 2 * threads - len(under_way))
                ]
                if not under_way:
                    return
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _local_size(path: str) -> int:
    if is_remote(path):
        return _REMOTE
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return UNREADABLE
    return status.st_size if stat.S_ISREG(status.st_mode) else UNREADABLE


def _sizes_in(folder: str, names: Collection[str]) -> Iterator[tuple[str, int]]:
    """Yield name and size of those files of a remote folder that exist."""
    try:
        filesystem = RemoteFolder(folder).filesystem()
        sizes: Iterable[tuple[str, int | None]]
        if len(names) < _LISTED_FROM:
            found = ((name, _info(filesystem, f"{folder}/{name}")) for name in names)
            sizes = ((name, entry["size"]) for name, entry in found if entry and entry["type"] == "file")
        else:
            sizes = _listed(filesystem, folder, below=False)
        yield from ((name, int(size)) for name, size in sizes if name in names and size is not None)
    except FileNotFoundError:
        return
    except FeederError:
        raise
    except Exception as error:
        raise unreadable(folder, error) from error


def _listed(filesystem: Any, url: str, *, below: bool) -> Iterator[tuple[str, int | None]]:
    """Yield the path of each file in a remote folder, relative to it, and its size, None if unknown.

    Args:
        filesystem: fsspec's object.
        url: of the folder.
        below: take those in folders below, too.
    """
    if hasattr(filesystem, "call_s3"):
        yield from _listed_by_pages(filesystem, url, {} if below else {"Delimiter": "/"})
        return
    if below:
        import fsspec

        root = fsspec.core.url_to_fs(url)[1].rstrip("/") + "/"
        for path, entry in filesystem.find(root, detail=True).items():
            if path.startswith(root) and entry["type"] == "file":
                yield path[len(root) :], entry["size"]
    else:
        yield from (
            (_last(entry), entry["size"]) for entry in filesystem.ls(url, detail=True) if entry["type"] == "file"
        )


def _listed_by_pages(filesystem: Any, url: str, options: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Yield what `_listed` does from S3, where fsspec would keep a dict of a kilobyte for each object."""
    bucket, prefix, _ = filesystem.split_path(url)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    token: dict[str, str] = {}
    while True:
        page = filesystem.call_s3(
            "list_objects_v2", filesystem.req_kw, Bucket=bucket, Prefix=prefix, **options, **token
        )
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # else it is what some programs make to show a folder
                yield entry["Key"][len(prefix) :], int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _last(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _info(filesystem: Any, url: str) -> dict[str, Any] | None:
    try:
        return dict(filesystem.info(url))
    except FileNotFoundError:
        return None


def find_remote(url: str, wanted: Callable[[str], bool]) -> tuple[PathTable, NDArray[np.int64]]:
    """Return the paths of the files below a remote folder, relative to it, and int64[n], their sizes; in any order.

    Args:
        url: the folder.
        wanted: says of a path whether the file counts; hidden ones do not.

    Raises:
        StorageError: the storage answered with an error.
    """
    sizes = array("q")

    def paths() -> Iterator[str]:
        for path, size in _listed(RemoteFolder(url).filesystem(), url, below=True):
            if wanted(path) and not any(part.startswith(".") for part in path.split("/")):
                sizes.append(UNREADABLE if size is None else int(size))
                yield path

    try:
        found = PathTable(paths())
    except FileNotFoundError:
        return PathTable(()), np.zeros(0, np.int64)
    except FeederError:
        raise
    except Exception as error:
        raise unreadable(url, error) from error
    return found, np.frombuffer(sizes, np.int64).copy()


def find_local(root: str, wanted: Callable[[str], bool]) -> list[str]:
    """Return the relative paths of the files below a local folder whose names are wanted; hidden ones do not count.

    Raises:
        SourceError: there is no such folder.
        StorageError: a folder cannot be listed.
    """
    if not os.path.isdir(root):
        raise SourceError(f"no such source: {readable(root)}; check the path")

    def refuse(error: OSError) -> None:
        raise unreadable(readable(str(error.filename)), error) from error

    found = []
    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=False):
        inner[:] = [name for name in inner if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        found += [os.path.normpath(f"{inside}/{name}") for name in names if wanted(name) and not name.startswith(".")]
    return found


def entries(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder, local or remote, without hidden ones.

    A folder that does not exist is empty.

    Raises:
        StorageError: it cannot be listed.
    """
    files: list[str] = []
    folders: list[str] = []
    try:
        if is_remote(folder):
            filesystem = RemoteFolder(folder).filesystem()
            for entry in filesystem.ls(folder, detail=True):
                (folders if entry["type"] == "directory" else files).append(_last(entry))
        else:
            with os.scandir(folder) as scan:
                for item in scan:
                    (folders if item.is_dir() else files).append(item.name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except FeederError:
        raise
    except Exception as error:
        raise unreadable(readable(folder), error) from error
    return [name for name in files if name[:1] not in ("", ".")], [
        name for name in folders if name[:1] not in ("", ".")
    ]


def is_file(where: str) -> bool:
    """Say whether a path or URL leads to a file.

    Raises:
        StorageError: the storage answered with an error.
    """
    if not is_remote(where):
        return os.path.isfile(local_path(where))
    try:
        entry = _info(RemoteFolder(where.rpartition("/")[0]).filesystem(), where)
    except FeederError:
        raise
    except Exception as error:
        raise unreadable(where, error) from error
    return entry is not None and entry["type"] == "file"
