"""Files of a source, local or behind a URL: which there are below a folder, and how large they are.

Behind a URL one request for each file would take hours for millions: a folder is listed, which gives a thousand sizes a
request, and only files that are nearly alone in their folder are asked for one by one.
"""

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.errors import FeederError
from feeder.shards.errors import SourceError
from feeder.shards.names import readable
from feeder.shards.storage import RemoteFolder, is_remote, local_path, unreadable
from feeder.shards.table import UNREADABLE

_LISTED_FROM = 8  # files wanted of one folder: fewer are asked for one by one
_REQUESTS = 32  # in flight


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
    sizes: list[int] = []
    remote: dict[str, dict[str, list[int]]] = {}  # rows by folder and name
    for path in paths:
        if path is None:
            sizes.append(absent)
            continue
        where = joined(root, path)
        if is_remote(where):
            folder, _, name = where.rpartition("/")
            remote.setdefault(folder, {}).setdefault(name, []).append(len(sizes))
            sizes.append(UNREADABLE)
        else:
            sizes.append(_local_size(where))
    found = np.array(sizes, np.int64)
    if remote:
        _find_remote(remote, found)
    return found


def _local_size(path: str) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return UNREADABLE
    return status.st_size if stat.S_ISREG(status.st_mode) else UNREADABLE


def _find_remote(wanted: dict[str, dict[str, list[int]]], found: NDArray[np.int64]) -> None:
    """Fill in the sizes of remote files that exist."""

    def size_in(folder: str, names: dict[str, list[int]]) -> None:
        for name, size in _sizes_in(folder, names).items():
            found[names[name]] = size

    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="sizes") as pool:
        for done in [pool.submit(size_in, folder, names) for folder, names in wanted.items()]:
            done.result()


def _sizes_in(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of those files of a remote folder that exist."""
    names = list(names)
    try:
        filesystem = RemoteFolder(folder).filesystem()
        if len(names) < _LISTED_FROM:
            entries = [entry for name in names if (entry := _info(filesystem, f"{folder}/{name}"))]
        else:
            entries = filesystem.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    except FeederError:
        raise
    except Exception as error:
        raise unreadable(folder, error) from error
    listed = {_last(entry): entry for entry in entries if entry["type"] == "file"}
    return {name: int(listed[name]["size"]) for name in names if name in listed and listed[name]["size"] is not None}


def _last(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _info(filesystem: Any, url: str) -> dict[str, Any] | None:
    try:
        return dict(filesystem.info(url))
    except FileNotFoundError:
        return None


def find_remote(url: str) -> dict[str, int]:
    """Return the size of every file below a remote folder by its path relative to it; hidden ones do not count.

    Raises:
        StorageError: the storage answered with an error.
    """
    import fsspec

    try:
        filesystem = RemoteFolder(url).filesystem()
        root = fsspec.core.url_to_fs(url)[1].rstrip("/") + "/"
        entries = filesystem.find(root, detail=True)
    except FileNotFoundError:
        return {}
    except FeederError:
        raise
    except Exception as error:
        raise unreadable(url, error) from error
    sizes = {}
    for path, entry in entries.items():
        inner = path[len(root) :] if path.startswith(root) else ""
        if inner and entry["type"] == "file" and not any(part.startswith(".") for part in inner.split("/")):
            sizes[inner] = UNREADABLE if entry["size"] is None else int(entry["size"])
    return sizes


def find_local(root: str) -> list[str]:
    """Return the relative path of every file below a local folder; hidden ones do not count.

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
        found += [os.path.normpath(f"{inside}/{name}") for name in names if not name.startswith(".")]
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
