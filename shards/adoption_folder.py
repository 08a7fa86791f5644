"""The destination of an adoption, claimed: what may be there before, and what remains after an error.

Surveys stand in ``.adopting`` beside the manifest to be, and so does a file that is locked as long as an adoption works
there. Its text vouches for what else is in the destination: indexes, and manifests of splits, of an attempt that died.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from feeder.shards.adoptable import AdoptableSplit
from feeder.shards.destinations.local import share_marker
from feeder.shards.errors import DestinationError
from feeder.shards.manifest import MANIFEST_NAME
from feeder.shards.storage import is_remote, local_path

SCRATCH_NAME = ".adopting"
LOCK_NAME = "lock"
_LOCK_TEXT = b"An adoption that has not finished: run the same 'feeder index' again.\n"


@contextlib.contextmanager
def claim_adoption(dest: str | os.PathLike[str], splits: Sequence[AdoptableSplit]) -> Iterator[tuple[Path, Path]]:
    """Yield the destination and its folder for surveys, locked; the latter goes in the end, if all is well.

    After an error surveys stay for the next attempt; if there are none, nothing does.

    Raises:
        DestinationError: it is no local folder, holds something else, is in use, or cannot be written.
    """
    text = os.fspath(dest)
    if is_remote(text):
        raise DestinationError(
            f"destination {text} is a URL, expected a local folder; adopt into a local folder, then upload that"
        )
    path = Path(os.path.abspath(local_path(text)))
    scratch = path / SCRATCH_NAME
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        if not _vouched(scratch / LOCK_NAME):
            _refuse_others(path, splits)
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DestinationError(f"cannot write {path}: {error.strerror or error}; choose another destination") from error
    try:
        share_marker(descriptor, path, fcntl.LOCK_EX)
        share_marker(descriptor, path)  # the workers hold it, too
        with _removed_if_empty(path, created):
            if not _vouched(scratch / LOCK_NAME):  # an adoption that finished meanwhile took its own lock away
                _refuse_others(path, splits)
                os.pwrite(descriptor, _LOCK_TEXT, 0)
            yield path, scratch
        shutil.rmtree(scratch)
    finally:
        os.close(descriptor)


def split_folder(path: Path, split: AdoptableSplit) -> Path:
    """Return the folder of a split's manifest."""
    return path / split.split if split.split else path


def is_in_place(path: Path, split: AdoptableSplit) -> bool:
    """Say whether the manifest will stand in the folder of the shards."""
    return not is_remote(split.root) and os.path.realpath(split_folder(path, split)) == os.path.realpath(split.root)


def _is_of_data(path: Path, split: AdoptableSplit) -> bool:
    """Say whether a destination is the folder of the data, or one above that holds them by split."""
    return is_in_place(path, split) or (
        not is_remote(split.root) and os.path.realpath(path) == os.path.realpath(split.root)
    )


def _vouched(lock: Path) -> bool:
    try:
        return lock.read_bytes() == _LOCK_TEXT
    except (FileNotFoundError, NotADirectoryError):
        return False


def _refuse_others(path: Path, splits: Sequence[AdoptableSplit]) -> None:
    """Raise `DestinationError` if a destination holds anything but the shards themselves."""
    if path.exists() and not path.is_dir():
        raise DestinationError(f"destination {path} is a file, expected a folder")
    for split in splits:
        folder = split_folder(path, split)
        if (folder / MANIFEST_NAME).exists():
            raise DestinationError(f"destination {folder} holds a dataset already; choose another destination")
    if path.is_dir() and not any(_is_of_data(path, split) for split in splits):
        for entry in sorted(path.iterdir()):
            if entry.name != SCRATCH_NAME:
                raise DestinationError(
                    f"destination {path} is not empty: it holds {entry.name}; choose another destination, empty the "
                    "folder yourself, or give the folder of the data itself"
                )


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
