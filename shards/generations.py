"""Changing a dataset: samples or columns come or go, and a new generation is committed that names its parent.

What a change promises; if the code disagrees, the code is wrong:

1. *Claimed*: the dataset gets a marker, ``.changing``, held as long as the change lives (a lock, or behind a URL a
   lease). A second change at the same time is refused. Readers are not disturbed.
2. *Beside*: no file that a generation names is ever changed. New shards are numbered on; what takes the place of a
   shard or an index has the new generation in its name (``shard-000005.g000002.idx.arrow``); columns have their digest.
3. *Committed*: the manifest is copied to ``generations/``, then the new one takes its place in one step, if its parent
   is still the current one.
4. *Stopped*: an error removes what the change wrote; after a kill the next change does. The generation before stands
   whole at any moment.
5. *Purged*: only `Change.purge` takes something away from older generations: those that need a shard which is no longer
   part of the dataset become a note that says so, and all files that no generation names are removed.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feeder.shards.destinations.lease import Lease
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import Destination, writing_errors
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError, ManifestError
from feeder.shards.formats import WRITTEN_FORMATS
from feeder.shards.manifest import (
    COLUMNS_FOLDER,
    GENERATIONS_FOLDER,
    MANIFEST_NAME,
    PURGED_KEY,
    VERSION,
    Manifest,
    encode_manifest,
    locate_manifest,
    parse_manifest,
    read_manifest,
    sealed,
)
from feeder.shards.shard_table import ShardTable
from feeder.shards.storage import STAGED, Folder, LocalFolder, flush_folder

CHANGING_NAME = ".changing"

_MARKER_TEXT = b"shardfeed is changing this dataset, or was interrupted; the next change cleans up.\n"
_NOTE_BYTES = 100  # more than the note that is left of a purged generation
_GENERATION = re.compile(r"\.g\d{6}$")
_OWN_NAMES = re.compile(
    rf"(shard-\d{{6,}}(\.g\d{{6}})?\.({'|'.join(WRITTEN_FORMATS)}|idx\.arrow|bad\.jsonl)"
    r"|bad-images\.g\d{6}\.jsonl"
    r"|.*\.g\d{6}\.idx\.arrow"
    rf"|{COLUMNS_FOLDER}/.*\.[0-9a-f]{{8}}\.arrow|{COLUMNS_FOLDER}/column-[^/]*{re.escape(STAGED)}"
    rf"|({MANIFEST_NAME}|{GENERATIONS_FOLDER}/\d{{6}}\.json)(?={re.escape(STAGED)}$))({re.escape(STAGED)})?"
)


class Change:
    """A claimed dataset, and the generation that is to come.

    Attributes:
        folder: the dataset, to read.
        out: the same, to write into.
        parent: the manifest of the current generation.
        generation: the number of the next one.
    """

    def __init__(self, folder: Folder, out: Destination, parent: Manifest) -> None:
        self.folder = folder
        self.out = out
        self.parent = parent
        self.generation = parent.generation + 1

    def named(self, name: str, extension: str) -> str:
        """Return the name that a file takes in the new generation, ``STEM.gNNNNNN.EXTENSION``."""
        stem = _GENERATION.sub("", name.rsplit(".", 1)[0])
        return f"{stem}.g{self.generation:06d}.{extension}"

    def next_number(self) -> int:
        """Return the number of the next shard: none of this dataset, of any generation, has it or a higher one."""
        names = [*self.parent.shards.names, *self.files()]
        found = (re.match(r"shard-(\d{6,})\.", name) for name in names)
        return max((int(match[1]) for match in found if match), default=-1) + 1

    def commit(self, shards: ShardTable, **changes: Any) -> Manifest:
        """Make the new generation the current one, and return its manifest.

        Args:
            shards: of the new generation.
            changes: other attributes of the manifest that differ from its parent's.

        Raises:
            DestinationError: somebody else has changed the dataset meanwhile, or it cannot be written.
        """
        manifest = sealed(
            dataclasses.replace(
                self.parent, shards=shards, generation=self.generation, parent=self.parent.digest, **changes
            )
        )
        self.out.flush()
        self.out.put(generation_name(self.parent.generation), encode_manifest(self.parent))
        if (now := read_manifest(self.folder).digest) != self.parent.digest:
            raise DestinationError(
                f"dataset {self.folder.url} was changed by another process meanwhile: its digest is {now}, expected "
                f"{self.parent.digest}; run the command again"
            )
        self.out.put(MANIFEST_NAME, encode_manifest(manifest))
        self.out.flush()
        return manifest

    def purge(self) -> list[int]:
        """Take away what the current generation dropped: return the generations that are gone with it.

        An older generation goes if it names a shard that the current one does not: that shard may hold samples that
        were dropped, and so may its index and columns.
        """
        current = read_manifest(self.folder)
        names = set(current.shards.names)
        gone = [number for number, older in self.older() if not names.issuperset(older.shards.names)]
        for number in gone:
            note = {"version": VERSION, PURGED_KEY: current.generation}
            self.out.put(generation_name(number), json.dumps(note).encode() + b"\n")
        self.sweep()
        return gone

    def sweep(self) -> None:
        """Remove the files of changes that no generation names."""
        current = read_manifest(self.folder)
        wanted = _files_of(current) | {f"bad-images.g{number:06d}.jsonl" for number in range(current.generation + 1)}
        for _, older in self.older():
            wanted |= _files_of(older)
        self.out.remove([name for name in self.files() if _OWN_NAMES.fullmatch(name) and name not in wanted])

    def older(self) -> Iterator[tuple[int, Manifest]]:
        """Yield number and manifest of the generations before the current one that can still be read."""
        for name in self.files():
            if name.startswith(GENERATIONS_FOLDER + "/") and name.endswith(".json"):
                data = self.folder.read(name)
                if f'"{PURGED_KEY}"'.encode() not in data[:_NOTE_BYTES]:
                    manifest = parse_manifest(data, self.folder.where(name))
                    yield manifest.generation, manifest

    def files(self) -> list[str]:
        """Return the names of all files of the dataset, relative to its folder."""
        if isinstance(self.out, RemoteDestination):
            files = self.out.filesystem
            with writing_errors(self.out.url, Exception):
                files.invalidate_cache(self.out.url)
                root = files._strip_protocol(self.out.url).rstrip("/") + "/"  # noqa: SLF001 - as fsspec names what it lists
                return sorted(name.removeprefix(root) for name in files.find(self.out.url))
        root = Path(self.folder.url)
        return sorted(
            os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names
        )


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
def change_dataset(source: str | os.PathLike[str]) -> Iterator[Change]:
    """Claim a dataset for a change; leaving with an exception removes what was written and not committed.

    Args:
        source: the folder or URL of one dataset: of one split.

    Raises:
        ManifestError: there is no dataset, or its manifest cannot be used, or an earlier generation was named.
        DestinationError: another process is changing it, or it cannot be written.
    """
    folder, name = locate_manifest(source)
    if name != MANIFEST_NAME:
        raise ManifestError(
            f"{folder.where(name)} is an earlier generation, which never changes; name the dataset {folder.url}"
        )
    read_manifest(folder)  # no marker where there is no dataset
    with claim_dataset(folder) as claim:
        change = Change(folder, claim.out, read_manifest(folder))
        if claim.found:
            change.sweep()
        try:
            yield change
        except BaseException:
            try:
                change.sweep()
            except (DestinationError, ManifestError):
                claim.clean = False
            raise


@dataclasses.dataclass(slots=True, kw_only=True)
class ChangeClaim:
    """A dataset whose marker is held.

    Attributes:
        out: its folder, to write into.
        found: the marker was there already: a change has died.
        clean: nothing is left of this one but what was committed; else the marker stays, for the next change to see.
    """

    out: Destination
    found: bool
    clean: bool = True


def claim_dataset(folder: Folder) -> contextlib.AbstractContextManager[ChangeClaim]:
    """Return a context that holds the marker of a dataset, whatever its manifest is like.

    Raises:
        DestinationError: another process is changing it, or it cannot be written.
    """
    return _local_claim(folder) if isinstance(folder, LocalFolder) else _remote_claim(folder.url)


@contextlib.contextmanager
def _local_claim(folder: LocalFolder) -> Iterator[ChangeClaim]:
    """Hold the marker of a local dataset."""
    marker = Path(folder.url, CHANGING_NAME)
    with writing_errors(str(marker)):
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder.url, fcntl.LOCK_EX)
        if not _is_at(descriptor, marker):  # the change before has just ended, and another may have begun
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


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether a path still names the open file: a change that ends removes its marker."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _remote_claim(url: str) -> Iterator[ChangeClaim]:
    """Hold the marker of a dataset behind a URL."""
    out = RemoteDestination(url)
    lease = Lease(out.filesystem, out.where(CHANGING_NAME), out.url)
    with writing_errors(out.url, Exception):
        found = lease.take()
    claim = ChangeClaim(out=out, found=found)
    try:
        yield claim
    finally:
        lease.give_up(vacant=not claim.clean)


def generation_name(number: int) -> str:
    """Return the name of the manifest of an earlier generation."""
    return f"{GENERATIONS_FOLDER}/{number:06d}.json"


def _files_of(manifest: Manifest) -> set[str]:
    """Return the files that a generation names, relative to its folder."""
    table = manifest.shards
    indexes = {table.index(number) for number in range(len(table))}
    shards = set(table.names) if manifest.origin is None else set()
    return indexes | shards | {column.file for column in manifest.columns.values()}


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
