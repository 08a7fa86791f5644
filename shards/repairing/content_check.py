"""The contents of the fields of a shard, held against its index while the bytes of the shard pass by once."""

import dataclasses
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np

from feeder.shards.fields import ABSENT
from feeder.shards.formats.index import ShardIndex

Decode = Callable[[list[bytes], list[tuple[int, int]]], dict[int, str]]
"""Takes encoded images and their (width, height); returns, by position, why those that fail cannot be decoded."""

_DECODED_AT_ONCE = 16


@dataclasses.dataclass(slots=True)
class _Content:
    """A content of which some bytes have passed."""

    place: int
    begin: int
    end: int
    crc: int = 0
    pieces: list[bytes] | None = None


class ContentCheck:
    """Takes the bytes of a shard in order; says which contents have not the CRC-32C that the index says.

    Held are the contents of images alone, and only where they are to be decoded.

    Attributes:
        undecodable: of images whose bytes are right, (row, field, reason) of those that cannot be decoded.
    """

    def __init__(self, index: ShardIndex, decode: Decode | None = None) -> None:
        self._index = index
        self._fields = index.stored_fields
        self._decode = decode
        fields, rows, begins, ends, crcs = [], [], [], [], []
        for number, name in enumerate(self._fields):
            sizes = index.array(f"{name}.size")
            present = np.flatnonzero(sizes != ABSENT)
            fields.append(np.full(len(present), number, np.int64))
            rows.append(present)
            begins.append(index.array(f"{name}.offset")[present])
            ends.append(begins[-1] + sizes[present])
            crcs.append(index.array(f"{name}.crc32c")[present])
        order = np.argsort(np.concatenate(begins), kind="stable")
        self._field = np.concatenate(fields)[order]
        self._row = np.concatenate(rows)[order]
        self._begin = np.concatenate(begins)[order]
        self._end = np.concatenate(ends)[order]
        self._crc = np.concatenate(crcs)[order]
        self._next = 0
        self._open: list[_Content] = []
        self._right = np.zeros(len(order), np.bool_)
        self._images: list[tuple[int, bytes]] = []
        self.undecodable: list[tuple[int, str, str]] = []

    def take(self, start: int, piece: bytes) -> None:
        """Take the next bytes of the shard, which start at an offset."""
        stop = start + len(piece)
        while self._next < len(self._begin) and self._begin[self._next] < stop:
            self._open.append(self._opened(self._next))
            self._next += 1
        still_open = []
        for content in self._open:
            part = piece[max(0, content.begin - start) : content.end - start]
            content.crc = google_crc32c.extend(content.crc, part)
            if content.pieces is not None:
                content.pieces.append(part)
            if content.end <= stop:
                self._close(content)
            else:
                still_open.append(content)
        self._open = still_open

    def finish(self) -> set[int]:
        """Return the rows of samples with a content that is wrong, or beyond the end of the shard."""
        for place in range(self._next, len(self._begin)):
            if self._begin[place] == self._end[place]:  # nothing, at the very end
                self._close(self._opened(place))
        self._decode_images()
        return set(self._row[~self._right].tolist())

    def _opened(self, place: int) -> _Content:
        name = self._fields[self._field[place]]
        kept = self._decode is not None and f"{name}.format" in self._index
        begin, end = int(self._begin[place]), int(self._end[place])
        return _Content(place, begin, end, pieces=[] if kept else None)

    def _close(self, content: _Content) -> None:
        right = content.crc == self._crc[content.place]
        self._right[content.place] = right
        if right and content.pieces is not None:
            self._images.append((content.place, b"".join(content.pieces)))
            if len(self._images) == _DECODED_AT_ONCE:
                self._decode_images()

    def _decode_images(self) -> None:
        if not self._images or self._decode is None:
            return
        places = [place for place, _ in self._images]
        failed = self._decode([image for _, image in self._images], list(self._sizes(places)))
        for position, reason in sorted(failed.items()):
            place = places[position]
            self.undecodable.append((int(self._row[place]), self._fields[self._field[place]], reason))
        self._images = []

    def _sizes(self, places: list[int]) -> Iterator[tuple[int, int]]:
        for place in places:
            stored = self._index.stored(self._fields[self._field[place]])
            row = int(self._row[place])
            yield (
                (0, 0)
                if stored.widths is None or stored.heights is None
                else (
                    stored.widths[row],
                    stored.heights[row],
                )
            )
