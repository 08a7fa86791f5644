"""What a build needs of its destination, the names that it may give there, and the sentences of refusals."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, Protocol

from feeder.errors import FeederError
from feeder.shards.dataset.manifest import COLUMNS_FOLDER, MANIFEST_NAME, MARKER_NAME
from feeder.shards.errors import DestinationError
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.storage import STAGED, is_remote
from feeder.shards.table import SPLITS

BAD_IMAGES_NAME = "bad-images.jsonl"
DUPLICATES_NAME = "duplicates.jsonl"
PLAN_NAME = ".building.plan"
SPOOL_NAME = ".building.images"

_OWN_NAMES = re.compile(
    rf"((?:{'|'.join(SPLITS)})/)?"
    rf"(shard-\d{{6,}}\.({'|'.join(WRITTEN_FORMATS)}|idx\.arrow|bad\.jsonl)"
    rf"|{'|'.join(map(re.escape, (MANIFEST_NAME, BAD_IMAGES_NAME, DUPLICATES_NAME, PLAN_NAME, SPOOL_NAME)))}"
    rf"|{COLUMNS_FOLDER}/([^/]+\.[0-9a-f]{{8}}\.arrow|column-[^/]+)"
    r"|[a-z]+-\d{5}-of-\d{5}\.parquet)"
    rf"({re.escape(STAGED)})?"
)
_PARTS_OF_A_DATASET = re.compile(rf"(.*/)?(shard-.*|{re.escape(MANIFEST_NAME)}|{COLUMNS_FOLDER}/.*\.arrow)")


class Destination(Protocol):
    """A claimed folder to write into; names are relative to it, with ``/`` between a split and a file.

    Duties: copies are pickled into worker processes; one thread uses a copy at a time; whatever goes wrong with the
    folder is raised as `DestinationError`, except that a file to be read does not exist (`FileNotFoundError`).
    """

    url: str

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""
        ...

    def staged(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file that appears under its name once it is whole and durable; after an exception it never does."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        ...

    def files(self) -> Mapping[str, int]:
        """Return the files whose names a build gives, with their sizes in bytes, in order of their names."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error."""
        ...

    def flush(self) -> None:
        """Make the names of what was written durable."""
        ...

    def hold(self) -> None:
        """Called once by a worker process: raise `DestinationError` unless its build still has the claim."""
        ...


class Claim(Protocol):
    """The right to write into a destination, which no other process has meanwhile.

    Attributes:
        folder: the destination.
    """

    @property
    def folder(self) -> Destination: ...

    def check(self) -> None:
        """Raise `DestinationError` if another build has taken the destination over."""
        ...

    def finish(self) -> None:
        """Take the marker away: the dataset is complete."""
        ...

    def keep(self) -> None:
        """Give the destination up, and leave what was written to the next build."""
        ...

    def discard(self) -> None:
        """Remove what was written, the marker last, and the folders that the claim has made; stop where it cannot."""
        ...


def is_own(name: str) -> bool:
    """Say whether a build gives a file this name."""
    return _OWN_NAMES.fullmatch(name) is not None


def refuse_foreign(url: str, entries: Iterable[str], *, vouched: bool) -> None:
    """Raise `DestinationError` if a folder holds more than a marker and, where that vouches, the files of a build.

    Args:
        url: the folder.
        entries: relative names of its files; of folders in it, those that a build does not make with a ``/`` behind.
        vouched: whether the marker says that a build was here.
    """
    for name in sorted(entries):
        if name != MARKER_NAME and not (vouched and is_own(name)):
            what = "a finished dataset" if _PARTS_OF_A_DATASET.fullmatch(name) else name.rstrip("/")
            raise not_empty(url, what)


def not_empty(url: str, what: str) -> DestinationError:
    """Return the error for a destination that holds something already."""
    return DestinationError(
        f"destination {url} is not empty: it holds {what}; choose another destination, or empty the folder yourself"
    )


def in_use(url: str, who: str = "") -> DestinationError:
    """Return the error for a destination that another process writes into; `who` says more about that, if known."""
    return DestinationError(
        f"destination {url} is in use by another process of shardfeed{who}; wait until it has finished, or choose "
        "another destination"
    )


def cannot_write(where: str, error: BaseException) -> DestinationError:
    """Return the error for a destination that does not take bytes."""
    check = "the connection and the permissions there" if is_remote(where) else "its space and permissions"
    return DestinationError(f"cannot write {where}: {_words(error)}; check {check}, or choose another destination")


def _words(error: BaseException) -> str:
    """Return what the system or the store said."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict) and "Error" in response:  # of botocore, which s3fs turns into an OSError without text
        said = response["Error"]
        return str(said.get("Message") or said.get("Code") or error.__cause__)
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextlib.contextmanager
def writing_errors(where: str, kinds: type[Exception] = OSError) -> Iterator[None]:
    """Turn what the system raises while a destination is used into `DestinationError`; our own errors pass."""
    try:
        yield
    except FeederError:
        raise
    except kinds as error:
        raise cannot_write(where, error) from error
