"""What shards are written from and into, whatever their format: samples, and files that know their digest."""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import xxhash

from feeder.shards.fields import ABSENT
from feeder.shards.images.headers import ImageHeader


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample on its way into a shard.

    Attributes:
        key: unique in the dataset; see `feeder.shards.names.key_of`.
        source: where it came from, readable: the path in the source folder.
        stored: the bytes of each stored field that it has, ``image`` always among them.
        headers: of each of these that is an image, what it says of itself.
        label: the number of its class; −1 for none.
        values: of each column field but the label, its value or None.
    """

    key: str
    source: str
    stored: Mapping[str, bytes]
    headers: Mapping[str, ImageHeader]
    label: int = -1
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class DigestedFile(io.RawIOBase):
    """A file to append to that takes the xxh3-128 digest of its bytes on the way; it does not own the file below."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._digest = xxhash.xxh3_128()
        self._size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Append the bytes of any buffer."""
        view = memoryview(data)
        self._file.write(view)
        self._digest.update(view)
        self._size_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size_bytes

    def hexdigest(self) -> str:
        """Return the digest of all that was written."""
        return self._digest.hexdigest()


class PlaceColumns:
    """Where the bytes of each field lie, gathered as a shard is written: the columns ``F.offset, F.size, F.crc32c``."""

    def __init__(self, fields: Iterable[str]) -> None:
        self.columns: dict[str, list[int]] = {
            f"{field}.{column}": [] for field in fields for column in ("offset", "size", "crc32c")
        }

    def add(self, field: str, offset: int, size: int, crc: int) -> None:
        """Append the place of one sample's bytes."""
        self.columns[f"{field}.offset"].append(offset)
        self.columns[f"{field}.size"].append(size)
        self.columns[f"{field}.crc32c"].append(crc)

    def add_absent(self, field: str) -> None:
        """Append that a sample has no such field."""
        self.add(field, 0, ABSENT, 0)
