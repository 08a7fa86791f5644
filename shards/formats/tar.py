"""Tar shards: members in the one form that webdataset, DALI, energon and ``tar`` all read.

USTAR headers (POSIX.1-1988), regular files only, mode 0444, mtime, uid and gid 0, no names of users; the members of a
sample stand side by side, sorted, named ``key.extension``; nothing else is in the archive. The same members give the
same bytes. The archive ends with two zero blocks and is not padded to 10,240 bytes.

The members of a sample, as webdataset's users expect them:

===================  ========================  ========================================================
field                member                    content
===================  ========================  ========================================================
``image``            ``KEY.jpg``, ``.png`` …   the encoded image; ``.bin`` if its format is unknown
other image field F  ``KEY.F.png`` …           the same
bytes, json          ``KEY.EXTENSION``         the bytes
``label``            ``KEY.cls``               the number of the class as text; absent for −1
string               ``KEY.EXTENSION``         the text in UTF-8; absent for None
all other columns    ``KEY.json``              one object of them by name; not where a field has that member
===================  ========================  ========================================================
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from feeder.shards.fields import Field
from feeder.shards.formats.index import SCALARS
from feeder.shards.formats.samples import DigestedFile, PlaceColumns, Sample
from feeder.shards.images.headers import EXTENSIONS
from feeder.shards.names import MAX_NAME_BYTES

BLOCK = 512
SCALARS_EXTENSION = "json"
UNKNOWN_EXTENSION = "bin"  # of images whose format is unknown
_MAX_SIZE = 1 << 33  # eleven octal digits

# The parts of a header that never change. `tarfile.TarInfo.tobuf` makes the same bytes in ten times the time (22 µs,
# twice a sample), and not in every version of Python: some write zeros as device numbers, which are left empty here.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2  # mode, uid, gid
_BEFORE_CHECKSUM = b"\0" + b"00000000000\0"  # the end of the size, mtime
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # regular file, no link; no users, device or prefix
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum is taken with spaces in its own place

END = bytes(2 * BLOCK)  # two zero blocks end an archive


class TarWriter:
    """Writes a tar shard; see `feeder.shards.formats.known.ShardWriter`."""

    def __init__(self, file: DigestedFile, fields: Mapping[str, Field]) -> None:
        self._file = file
        self._fields = fields
        self._scalars = scalar_names(fields)
        self._texts = [name for name, field in fields.items() if field.type == "string"]
        self._stored = [name for name, field in fields.items() if field.stored]
        members = [*self._stored, *self._texts]
        if "label" in fields:
            members.append("label")
        if self._scalars:
            members.append(SCALARS)
        self._members = members
        self._places = PlaceColumns(members)

    def add(self, sample: Sample) -> None:
        """Append a sample: its members sorted by extension."""
        members = sorted(self._contents(sample))
        for extension, field, data in members:
            self._file.write(member_header(f"{sample.key}.{extension}", len(data)))
            self._places.add(field, self._file.tell(), len(data), google_crc32c.value(data))
            self._file.write(data)
            self._file.write(padding(len(data)))
        if len(members) < len(self._members):
            for field in set(self._members) - {field for _, field, _ in members}:
                self._places.add_absent(field)

    def _contents(self, sample: Sample) -> Iterator[tuple[str, str, bytes]]:
        """Yield (extension, field, bytes) of each member that a sample has."""
        for field in self._stored:
            if (data := sample.stored.get(field)) is not None:
                image = sample.headers[field].format if self._fields[field].type == "image" else None
                yield member_extension(field, self._fields[field], image), field, data
        for field in self._texts:
            if (text := sample.values[field]) is not None:
                yield member_extension(field, self._fields[field]), field, text.encode()
        if "label" in self._fields and sample.label >= 0:
            yield member_extension("label", self._fields["label"]), "label", b"%d" % sample.label
        if self._scalars:
            yield SCALARS_EXTENSION, SCALARS, encode_scalars({name: sample.values[name] for name in self._scalars})

    def close(self) -> dict[str, list[int]]:
        """End the archive; return where the content of each member lies."""
        self._file.write(END)
        return self._places.columns


def member_extension(name: str, field: Field, image_format: str | None = None) -> str:
    """Return the extension of a field's member; an image has that of its format, which is "" when unknown."""
    if field.type == "image":
        extension = EXTENSIONS.get(image_format or "", UNKNOWN_EXTENSION)
        return extension if name == "image" else f"{name.lower()}.{extension}"
    return field.extension or (f"{name.lower()}.txt" if field.type == "string" else name.lower())


def scalar_names(fields: Mapping[str, Field]) -> list[str]:
    """Return the names of the columns that share one member, in its order; none where a field has its extension."""
    if any(
        member_extension(name, field) == SCALARS_EXTENSION for name, field in fields.items() if field.type != "image"
    ):
        return []
    return sorted(
        name for name, field in fields.items() if not field.stored and field.type != "string" and name != "label"
    )


def encode_scalars(values: Mapping[str, Any]) -> bytes:
    """Return the bytes of the member of scalars: a JSON object; NaN and infinities as Python writes them."""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=True).encode("ascii")


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
