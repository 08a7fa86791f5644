"""A shard read from its beginning to its end, each byte once, in large pieces, with the digest of them all."""

from collections.abc import Callable

import xxhash

from feeder.shards.errors import SourceError
from feeder.shards.storage import Folder, LocalFolder

_LOCAL_PIECE_BYTES = 1 << 20  # fits a core's cache: pieces of 4 MiB take twice the CPU
_REMOTE_PIECE_BYTES = 4 << 20  # the latency of a request is small beside it
_REMOTE_PIECES = 4  # asked for at once: remote storage answers them side by side


class SequentialShard:
    """The bytes of a shard, at offsets that do not fall. Held are one window, and the bytes that were asked for.

    Args:
        folder, name: where it lies.
        watch: called with every piece of the shard, in order: where it starts, and its bytes.

    Attributes:
        where: its path or URL.
        size_bytes: of the whole shard, when it was opened.
    """

    def __init__(
        self, folder: Folder, name: str, watch: Callable[[int, bytes], None] = lambda start, piece: None
    ) -> None:
        self.where = folder.where(name)
        self.size_bytes = folder.size(name)
        self._folder = folder
        self._name = name
        self._window = b""
        self._start = 0  # of the window
        self._end = 0
        self._digest = xxhash.xxh3_128()
        local = isinstance(folder, LocalFolder)
        self._piece_bytes = _LOCAL_PIECE_BYTES if local else _REMOTE_PIECE_BYTES
        self._pieces = 1 if local else _REMOTE_PIECES
        self._watch = watch

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset that is not before the last one; short where the shard ends.

        Raises:
            SourceError: the shard has become shorter.
            StorageError: the storage does not give them.
        """
        if offset < self._start:
            raise ValueError(f"offset {offset} of {self.where} was asked for after {self._start}")
        end = min(offset + size, self.size_bytes)
        while self._end < end:
            wanted = end - self._end if offset <= self._end else 0  # what is stepped over comes in pieces
            kept = self._window[max(0, offset - self._start) :]
            self._window = kept + self._fetch(wanted)
            self._start = self._end - len(self._window)
        return self._window[offset - self._start : end - self._start] if end > offset else b""

    def finish(self) -> str:
        """Read what is left; return the xxh3-128 digest of all bytes."""
        self._window = b""
        while self._end < self.size_bytes:
            self._fetch(0)
        self._start = self._end
        return self._digest.hexdigest()

    def _fetch(self, wanted: int) -> bytes:
        """Return the next bytes, at least as many as wanted where there are."""
        stop = min(self._end + max(wanted, self._piece_bytes * self._pieces), self.size_bytes)
        starts = range(self._end, stop, self._piece_bytes)
        ranges = [(self._name, start, min(self._piece_bytes, stop - start)) for start in starts]
        pieces = self._folder.read_ranges(ranges)
        for (_, start, size), piece in zip(ranges, pieces, strict=True):
            if len(piece) != size:
                raise SourceError(
                    f"{self.where} changed while it was read: got {len(piece)} bytes at offset {start}, expected "
                    f"{size}; run the command again when it is at rest"
                )
            self._digest.update(piece)
            self._watch(start, piece)
        self._end = stop
        return b"".join(pieces)
