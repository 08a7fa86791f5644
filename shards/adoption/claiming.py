"""The destination of an adoption, claimed: what may be there before, and what remains after an error.

In a local destination surveys stand in ``.adopting`` beside the manifest to be, and so does a file that is locked as
long as an adoption works there. Its text vouches for what else is in the destination: indexes, and manifests of splits,
of an attempt that died. For a destination behind a URL they stand in a temporary folder and go with the process, so an
adoption that stopped begins anew; the claim is that of a build (`feeder.shards.destinations.lease`).
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from feeder.shards.adoption.finding import AdoptableSplit
from feeder.shards.dataset.manifest import MANIFEST_NAME, MARKER_NAME
from feeder.shards.destinations.local import LocalDestination, share_marker
from feeder.shards.destinations.protocol import Destination, writing_errors
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError
from feeder.shards.formats.index import index_name
from feeder.shards.storage import is_remote, local_path

SCRATCH_NAME = ".adopting"
LOCK_NAME = "lock"
_LOCK_TEXT = b"An adoption that has not finished: run the same 'feeder index' again.\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionFolder:
    """A claimed destination.

    Attributes:
        folder: the destination.
        scratch: a local folder for surveys, with a locked file in it.
        check: raises `DestinationError` if another process has taken the destination over.
    """

    folder: Destination
    scratch: Path
    check: Callable[[], None]


@contextlib.contextmanager
def claim_adoption(dest: str | os.PathLike[str], splits: Sequence[AdoptableSplit]) -> Iterator[AdoptionFolder]:
    """Claim a destination; the folder for surveys goes if all is well.

    After an error in a local destination surveys stay for the next attempt; if there are none, nothing does. Behind a
    URL what was written stays, for the same adoption to write it again; if there is nothing, no marker stays either.

    Raises:
        DestinationError: it is no folder, holds something else, is in use, or cannot be written.
    """
    text = os.fspath(dest)
    if is_remote(text):
        with _claimed_remotely(RemoteDestination(text), splits) as claimed:
            yield claimed
    else:
        with _claimed_locally(Path(os.path.abspath(local_path(text))), splits) as scratch:
            yield AdoptionFolder(folder=LocalDestination(scratch.parent), scratch=scratch, check=lambda: None)


def prefix_of(split: AdoptableSplit) -> str:
    """Return what stands before the names of a split's files in the destination."""
    return f"{split.split}/" if split.split else ""


def is_in_place(url: str, split: AdoptableSplit) -> bool:
    """Say whether the manifest will stand in the folder of the shards."""
    return _same_folder(f"{url}/{prefix_of(split)}", split.root)


@contextlib.contextmanager
def _claimed_remotely(folder: RemoteDestination, splits: Sequence[AdoptableSplit]) -> Iterator[AdoptionFolder]:
    """Yield a destination behind a URL, whose marker this process holds."""
    for split in splits:
        if not is_remote(split.root):
            raise DestinationError(
                f"the data lie in the local folder {split.root}, which a dataset at {folder.url} cannot name; "
                "choose a local destination, or upload the data first"
            )
    own = _own_names(splits)
    with writing_errors(folder.url, Exception):
        entries = set(folder.entries())
        if MARKER_NAME not in entries:
            _refuse_others(folder.url, entries, splits)
        lease = folder.lease()
        found = lease.take()
    entries -= {MARKER_NAME}
    try:
        # Without a marker only the data may be there even now: another adoption may have finished since the first look.
        now = set(folder.entries()) - {MARKER_NAME}
        _refuse_others(folder.url, now - own if found else now, splits)
        with tempfile.TemporaryDirectory(prefix="feeder-index-") as name:
            Path(name, LOCK_NAME).touch()
            yield AdoptionFolder(folder=folder, scratch=Path(name), check=lease.check)
    except BaseException:
        lease.give_up(vacant=found or _holds_any(folder, own - entries))
        raise
    lease.give_up()


def _own_names(splits: Sequence[AdoptableSplit]) -> set[str]:
    """Return the names of the files that an adoption writes, and of folders above them, as destinations list them."""
    files = {prefix_of(split) + index_name(name) for split in splits for name in split.names}
    files |= {prefix_of(split) + MANIFEST_NAME for split in splits}
    return files | {name[: at + 1] for name in files for at, letter in enumerate(name) if letter == "/"}


def _holds_any(folder: RemoteDestination, names: set[str]) -> bool:
    """Say whether there is any of some names; if the store does not answer, that is taken for granted."""
    try:
        return not names.isdisjoint(folder.entries())
    except DestinationError:
        return True


@contextlib.contextmanager
def _claimed_locally(path: Path, splits: Sequence[AdoptableSplit]) -> Iterator[Path]:
    """Yield the folder for surveys in a local destination, locked."""
    scratch = path / SCRATCH_NAME
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        if path.exists() and not path.is_dir():
            raise DestinationError(f"destination {path} is a file, expected a folder")
        if not _vouched(scratch / LOCK_NAME):
            _refuse_others(str(path), _entries(path), splits)
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except DestinationError:
        raise
    except OSError as error:
        raise DestinationError(f"cannot write {path}: {error.strerror or error}; choose another destination") from error
    try:
        share_marker(descriptor, path, fcntl.LOCK_EX)
        share_marker(descriptor, path)  # the workers hold it, too
        with _removed_if_empty(path, created):
            if not _vouched(scratch / LOCK_NAME):  # an adoption that finished meanwhile took its own lock away
                _refuse_others(str(path), _entries(path), splits)
                os.pwrite(descriptor, _LOCK_TEXT, 0)
            yield scratch
        shutil.rmtree(scratch)
    finally:
        os.close(descriptor)


def _vouched(lock: Path) -> bool:
    try:
        return lock.read_bytes() == _LOCK_TEXT
    except (FileNotFoundError, NotADirectoryError):
        return False


def _entries(path: Path) -> list[str]:
    """Return the names in a local folder, and of manifests in its splits."""
    if not path.is_dir():
        return []
    manifests = [str(found.relative_to(path)) for found in path.glob(f"*/{MANIFEST_NAME}")]
    return [entry.name for entry in path.iterdir()] + manifests


def _refuse_others(url: str, entries: Iterable[str], splits: Sequence[AdoptableSplit]) -> None:
    """Raise `DestinationError` if a destination holds a dataset, or anything but the data themselves."""
    names = set(entries) - {SCRATCH_NAME}
    for split in splits:
        if prefix_of(split) + MANIFEST_NAME in names:
            folder = f"{url}/{prefix_of(split)}".rstrip("/")
            raise DestinationError(f"destination {folder} holds a dataset already; choose another destination")
    if names and not any(is_in_place(url, split) or _same_folder(url, split.root) for split in splits):
        raise DestinationError(
            f"destination {url} is not empty: it holds {min(names)}; choose another destination, empty the folder "
            "yourself, or give the folder of the data itself"
        )


def _same_folder(one: str, other: str) -> bool:
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def _removed_if_empty(path: Path, created: Sequence[Path]) -> Iterator[None]:
    """Leave nothing behind after an error, if no survey was written."""
    try:
        yield
    except BaseException:
        if {entry.name for entry in path.glob(f"{SCRATCH_NAME}/*")} <= {LOCK_NAME}:
            shutil.rmtree(path / SCRATCH_NAME, ignore_errors=True)
            for folder in created:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise
