"""The destination of a build: claimed by a lock, cleaned of what a dead build left, emptied again if the build fails.

The marker file ``.building`` is created first and removed last. Every process of the build holds a shared lock
(flock) on it; claiming takes the exclusive one, so it succeeds only when no process of another build lives. A file is
removed only if a marker vouches for its folder and its name is one that builds give.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from feeder.shards.errors import DestinationError
from feeder.shards.formats import WRITTEN_FORMATS
from feeder.shards.manifest import MANIFEST_NAME, MARKER_NAME
from feeder.shards.packing import cannot_write
from feeder.shards.storage import STAGED, is_remote, local_path
from feeder.shards.table import SPLITS

BAD_IMAGES_NAME = "bad-images.jsonl"

_MARKER_TEXT = b"A build of shardfeed is writing here, or was interrupted; the next build cleans up.\n"
_OWN_NAMES = re.compile(
    rf"(shard-\d{{6,}}\.({'|'.join(WRITTEN_FORMATS)}|idx\.arrow)|{re.escape(MANIFEST_NAME)}|{re.escape(BAD_IMAGES_NAME)})({re.escape(STAGED)})?"
)


class Destination:
    """A claimed destination folder.

    Attributes:
        path: the folder, absolute.
        marker: the path of the marker file, for worker processes to lock.
    """

    def __init__(self, path: Path, marker: int, created: list[Path]) -> None:
        self.path = path
        self.marker = path / MARKER_NAME
        self._descriptor = marker
        self._created = created

    def release(self) -> None:
        """Take the marker away: the dataset is complete."""
        try:
            self.marker.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)

    def discard(self) -> None:
        """Remove what the build wrote, the marker last, and the folders that it created.

        If something cannot be removed the marker stays, so that the next build tries again.
        """
        try:
            for path in _own_files(self.path):
                path.unlink(missing_ok=True)
        except OSError:
            os.close(self._descriptor)
            return
        _remove_folders([self.path / split for split in SPLITS])
        with contextlib.suppress(OSError):
            self.release()
        _remove_folders(self._created)


@contextlib.contextmanager
def claim_destination(dest: str | os.PathLike[str], source: str | os.PathLike[str]) -> Iterator[Destination]:
    """Claim a folder for a build; leaving with an exception empties it, else the marker is taken away.

    Raises:
        DestinationError: it is no folder, not empty, in use by another build, inside the source or around it, or it
            cannot be written.
    """
    created: list[Path] = []
    path = Path(os.fspath(dest))
    try:
        path = _checked_path(os.fspath(dest), os.fspath(source))
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        destination = Destination(path, _claim(path), created)
    except OSError as error:
        _remove_folders(created)
        raise cannot_write(path, error) from error
    except BaseException:
        _remove_folders(created)
        raise
    try:
        yield destination
    except BaseException:
        destination.discard()
        raise
    destination.release()


def _remove_folders(folders: list[Path]) -> None:
    """Remove folders, the innermost first, that are there and empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _checked_path(dest: str, source: str) -> Path:
    """Return the absolute destination, after checking its relation to the source."""
    if is_remote(dest):
        raise DestinationError(
            f"destination {dest} is a URL, expected a local folder; build locally, then upload the folder"
        )
    path, origin = (Path(os.path.realpath(local_path(url))) for url in (dest, source))
    if path == origin:
        raise DestinationError(f"source and destination are the same folder, {path}; choose another destination")
    if origin in path.parents:
        raise DestinationError(f"destination {path} is inside the source {origin}; choose one outside of it")
    if path in origin.parents:
        raise DestinationError(f"source {origin} is inside the destination {path}; choose another destination")
    if path.exists() and not path.is_dir():
        raise DestinationError(f"destination {path} is a file, expected a folder that is empty or does not exist")
    return path


def _claim(path: Path) -> int:
    """Return the descriptor of a folder's marker, locked, with the leftovers of a dead build removed.

    Only a marker that was there before, with its text, vouches for files; beside a new one the folder must be empty.
    Else a build that finishes between a look at the folder and the making of a marker would lose its dataset.
    """
    marker = path / MARKER_NAME
    found = marker.exists()
    _refuse_foreign_files(path, vouched=found)
    try:
        descriptor = os.open(marker, os.O_RDWR | os.O_CLOEXEC | (0 if found else os.O_CREAT | os.O_EXCL), 0o644)
    except (FileExistsError, FileNotFoundError) as error:  # another build made or removed it at this very moment
        raise _in_use(path) from error
    try:
        share_marker(descriptor, path, fcntl.LOCK_EX)
        try:
            _clean(descriptor, path)
        except BaseException:
            if not found and _is_at(descriptor, marker):
                marker.unlink()
            raise
        share_marker(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _clean(descriptor: int, path: Path) -> None:
    """With the marker locked, remove the leftovers that it vouches for, and let it vouch for what will come."""
    text = os.pread(descriptor, len(_MARKER_TEXT) + 1, 0)
    if not _is_at(descriptor, path / MARKER_NAME):
        raise _in_use(path)
    if text not in (b"", _MARKER_TEXT):
        raise _not_empty(path, MARKER_NAME)
    _refuse_foreign_files(path, vouched=bool(text))
    for leftover in _own_files(path):
        leftover.unlink()
    os.pwrite(descriptor, _MARKER_TEXT, 0)


def share_marker(descriptor: int, path: Path, kind: int = fcntl.LOCK_SH) -> None:
    """Lock a marker without waiting; `DestinationError` if another build holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(path) from error
    except OSError as error:
        raise DestinationError(
            f"destination {path} is on a file system without locks ({error.strerror}); build on a local disk and copy "
            "the dataset there"
        ) from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether a path still names the open file: a build that finishes removes its marker."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _refuse_foreign_files(path: Path, *, vouched: bool) -> None:
    """Raise `DestinationError` if a folder holds more than its marker and, where that vouches, files of a build."""
    own = set(_own_files(path)) if vouched else set()
    for entry in sorted(path.iterdir()):
        if entry.name == MARKER_NAME or entry in own:
            continue
        if vouched and entry.name in SPLITS and entry.is_dir() and not entry.is_symlink():
            foreign = [inner for inner in sorted(entry.iterdir()) if inner not in own]
            if foreign:
                raise _not_empty(path, os.path.join(entry.name, foreign[0].name))
            continue
        raise _not_empty(path, entry.name)


def _own_files(path: Path) -> list[Path]:
    """Return the files, in a folder and its splits, whose names a build gives; builds make no links."""
    folders = [path, *(path / split for split in SPLITS)]
    return [
        entry
        for folder in folders
        if folder.is_dir() and not folder.is_symlink()
        for entry in sorted(folder.iterdir())
        if _OWN_NAMES.fullmatch(entry.name) and not entry.is_dir()
    ]


def _not_empty(path: Path, name: str) -> DestinationError:
    what = "a finished dataset" if name == MANIFEST_NAME or name.startswith("shard-") else name
    return DestinationError(
        f"destination {path} is not empty: it holds {what}; choose another destination, or empty the folder yourself"
    )


def _in_use(path: Path) -> DestinationError:
    return DestinationError(
        f"destination {path} is in use by another build; wait until it has finished, or choose another destination"
    )
