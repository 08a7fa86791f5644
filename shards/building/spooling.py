"""Opening a source for a build, with a place for what has to be copied out of it first.

Images within Parquet files lie in compressed pages, where no place can point at; `feeder.shards.sources.parquet` copies
them into one uncompressed file, the spool. It stands in the destination while a build lasts, where there is room for
the images anyway; for a destination behind a URL, in the folder for temporary files.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import SPOOL_NAME, Destination
from feeder.shards.sources.opening import open_source, source_files
from feeder.shards.sources.options import SourceOptions
from feeder.shards.storage import is_remote, local_path
from feeder.shards.table import SampleTable


@contextlib.contextmanager
def opened(
    source: str | os.PathLike[str], options: SourceOptions | None, folder: Destination | None = None
) -> Iterator[list[SampleTable]]:
    """Open a source; its samples can be read until the end.

    Args:
        source, options: see `feeder.shards.sources.open_source`.
        folder: the claimed destination of a build, if there is one.

    Raises:
        SourceError, ManifestError, ShardError, DestinationError, StorageError: see `open_source`.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(folder, LocalDestination):
            spool = folder.path / SPOOL_NAME
            stack.callback(spool.unlink, missing_ok=True)
        else:
            spool = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feeder-")), SPOOL_NAME)
        tables = open_source(source, options, spool=spool)
        if spool.exists():
            # A build that is gone on with copies anew: what tells a change of the samples is the time of their source.
            os.utime(spool, ns=(0, _last_change(os.fspath(source))))
        yield tables


def _last_change(source: str) -> int:
    """Return when the latest of local Parquet files was last changed (ns of Unix time); 0 behind a URL."""
    where = source if is_remote(source) else os.path.abspath(local_path(source))
    files, _ = source_files(where, ".parquet")
    return max(0 if is_remote(file) else os.stat(file).st_mtime_ns for file in files)
