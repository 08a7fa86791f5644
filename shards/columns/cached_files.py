"""Files of the user's cache folder: what can be made again, and is kept because that takes long."""

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from feeder.shards.formats.samples import DigestedFile
from feeder.shards.storage import STAGED

_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``shardfeed`` in XDG_CACHE_HOME, which is ~/.cache by default."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "shardfeed"


def write_cached(path: Path, pieces: Iterable[bytes], expected: str | None = None) -> str:
    """Write a file of the cache so that it appears whole; two processes may write the same one at the same time.

    Returns the xxh3-128 digest of its bytes; if that is not the `expected` one, the file does not appear.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(suffix=STAGED, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            digested = DigestedFile(file)
            for piece in pieces:
                digested.write(piece)
        digest = digested.hexdigest()
        if expected in (None, digest):
            os.replace(staged, path)
        return digest
    finally:
        Path(staged).unlink(missing_ok=True)


def keep_cached(path: Path, pieces: Iterable[bytes], what: str) -> bool:
    """Write a file of the cache and say whether it is there; if not, a warning says so.

    A cache that cannot be written is no reason to fail, since it only saves time.

    Args:
        path, pieces: as in `write_cached`.
        what: the file is, such as "a selection".
    """
    try:
        write_cached(path, pieces)
    except OSError as error:
        _LOG.warning(
            "cannot keep %s in %s (%s): it is computed each time; set XDG_CACHE_HOME to a folder that can be written",
            what,
            path.parent,
            error.strerror or error,
        )
        return False
    return True
