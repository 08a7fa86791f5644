"""The samples in tar archives: members grouped as webdataset groups them, as columns.

A member's *key* is its name up to the first dot of its last part; the rest, in lower case, is its *extension*
(``seg/0001.mask.PNG``: ``seg/0001`` and ``mask.png``). Members that stand side by side and share a key are a sample. As
in webdataset, left out are what is no regular file, names without a dot, and what stands below, or is itself,
``__name__`` at the top. Also left out are names that end at that dot, and hidden files (``._0001.jpg`` of macOS); a
``./`` before a name does not count.
"""

import dataclasses
import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT
from feeder.shards.names import PathTable, readable
from feeder.shards.tar_walk import DamagedArchiveError, JoinedArchivesError, Member, TarFile, open_tar, walk_tar

MAX_EXTENSIONS = 256  # more are no fields but names with dots, which the rule for keys cuts at the wrong place
MAX_CONTENT_BYTES = 1 << 20  # of one member read as a value: a text or a number, not a file

_META = re.compile(r"__[^/]*__($|/)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TarSamples:
    """The n samples of one archive, in order.

    Attributes:
        where: the path or URL of the archive.
        size_bytes: of the whole archive.
        keys: of each sample.
        offsets: of each extension, in order of first appearance, int64[n]: where the content starts; 0 where absent.
        sizes: of each extension, int64[n]: bytes; `ABSENT` where a sample has no such member.
        contents: of the extensions asked for, what the members hold: large_binary[n], null where absent.
        damage: what is wrong with the archive, a sentence; empty if nothing is. The samples are then those before the
            damage, without the last if members of it may be missing.
    """

    where: str
    size_bytes: int
    keys: PathTable
    offsets: Mapping[str, NDArray[np.int64]]
    sizes: Mapping[str, NDArray[np.int64]]
    contents: Mapping[str, pa.Array]
    damage: str

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def extensions(self) -> tuple[str, ...]:
        return tuple(self.sizes)


def walk_samples(
    where: str, *, wanted: Callable[[str], bool] = lambda extension: False, keep_damaged: bool = False
) -> TarSamples:
    """Return the samples of a tar archive; read are its headers, and the contents of wanted members.

    Args:
        where: a local path or a URL.
        wanted: says of an extension whether its contents are to be read.
        keep_damaged: return the samples before the damage instead of raising.

    Raises:
        DamagedArchiveError: the archive is cut or damaged.
        SourceError: no such archive, a key or a member that stands in it twice, a wanted member of more than 1 MiB, or
            more extensions than fields could have.
        StorageError: the storage does not give the bytes.
    """
    with open_tar(where) as file:
        return gather_samples(file, walk_tar(file), where, wanted=wanted, keep_damaged=keep_damaged)


def gather_samples(
    file: TarFile,
    members: Iterable[Member],
    where: str,
    *,
    wanted: Callable[[str], bool] = lambda extension: False,
    keep_damaged: bool = False,
) -> TarSamples:
    """Return the samples that the members of an open archive are; arguments and errors as in `walk_samples`."""
    gathered = _Gathered(file, wanted)
    damage, lacking = "", 0
    try:
        for member in members:
            gathered.add(member)
    except DamagedArchiveError as error:
        if not keep_damaged:
            raise
        damage = str(error)
        lacking = 0 if isinstance(error, JoinedArchivesError) else 1
    return gathered.samples(where, damage, lacking)


def walk_archives(
    wheres: Iterable[str],
    *,
    wanted: Callable[[str], bool] = lambda extension: False,
    keep_damaged: bool = False,
    threads: int = 8,
) -> Iterator[TarSamples]:
    """Yield the samples of archives, in order, walking several at a time: what takes time is waiting for reads.

    Raises: as `walk_samples`.
    """
    remaining = iter(wheres)
    walked: deque[Future[TarSamples]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="walk-tar") as pool:
        try:
            while True:
                while len(walked) < threads and (where := next(remaining, None)) is not None:
                    walked.append(pool.submit(walk_samples, where, wanted=wanted, keep_damaged=keep_damaged))
                if not walked:
                    return
                yield walked.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the extension (lower case, without its dot) of a member's name; None if it is left out."""
    while name.startswith("./"):
        name = name[2:]
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot or not extension or _META.match(name):
        return None
    return folder + slash + stem, extension.lower()


class _Gathered:
    """Gathers the members of an archive: a row a sample, a pair of arrays an extension."""

    def __init__(self, file: TarFile, wanted: Callable[[str], bool]) -> None:
        self._file = file
        self._wanted = wanted
        self._keys: dict[str, None] = {}  # in order
        self._key: str | None = None
        self._rows: dict[str, array[int]] = {}
        self._offsets: dict[str, array[int]] = {}
        self._sizes: dict[str, array[int]] = {}
        self._contents: dict[str, list[bytes]] = {}

    def add(self, member: Member) -> None:
        """Take a member."""
        parts = split_name(member.name)
        if parts is None:
            return
        key, extension = parts
        if key != self._key:
            if key in self._keys:
                raise SourceError(
                    f"{self._file.where} holds two samples with the key {readable(key)!r}, with others between them; "
                    "pack the members of a sample side by side and give each sample a name of its own"
                )
            self._keys[key] = None
            self._key = key
        row = len(self._keys) - 1
        rows = self._rows.get(extension)
        if rows is None:
            rows = self._new_extension(extension)
        if rows and rows[-1] == row:
            raise SourceError(
                f"{self._file.where} holds two members {readable(key)}.{extension}; names differ only in case, or one "
                "was added twice: pack it again with one of them"
            )
        rows.append(row)
        self._offsets[extension].append(member.offset)
        self._sizes[extension].append(member.size)
        if extension in self._contents:
            self._contents[extension].append(self._content(member))

    def _new_extension(self, extension: str) -> "array[int]":
        if len(self._rows) == MAX_EXTENSIONS:
            raise SourceError(
                f"{self._file.where} holds members with more than {MAX_EXTENSIONS} extensions, such as "
                f"{readable(extension)!r}: a key ends at the first dot of a name, so names must not hold others; pack "
                "it again with names like 0001.jpg"
            )
        self._rows[extension], self._offsets[extension], self._sizes[extension] = array("q"), array("q"), array("q")
        if self._wanted(extension):
            self._contents[extension] = []
        return self._rows[extension]

    def _content(self, member: Member) -> bytes:
        if member.size > MAX_CONTENT_BYTES:
            raise SourceError(
                f"{readable(member.name)} in {self._file.where} has {member.size} bytes, more than the "
                f"{MAX_CONTENT_BYTES} that a text or a number may have; give it another extension to keep it as bytes"
            )
        return self._file.read(member.offset, member.size)

    def samples(self, where: str, damage: str, lacking: int) -> TarSamples:
        """Return what was gathered but for the last samples, of which so many may lack members."""
        count = max(0, len(self._keys) - lacking)
        offsets, sizes, contents = {}, {}, {}
        for extension, rows_array in self._rows.items():
            rows = np.frombuffer(rows_array, np.int64)
            kept = rows < count
            rows = rows[kept]
            offsets[extension] = np.zeros(count, np.int64)
            offsets[extension][rows] = np.frombuffer(self._offsets[extension], np.int64)[kept]
            sizes[extension] = np.full(count, ABSENT, np.int64)
            sizes[extension][rows] = np.frombuffer(self._sizes[extension], np.int64)[kept]
            if extension in self._contents:
                contents[extension] = _spread(self._contents[extension][: len(rows)], rows, count)
        keys = list(self._keys)[:count]
        return TarSamples(
            where=os.fspath(where),
            size_bytes=self._file.size_bytes,
            keys=PathTable(keys),
            offsets=offsets,
            sizes=sizes,
            contents=contents,
            damage=damage,
        )


def _spread(values: list[bytes], rows: NDArray[np.int64], count: int) -> Any:
    """Return large_binary[count] with the values at their rows, null elsewhere."""
    picks = np.full(count, -1, np.int64)
    picks[rows] = np.arange(len(rows))
    return pa.array(values, pa.large_binary()).take(pa.array(picks, mask=picks < 0))
