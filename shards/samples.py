"""What shards are written from and into, whatever their format: samples, and files that know their digest."""

import dataclasses
import io
from typing import Any, BinaryIO

import xxhash

from feeder.shards.images import ImageHeader


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample on its way into a shard.

    Attributes:
        key: unique in the dataset; see `feeder.shards.names.key_of`.
        source: where it came from, readable: the path in the source folder.
        image: the encoded image.
        header: what it says of itself.
        label: the number of its class; −1 in shards without labels.
    """

    key: str
    source: str
    image: bytes
    header: ImageHeader
    label: int


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
