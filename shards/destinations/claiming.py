"""Claiming a destination, and leaving it: complete, given up with what is finished kept, or as if nothing had been."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from feeder.shards.dataset.manifest import MANIFEST_NAME
from feeder.shards.destinations import local, remote
from feeder.shards.destinations.protocol import PLAN_NAME, Claim
from feeder.shards.errors import DestinationError, ResumeError
from feeder.shards.formats.index import index_name
from feeder.shards.storage import is_remote, local_path

_RECORD = index_name("x.tar")[1:]  # ends the name of what is written last of a shard


@contextlib.contextmanager
def claim_destination(dest: str | os.PathLike[str], source: str | os.PathLike[str]) -> Iterator[Claim]:
    """Claim a folder, local or behind a URL, for a build.

    Leaving without an exception takes the marker away. Leaving with one keeps the shards that are finished, for the
    same command to go on with, and says so in a note of the exception; if there are none, nothing remains.

    Raises:
        DestinationError: it is no folder, not empty, in use by another build, inside the source or around it, or it
            cannot be written.
    """
    url = _checked(os.fspath(dest), os.fspath(source))
    claim: Claim = remote.RemoteClaim(url) if is_remote(url) else local.LocalClaim(Path(url))
    try:
        yield claim
    except BaseException as error:
        _leave(claim, error)
        raise
    claim.finish()


def check_destination(dest: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Raise what claiming a folder would, as far as looking at it tells; nothing is changed."""
    url = _checked(os.fspath(dest), os.fspath(source))
    if is_remote(url):
        remote.look(url)
    else:
        local.look(Path(url))


def _leave(claim: Claim, error: BaseException) -> None:
    """Give a destination up after an error, with a note on what was kept."""
    where = claim.folder.url
    try:
        files = claim.folder.files()
    except DestinationError:
        claim.keep()
        error.add_note("what was finished is kept: run the same command again to go on")
        return
    if PLAN_NAME not in files and any(name.rpartition("/")[2] == MANIFEST_NAME for name in files):
        claim.finish()  # all but this was done when its build was killed
        return
    finished = {name.partition(".")[0] for name in files if name.endswith(_RECORD)}
    if PLAN_NAME not in files or not finished:
        claim.discard()
        return
    claim.keep()
    if not isinstance(error, ResumeError):
        shards = "1 finished shard is" if len(finished) == 1 else f"{len(finished):,} finished shards are"
        error.add_note(f"{shards} kept in {where}: run the same command again to go on")


def _checked(dest: str, source: str) -> str:
    """Return the destination, an absolute path or a URL, after checking its relation to the source."""
    if is_remote(dest) != is_remote(source):
        return dest.rstrip("/") if is_remote(dest) else _checked_kind(os.path.realpath(local_path(dest)))
    if is_remote(dest):
        path, origin = (url.rstrip("/") for url in (dest, source))
    else:
        path, origin = (os.path.realpath(local_path(url)) for url in (dest, source))
    if path == origin:
        raise DestinationError(f"source and destination are the same folder, {path}; choose another destination")
    if path.startswith(origin.rstrip("/") + "/"):
        raise DestinationError(f"destination {path} is inside the source {origin}; choose one outside of it")
    if origin.startswith(path.rstrip("/") + "/"):
        raise DestinationError(f"source {origin} is inside the destination {path}; choose another destination")
    return path if is_remote(dest) else _checked_kind(path)


def _checked_kind(path: str) -> str:
    if os.path.exists(path) and not os.path.isdir(path):
        raise DestinationError(f"destination {path} is a file, expected a folder that is empty or does not exist")
    return path
