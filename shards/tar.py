"""Tar shards: members in the one form that webdataset, DALI, energon and ``tar`` all read.

USTAR headers (POSIX.1-1988), regular files only, mode 0444, mtime, uid and gid 0, no names of users; the members of a
sample stand side by side, sorted, named ``key.extension``; nothing else is in the archive. The same members give the
same bytes. The archive ends with two zero blocks and is not padded to 10,240 bytes.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import ShardError

BLOCK = 512
_MAX_SIZE = 1 << 33  # eleven octal digits

# The parts of a header that never change. `tarfile.TarInfo.tobuf` makes the same bytes in ten times the time (22 µs,
# twice a sample), and not in every version of Python: some write zeros as device numbers, which are left empty here.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2  # mode, uid, gid
_BEFORE_CHECKSUM = b"\0" + b"00000000000\0"  # the end of the size, mtime
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # regular file, no link; no users, device or prefix
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum is taken with spaces in its own place

END = bytes(2 * BLOCK)  # two zero blocks end an archive
MAX_NAME_BYTES = 100  # of the name field of a USTAR header; longer ones need its prefix, which not every reader joins


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
