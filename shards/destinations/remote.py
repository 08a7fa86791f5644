"""A destination behind a URL: each file is put as one object once it is whole; the manifest comes last.

A shard is written to an unnamed temporary file and then put: in one request below twice `PART_BYTES`, above in parts,
of which at most two are in memory. An upload in parts that fails is aborted, and what a killed process left of its own
is aborted by the next build. Object stores have no staged names: an object appears whole. Of stores that have (fsspec
knows many) it is enough that a shard's index is written after the shard: a cut index is no index.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from feeder.errors import FeederError
from feeder.shards.dataset.manifest import COLUMNS_FOLDER, MARKER_NAME
from feeder.shards.destinations.conditional import entity_tag, is_s3, put_over
from feeder.shards.destinations.lease import Lease
from feeder.shards.destinations.protocol import in_use, is_own, refuse_foreign, writing_errors
from feeder.shards.errors import DestinationError
from feeder.shards.storage import RemoteFolder
from feeder.shards.table import SPLITS

PART_BYTES = 64 << 20  # below twice that one request does; in parts, 10,000 of them make shards of up to 625 GiB
_PARTS_AT_ONCE = 2  # bounds memory to what a single request may take


class RemoteDestination:
    """A folder behind a URL to write into; see `feeder.shards.destinations.protocol.Destination`."""

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url)
        self.url = self._folder.url

    def where(self, name: str) -> str:
        return self._folder.where(name)

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[BinaryIO]:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(tempfile.TemporaryFile())  # unnamed: a killed process leaves none behind
                yield file
                file.seek(0)
            except FeederError:
                raise
            except OSError as error:
                raise DestinationError(
                    f"cannot write a temporary file in {tempfile.gettempdir()} for {self.where(name)}: "
                    f"{error.strerror or error}; free space there, or name another folder with TMPDIR"
                ) from error
            with writing_errors(self.where(name), Exception):
                self._put_file(f"/dev/fd/{file.fileno()}", self.where(name))

    def put(self, name: str, data: bytes) -> None:
        with writing_errors(self.where(name), Exception):
            self.filesystem.pipe_file(self.where(name), data)

    def entity_tag(self, name: str) -> str | None:
        """Return what tells one version of a file from another; None where the store has no such, or no file."""
        with writing_errors(self.where(name), Exception), contextlib.suppress(FileNotFoundError):
            return entity_tag(self.filesystem, self.where(name))
        return None

    def put_over(self, name: str, data: bytes, tag: str | None) -> bool:
        """Write a file if it still has the entity tag, in any case if that is None; return whether it is written."""
        with writing_errors(self.where(name), Exception):
            if put_over(self.filesystem, self.where(name), data, tag):
                return True
            return bytes(self.filesystem.cat_file(self.where(name))) == data  # by a request that was sent twice

    def read(self, name: str) -> bytes:
        return self._folder.read(name)

    def files(self) -> dict[str, int]:
        return {name: size for name, size in self.entries().items() if is_own(name)}

    def entries(self) -> dict[str, int]:
        """Return the names in the folder and in those that builds make there, other folders with a ``/`` behind."""
        return dict(sorted(self._entries("", (*SPLITS, COLUMNS_FOLDER)).items()))

    def _entries(self, above: str, folders: Sequence[str]) -> dict[str, int]:
        """Return names and sizes below a folder, in which builds make some folders."""
        found: dict[str, int] = {}
        for name, size in self._listed(self.where(above) if above else self.url).items():
            plain = name.rstrip("/")
            if plain in folders and name.endswith("/"):
                found |= self._entries(above + name, (COLUMNS_FOLDER,) if plain in SPLITS else ())
            else:
                found[above + name] = size
        return found

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with writing_errors(self.where(name), Exception), contextlib.suppress(FileNotFoundError):
                self.filesystem.rm_file(self.where(name))

    def flush(self) -> None:
        """Nothing to do: a request that was answered is durable."""

    def hold(self) -> None:
        """Nothing to do: the process that has the claim renews it, and workers die with that process."""

    def abort_uploads(self) -> None:
        """Abort the uploads in parts that builds began in this folder and did not end, where the store has such."""
        files = self.filesystem
        if not is_s3(files):
            return
        with writing_errors(self.url, Exception):
            bucket, prefix, _ = files.split_path(self.where(""))
            prefix = prefix and prefix.rstrip("/") + "/"
            markers: dict[str, str] = {}
            while True:
                page = files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers)
                for upload in page.get("Uploads", ()):
                    if is_own(upload["Key"][len(prefix) :]):
                        with contextlib.suppress(FileNotFoundError):  # ended meanwhile
                            files.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                if not page.get("IsTruncated"):
                    return
                markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def lease(self) -> Lease:
        """Return the lease that a build of this folder holds."""
        return Lease(self.filesystem, self.where(MARKER_NAME), self.url)

    @property
    def filesystem(self) -> Any:
        """fsspec's object for the file system, that of this process."""
        return self._folder.filesystem()

    def _put_file(self, path: str, url: str) -> None:
        files = self.filesystem
        if is_s3(files):
            files.put_file(path, url, chunksize=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
        else:
            files.put_file(path, url)

    def _listed(self, url: str) -> dict[str, int]:
        """Return name and size of what lies directly below a URL, folders with a ``/`` behind."""
        files = self.filesystem
        with writing_errors(url, Exception):
            files.invalidate_cache(url)
            try:
                listed = files.ls(url, detail=True)
            except FileNotFoundError:
                return {}
        above = files._strip_protocol(url).rstrip("/")  # noqa: SLF001 - fsspec has no public way from URLs to the names that ls gives
        found = {}
        for entry in listed:
            name = entry["name"].rstrip("/")
            if name != above:  # some stores list an empty object that stands for the folder itself
                folder = entry["type"] == "directory"
                found[os.path.basename(name) + "/" * folder] = 0 if folder else int(entry["size"] or 0)
        return found


class RemoteClaim:
    """A claimed folder behind a URL; see `feeder.shards.destinations.protocol.Claim`.

    Raises:
        DestinationError: the folder is not empty, in use by another build, or cannot be written.
    """

    def __init__(self, url: str) -> None:
        self.folder = RemoteDestination(url)
        with writing_errors(self.folder.url, Exception):
            self._lease = self.folder.lease()
            look(url)
            found = self._lease.take()
            try:
                # Without a marker the folder must be empty even now: a build may have finished since the first look.
                refuse_foreign(self.folder.url, self.folder.entries(), vouched=found)
                self.folder.abort_uploads()
            except BaseException:
                self._lease.give_up(vacant=found)
                raise

    def check(self) -> None:
        self._lease.check()

    def finish(self) -> None:
        self._abort_uploads()
        with writing_errors(self.folder.url, Exception):
            self._lease.give_up()

    def keep(self) -> None:
        self._abort_uploads()
        self._lease.give_up(vacant=True)

    def discard(self) -> None:
        self._abort_uploads()
        try:
            self._lease.check()
            self.folder.remove(self.folder.files())
        except DestinationError:
            self._lease.give_up(vacant=True)
            return
        self._lease.give_up()

    def _abort_uploads(self) -> None:
        """Abort what is left of uploads if the store still answers; else the next build does."""
        with contextlib.suppress(DestinationError):
            self.folder.abort_uploads()


def look(url: str) -> None:
    """Raise what claiming a folder would, as far as looking at it tells; nothing is changed."""
    folder = RemoteDestination(url)
    entries = folder.entries()
    refuse_foreign(folder.url, entries, vouched=MARKER_NAME in entries)
    if MARKER_NAME in entries and (who := folder.lease().holder()):
        raise in_use(folder.url, who)
