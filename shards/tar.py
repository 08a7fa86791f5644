"""Tar shards: members in the one form that webdataset, DALI, energon and ``tar`` all read.

USTAR headers (POSIX.1-1988), regular files only, mode 0444, mtime, uid and gid 0, no names of users; the members of a
sample stand side by side, sorted, named ``key.extension``; nothing else is in the archive. The same members give the
same bytes. The archive ends with two zero blocks and is not padded to 10,240 bytes. A sample's label is a member of its
own, the class number as text, as webdataset's users expect it.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import ShardError
from feeder.shards.images import EXTENSIONS, FORMATS
from feeder.shards.index import ShardIndex
from feeder.shards.samples import DigestedFile, Sample

BLOCK = 512
LABEL_EXTENSION = "cls"
_MAX_SIZE = 1 << 33  # eleven octal digits

# The parts of a header that never change. `tarfile.TarInfo.tobuf` makes the same bytes in ten times the time (22 µs,
# twice a sample), and not in every version of Python: some write zeros as device numbers, which are left empty here.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2  # mode, uid, gid
_BEFORE_CHECKSUM = b"\0" + b"00000000000\0"  # the end of the size, mtime
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # regular file, no link; no users, device or prefix
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum is taken with spaces in its own place

END = bytes(2 * BLOCK)  # two zero blocks end an archive
MAX_NAME_BYTES = 100  # of the name field of a USTAR header; longer ones need its prefix, which not every reader joins


class TarWriter:
    """Writes a tar shard; see `feeder.shards.formats.ShardWriter`."""

    def __init__(self, file: DigestedFile, labelled: bool) -> None:
        self._file = file
        self._labelled = labelled
        fields = ("image", "label") if labelled else ("image",)
        self._places: dict[str, list[int]] = {
            f"{field}.{column}": [] for field in fields for column in ("offset", "size", "crc32c")
        }

    def add(self, sample: Sample) -> None:
        """Append a sample: its members sorted by extension."""
        members = [(EXTENSIONS[sample.header.format], "image", sample.image)]
        if self._labelled:
            members.append((LABEL_EXTENSION, "label", b"%d" % sample.label))
        for extension, field, data in sorted(members):
            self._file.write(member_header(f"{sample.key}.{extension}", len(data)))
            self._places[f"{field}.offset"].append(self._file.tell())
            self._places[f"{field}.size"].append(len(data))
            self._places[f"{field}.crc32c"].append(google_crc32c.value(data))
            self._file.write(data)
            self._file.write(padding(len(data)))

    def close(self) -> dict[str, list[int]]:
        """End the archive; return where the content of each member lies."""
        self._file.write(END)
        return self._places


def member_header(name: str, size: int) -> bytes:
    """Return the 512-byte header of a member.

    Args:
        name: key and extension, ASCII, at most 100 bytes.
        size: bytes of content, less than 8 GiB.
    """
    field = name.encode("ascii")
    if not 0 < len(field) <= MAX_NAME_BYTES or not 0 <= size < _MAX_SIZE:
        raise ValueError(f"no USTAR header for {name!r} of {size} bytes: its name or its size does not fit")
    head = field.ljust(MAX_NAME_BYTES, b"\0") + _BEFORE_SIZE + b"%011o" % size + _BEFORE_CHECKSUM
    checksum = sum(head) + _REST_SUM
    return head + b"%06o\0 " % checksum + _REST


def padding(size: int) -> bytes:
    """Return the zero bytes that fill content up to a whole block."""
    return bytes(-size % BLOCK)


def member_sizes(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes that members of so many bytes of content take in the archive."""
    return np.asarray(BLOCK + sizes + -sizes % BLOCK, np.int64)


def walk_members(file: BinaryIO, where: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset of the content, size) of every member of an archive, reading its headers only.

    Raises:
        ShardError: the archive is cut, or a header is damaged.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    raise ShardError(f"{where} holds {member.name!r}, which is not a regular file; build it again")
                yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise ShardError(f"{where} is not a whole tar archive ({error}); copy it again from its origin") from error


def check_members(data: bytes, index: ShardIndex, where: str) -> Iterator[str]:
    """Yield a problem if the members of a tar shard are not those of its index."""
    expected = []
    for field in index.stored_fields:
        offsets, sizes = index.numbers(f"{field}.offset"), index.numbers(f"{field}.size")
        formats = index.numbers(f"{field}.format") if f"{field}.format" in index else None
        for row in range(index.num_samples):
            extension = EXTENSIONS[FORMATS[formats[row]]] if formats is not None else LABEL_EXTENSION
            expected.append((f"{index.keys[row]}.{extension}", offsets[row], sizes[row]))
    expected.sort(key=lambda member: member[1])
    try:
        got = list(walk_members(io.BytesIO(data), where))
    except ShardError as error:
        yield str(error)
        return
    for one, other in zip(got, expected, strict=False):
        if one != other:
            yield (
                f"{where} holds {one[0]!r} at offset {one[1]} with {one[2]} bytes where its index has {other[0]!r} at "
                f"offset {other[1]} with {other[2]} bytes"
            )
            return
    if len(got) != len(expected):
        yield f"{where} holds {len(got)} readable members, but its index has {len(expected)}"
