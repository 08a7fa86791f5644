"""The claim on a dataset that is to be changed: a marker, ``.changing``, that dies with its holder or gets stale."""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from feeder.shards.dataset.manifest import COLUMNS_FOLDER, GENERATIONS_FOLDER
from feeder.shards.destinations.lease import Lease
from feeder.shards.destinations.local import LocalDestination, is_at
from feeder.shards.destinations.protocol import Destination, writing_errors
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError
from feeder.shards.storage import Folder, LocalFolder, flush_folder

CHANGING_NAME = ".changing"

_MARKER_TEXT = b"shardfeed is changing this dataset, or was interrupted; the next change cleans up.\n"


def nothing_to_check() -> None:
    """Take a claim for held: a lock is, as long as its process lives."""


@dataclasses.dataclass(slots=True, kw_only=True)
class ChangeClaim:
    """A dataset whose marker is held.

    Attributes:
        out: its folder, to write into.
        found: the marker was there already: a change has died.
        clean: nothing is left of this one but what was committed; else the marker stays, for the next change to see.
        check: raises `DestinationError` if the marker was taken over.
    """

    out: Destination
    found: bool
    clean: bool = True
    check: Callable[[], None] = nothing_to_check


def claim_dataset(folder: Folder) -> contextlib.AbstractContextManager[ChangeClaim]:
    """Return a context that holds the marker of a dataset, whatever its manifest is like.

    Raises:
        DestinationError: another process is changing it, or it cannot be written.
    """
    return _local_claim(folder) if isinstance(folder, LocalFolder) else _remote_claim(folder.url)


class _LocalChange(LocalDestination):
    """The folder of a dataset, to write into; its worker processes hold the marker of the change."""

    def hold(self) -> None:
        try:
            descriptor = os.open(self.path / CHANGING_NAME, os.O_RDONLY | os.O_CLOEXEC)  # open as long as the process
        except OSError as error:
            raise _in_use(self.url) from error
        _lock(descriptor, self.url, fcntl.LOCK_SH)

    def flush(self) -> None:
        with writing_errors(self.url):
            for name in (COLUMNS_FOLDER, GENERATIONS_FOLDER, ""):
                if (self.path / name).is_dir():
                    flush_folder(self.path / name)


@contextlib.contextmanager
def _local_claim(folder: LocalFolder) -> Iterator[ChangeClaim]:
    """Hold the marker of a local dataset."""
    marker = Path(folder.url, CHANGING_NAME)
    with writing_errors(str(marker)):
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder.url, fcntl.LOCK_EX)
        if not is_at(descriptor, marker):  # the change before has just ended, and another may have begun
            raise _in_use(folder.url)
        with writing_errors(str(marker)):
            found = os.fstat(descriptor).st_size > 0
            os.pwrite(descriptor, _MARKER_TEXT, 0)
        _lock(descriptor, folder.url, fcntl.LOCK_SH)  # which worker processes share
        claim = ChangeClaim(out=_LocalChange(Path(folder.url)), found=found)
        try:
            yield claim
        finally:
            if claim.clean:
                with writing_errors(str(marker)):
                    marker.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _remote_claim(url: str) -> Iterator[ChangeClaim]:
    """Hold the marker of a dataset behind a URL."""
    out = RemoteDestination(url)
    lease = Lease(out.filesystem, out.where(CHANGING_NAME), out.url)
    with writing_errors(out.url, Exception):
        found = lease.take()
    claim = ChangeClaim(out=out, found=found, check=lease.check)
    try:
        yield claim
    finally:
        lease.give_up(vacant=not claim.clean)


def _lock(descriptor: int, url: str, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(url) from error
    except OSError as error:
        raise DestinationError(
            f"dataset {url} is on a file system without locks ({error.strerror}); change a copy of it on a local disk"
        ) from error


def _in_use(url: str) -> DestinationError:
    return DestinationError(f"dataset {url} is being changed by another process; wait until it has finished")
