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
from feeder.shards.sources.opening import open_source
from feeder.shards.sources.options import SourceOptions
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
        yield open_source(source, options, spool=spool)
