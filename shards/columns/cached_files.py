"""Files of the user's cache folder: what can be made again, and is kept because that takes long."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from feeder.shards.formats.samples import DigestedFile
from feeder.shards.storage import STAGED


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
