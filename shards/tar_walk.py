"""Walking the headers of any tar archive, local or behind a URL, with nearly nothing read but the headers.

Understood is what people's archives hold: the old V7 and USTAR forms, GNU long names, PAX records for names and sizes
(POSIX.1-2001), and sizes beyond 8 GiB in base 256. Folders, links and devices are stepped over; sparse files, whose
bytes do not lie as they are, are refused. `tarfile` of the standard library does the same in three times the
time.
"""

import contextlib
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from feeder.shards.errors import SourceError
from feeder.shards.names import readable
from feeder.shards.storage import is_remote, local_path, open_folder, unreadable
from feeder.shards.tar import BLOCK

LOCAL_READ_BYTES = 4096  # a header, a small content and the next header; a page costs no more than a block
REMOTE_READ_BYTES = 1 << 20  # a request's latency is worth as much; contents beyond are skipped
_RECORD_BYTES = 20 * BLOCK  # tar fills an archive up to whole records of so many bytes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAX_RECORDS_BYTES = 1 << 20  # of PAX records or a long name: more is damage

_REGULAR = b"0\0007"  # NUL: of V7; 7: contiguous, which no system makes otherwise than regular
_BARE = b"123456"  # links, devices, folders and pipes: without content, whatever size is stated
_SUM_MODULUS = 65521  # of Adler-32


class DamagedArchiveError(SourceError):
    """A tar archive is cut or a header is damaged.

    Attributes:
        end: bytes from the beginning that hold whole members.
    """

    def __init__(self, message: str, end: int) -> None:
        super().__init__(message, end)  # both, so that the error survives a pickle between processes
        self.end = end

    def __str__(self) -> str:
        return str(self.args[0])


class JoinedArchivesError(DamagedArchiveError):
    """An archive goes on behind its end; all members before that are whole."""


class Member(NamedTuple):
    """A regular file in an archive: its name as it is, where its content starts, its bytes of content, and where its
    header starts, or the extended one before it."""

    name: str
    offset: int
    size: int
    start: int


class TarFile:
    """An archive to read at any offset through a window, so that reading onwards costs few reads.

    Attributes:
        where: its path or URL, readable.
        size_bytes: of the whole file.
    """

    def __init__(self, where: str, size_bytes: int, read: Callable[[int, int], bytes], step: int) -> None:
        self.where = where
        self.size_bytes = size_bytes
        self._read = read
        self._step = step
        self._start = 0
        self._window = b""

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset; short where the file ends.

        Raises:
            StorageError: the storage does not give them.
        """
        at = offset - self._start
        if at < 0 or at + size > len(self._window):
            wanted = min(max(size, self._step), self.size_bytes - offset)
            self._window = self._read(offset, wanted) if wanted > 0 else b""
            self._start, at = offset, 0
        return self._window[at : at + size]


@contextlib.contextmanager
def open_tar(url: str) -> Iterator[TarFile]:
    """Open an archive at a local path or a URL.

    Raises:
        SourceError: there is none.
        StorageError: it cannot be read.
    """
    where = readable(url)
    try:
        if is_remote(url):
            root, _, name = url.rpartition("/")
            folder = open_folder(root)
            yield TarFile(
                where,
                folder.size(name),
                lambda offset, size: folder.read_ranges([(name, offset, size)])[0],
                REMOTE_READ_BYTES,
            )
        else:
            with _local_file(local_path(url)) as descriptor:
                yield TarFile(where, os.fstat(descriptor).st_size, _local_reader(descriptor, where), LOCAL_READ_BYTES)
    except FileNotFoundError as error:
        raise SourceError(f"no such tar archive: {where}; check the path") from error


@contextlib.contextmanager
def _local_file(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(readable(path), error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _local_reader(descriptor: int, where: str) -> Callable[[int, int], bytes]:
    def read(offset: int, size: int) -> bytes:
        try:
            return os.pread(descriptor, size, offset)
        except OSError as error:
            raise unreadable(where, error) from error

    return read


def walk_tar(file: TarFile) -> Generator[Member, None, int]:
    """Yield the regular files of an archive, in order; return where the blocks that end it begin.

    Raises:
        DamagedArchiveError: a header is damaged, a content is cut, or the two zero blocks that end an archive are
            missing: then samples may be, too. Members before the damage were yielded.
        JoinedArchivesError: something stands behind those blocks, which most programs do not read.
        SourceError: a sparse file, or the archive is compressed.
        StorageError: the storage does not give the bytes.
    """
    position = 0
    own: dict[str, str] = {}  # records for the next member: "path" and "size"
    for_all: dict[str, str] = {}
    end = 0  # of the last whole member
    while True:
        header = file.read(position, BLOCK)
        if len(header) < BLOCK:
            raise _no_header(file, position, header, end)
        if header[0] == 0 and not any(header):
            _refuse_more(file, position)
            return position
        kind = header[156:157]
        size = _number(header[124:136])
        if not _right_sum(header) or size is None:
            raise _no_header(file, position, header, end)
        start = position + BLOCK
        if kind in b"xgLK":
            (for_all if kind == b"g" else own).update(_extension(file, kind, start, size, end))
            position = start + _whole_blocks(size)
            if kind == b"g":
                end = position
            continue
        known = for_all | own if own or for_all else own
        name = known["path"] if "path" in known else _name(header)
        own = {}
        if kind == b"S" or any(record.startswith("GNU.sparse") for record in known):
            raise _sparse(file, name)
        if "size" in known:
            size = int(known["size"])
        position = start
        if kind not in _BARE:
            position += _whole_blocks(size)
            if start + size > file.size_bytes:
                raise _damaged(
                    file, end, f"the content of {readable(name)!r} is cut: {size} bytes from byte {start} on"
                )
            if kind in _REGULAR and not (kind == b"\0" and name.endswith("/")):  # so does V7 write a folder
                yield Member(name, start, size, end)
        end = position


def _refuse_more(file: TarFile, end: int) -> None:
    """Raise `JoinedArchivesError` if an archive goes on behind the zero blocks that end it, within a record or two."""
    beyond = end + 2 * BLOCK
    if any(file.read(beyond, min(2 * _RECORD_BYTES, max(0, file.size_bytes - beyond)))):
        raise JoinedArchivesError(
            f"{file.where} goes on behind the zero blocks at byte {end} that end an archive, as when archives are "
            "joined with cat, and most programs do not read on; keep the archives apart, or join them with tar "
            "--concatenate",
            end,
        )


def _no_header(file: TarFile, position: int, found: bytes, end: int) -> SourceError:
    """Return the error for what was found where a header should be; a compressed archive is told by its beginning."""
    for magic, program in _COMPRESSED.items():
        if position == 0 and found.startswith(magic):
            return SourceError(
                f"{file.where} is compressed ({program}), so no sample in it can be read alone; decompress it, the "
                "images in it are compressed already"
            )
    if len(found) < BLOCK:
        return _damaged(file, end, f"it ends at byte {file.size_bytes} without the zero blocks that end an archive")
    return _damaged(file, end, f"the header at byte {position} is damaged")


def _whole_blocks(size: int) -> int:
    return size + -size % BLOCK


def _damaged(file: TarFile, end: int, reason: str) -> DamagedArchiveError:
    return DamagedArchiveError(
        f"{file.where} is not a whole tar archive of {file.size_bytes} bytes: {reason}; copy it again from its origin",
        end,
    )


def _sparse(file: TarFile, name: str) -> SourceError:
    return SourceError(
        f"{file.where} holds {readable(name)!r} as a sparse file, whose bytes do not lie in the archive as they are; "
        "pack it again without --sparse"
    )


def _right_sum(header: bytes) -> bool:
    """Say whether the checksum of a header is right: the sum of its bytes, those of the sum itself read as spaces.

    The lower half of an Adler-32 is that sum plus one, modulo 65521, in a tenth of the time of `sum`.
    """
    stated = _number(header[148:156])
    if stated is None:
        return False
    got = (zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF) + 8 * ord(" ") - 1
    if (got - stated) % _SUM_MODULUS == 0:
        return True
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 8 * ord(" ")
    return signed == stated  # of old programs


def _number(field: bytes) -> int | None:
    """Return the number in a field: octal digits, or base 256 where the first bit is set; None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.translate(None, b"01234567"):  # a sign, which `int` would take, makes a walk go backwards
        return None
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    """Return the name of a header, with the prefix that USTAR puts before it."""
    name = header[:100].partition(b"\0")[0]
    if header[257:265] == b"ustar\x0000" and header[345]:  # GNU's form ("ustar  ") has other fields there
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return os.fsdecode(name)


def _extension(file: TarFile, kind: bytes, start: int, size: int, end: int) -> dict[str, str]:
    """Return what the extended header with its content at a start says."""
    if size <= _MAX_RECORDS_BYTES and start + size <= file.size_bytes:
        records = _records(kind, file.read(start, size))
        if records is not None:
            return records
    raise _damaged(file, end, f"the extended header at byte {start - BLOCK} is cut or damaged")


def _records(kind: bytes, data: bytes) -> dict[str, str] | None:
    """Return what an extended header says about the next member (or all, for ``g``); None if it is damaged.

    Kept are ``path``, ``size`` and what tells of sparse files.
    """
    if kind == b"L":
        return {"path": os.fsdecode(data.partition(b"\0")[0])}
    if kind == b"K":
        return {}
    records = {}
    position = 0
    while position < len(data) and data[position] != 0:
        digits = data[position : position + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[position + len(digits) + 1 : position + length - 1].partition(b"=")
        if length < len(digits) + 3 or position + length > len(data) or not equals:
            return None
        if keyword == b"size" and not value.isdigit():
            return None
        if keyword in (b"path", b"size") or keyword.startswith(b"GNU.sparse"):
            records[keyword.decode("ascii", "replace")] = os.fsdecode(value)
        position += length
    return records
