"""A local destination: claimed by a lock that dies with its holders.

The marker file ``.building`` is created first and removed last. Every process of the build holds a shared lock
(flock) on it; claiming takes the exclusive one, so it succeeds only when no process of another build lives. A file is
used again or removed only if a marker vouches for its folder and its name is one that builds give.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from feeder.shards.dataset.manifest import COLUMNS_FOLDER, MARKER_NAME
from feeder.shards.destinations.protocol import in_use, is_own, not_empty, refuse_foreign, writing_errors
from feeder.shards.errors import DestinationError
from feeder.shards.storage import flush_folder, staged_file
from feeder.shards.table import SPLITS

OWN_FOLDERS = (*(f"{split}/{COLUMNS_FOLDER}" for split in SPLITS), COLUMNS_FOLDER, *SPLITS)  # inner ones first

MARKER_TEXT = b"A build of shardfeed is writing here, or was interrupted; the same command again goes on with it.\n"


class LocalDestination:
    """A local folder to write into; see `feeder.shards.destinations.protocol.Destination`."""

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self.path = path

    def where(self, name: str) -> str:
        return str(self.path / name)

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[BinaryIO]:
        with writing_errors(self.where(name)):
            for inner in reversed(Path(name).parents[:-1]):  # of an index of adopted data there may be several
                (self.path / inner).mkdir(exist_ok=True)
            with staged_file(self.path / name) as file:
                yield file

    def put(self, name: str, data: bytes) -> None:
        with self.staged(name) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DestinationError(
                f"cannot read {self.where(name)}: {error.strerror}; check its permissions"
            ) from error

    def files(self) -> dict[str, int]:
        with writing_errors(self.url):
            return {name: os.lstat(self.path / name).st_size for name in _entries(self.path) if is_own(name)}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with writing_errors(self.where(name)):
                (self.path / name).unlink(missing_ok=True)

    def flush(self) -> None:
        for folder in (*(self.path / name for name in OWN_FOLDERS), self.path):
            with writing_errors(str(folder)):
                if folder.is_dir() or folder == self.path:
                    flush_folder(folder)

    def hold(self) -> None:
        hold_marker(self.path / MARKER_NAME)


class LocalClaim:
    """A claimed local folder; see `feeder.shards.destinations.protocol.Claim`.

    Args:
        path: the folder, absolute; it and those above it are made where they are missing.

    Raises:
        DestinationError: the folder is not empty, in use by another build, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.folder = LocalDestination(path)
        self._marker = path / MARKER_NAME
        self._created: list[Path] = []
        try:
            with writing_errors(str(path)):
                self._created += (folder for folder in (path, *path.parents) if not folder.exists())
                path.mkdir(parents=True, exist_ok=True)
                self._descriptor = _claim(path)
        except BaseException:
            _remove_folders(self._created)
            raise

    def check(self) -> None:
        """Nothing to do: the lock is held as long as this process lives."""

    def finish(self) -> None:
        try:
            with writing_errors(str(self._marker)):
                self._marker.unlink(missing_ok=True)
        finally:
            self.keep()

    def keep(self) -> None:
        os.close(self._descriptor)

    def discard(self) -> None:
        try:
            self.folder.remove(self.folder.files())
            _remove_folders([self.folder.path / name for name in OWN_FOLDERS])
        except DestinationError:
            self.keep()  # with its marker, so that the next build tries again
            return
        with contextlib.suppress(DestinationError):
            self.finish()
        _remove_folders(self._created)


def look(path: Path) -> None:
    """Raise what claiming a folder would, as far as looking at it tells; nothing is changed."""
    with writing_errors(str(path)):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if there == path:
            marker = path / MARKER_NAME
            refuse_foreign(str(path), _entries(path), vouched=marker.exists())
            if marker.exists():
                with open(marker, "rb") as file:
                    share_marker(file.fileno(), path, fcntl.LOCK_EX)


def _remove_folders(folders: list[Path]) -> None:
    """Remove folders, the innermost first, that are there and empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _claim(path: Path) -> int:
    """Return the descriptor of a folder's marker, locked.

    Only a marker that was there before, with its text, vouches for files; beside a new one the folder must be empty.
    Else a build that finishes between a look at the folder and the making of a marker would lose its dataset.
    """
    marker = path / MARKER_NAME
    found = marker.exists()
    refuse_foreign(str(path), _entries(path), vouched=found)
    try:
        descriptor = os.open(marker, os.O_RDWR | os.O_CLOEXEC | (0 if found else os.O_CREAT | os.O_EXCL), 0o644)
    except (FileExistsError, FileNotFoundError) as error:  # another build made or removed it at this very moment
        raise in_use(str(path)) from error
    try:
        share_marker(descriptor, path, fcntl.LOCK_EX)
        try:
            _vouch(descriptor, path)
        except BaseException:
            if not found and is_at(descriptor, marker):
                marker.unlink()
            raise
        share_marker(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _vouch(descriptor: int, path: Path) -> None:
    """With the marker locked, refuse what it does not vouch for, and let it vouch for what will come."""
    text = os.pread(descriptor, len(MARKER_TEXT) + 1, 0)
    if not is_at(descriptor, path / MARKER_NAME):
        raise in_use(str(path))
    if text not in (b"", MARKER_TEXT):
        raise not_empty(str(path), MARKER_NAME)
    refuse_foreign(str(path), _entries(path), vouched=bool(text))
    os.pwrite(descriptor, MARKER_TEXT, 0)


def hold_marker(marker: Path) -> None:
    """Share the lock on a marker for the rest of this process; `DestinationError` if its build has given it up."""
    try:
        descriptor = os.open(marker, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise in_use(str(marker.parent)) from error
    share_marker(descriptor, marker.parent)


def share_marker(descriptor: int, path: Path, kind: int = fcntl.LOCK_SH) -> None:
    """Lock a marker without waiting; `DestinationError` if another build holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use(str(path)) from error
    except OSError as error:
        raise DestinationError(
            f"destination {path} is on a file system without locks ({error.strerror}); build on a local disk and copy "
            "the dataset there"
        ) from error


def is_at(descriptor: int, path: Path) -> bool:
    """Say whether a path still names the open file: a build that finishes removes its marker."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _entries(path: Path, above: str = "", folders: Sequence[str] = (*SPLITS, COLUMNS_FOLDER)) -> list[str]:
    """Return the names in a folder and in those that builds make there, other folders with a ``/`` behind.

    Args:
        path: the folder.
        above: what stands before the names.
        folders: that builds make in it: splits, and columns also in these; builds make no links.
    """
    names = []
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        name = above + entry.name
        if not entry.is_dir():
            names.append(name)
        elif entry.name in folders and not entry.is_symlink():
            names += _entries(path / entry.name, name + "/", (COLUMNS_FOLDER,) if entry.name in SPLITS else ())
        else:
            names.append(name + "/")
    return names
