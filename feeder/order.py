"""The order of an epoch: which sample stands at which position, as a pure function.

An `Order` depends on the number of samples in each segment, the seed, the number of lanes, the window and stickiness,
and on a table of copies if one is given. It never depends on the world size, the batch size, or who asks.

1. The segments are permuted, with key (seed) if sticky, else with key (seed, epoch). Their rows, laid end to end, are
   cut into L lanes of equal length, the first N mod L one longer. A lane is a list of pieces (segment, first row,
   rows). With fractional copies (`feeder.copies`) the quotas are laid end to end, and every K-th unit from o on, o in
   [0, K) drawn with (seed, epoch), is a row: a segment's rows are those that fall into it, and their number differs by
   at most one between epochs.
2. If sticky, the pieces of each lane are permuted with key (seed, epoch, lane): every epoch of a lane reads the same
   shards.
3. In a lane of n rows, row i gets the key ``reflect(i + 1/2 + u B)``, u in [-1/2, 1/2) drawn with (seed, epoch, lane,
   i), B the window in samples, reflected at 0 and n, in units of 2**-16; the lane's order is the stable argsort of
   these keys. A window that reaches over the whole lane, or ``None``, is a keyed bijection of the lane instead.
4. Position g of the epoch is position g // L of lane g mod L. A step takes positions [g, g + G), sorts them by lane,
   and hands rank r its r-th part, so that a rank touches few lanes.

The state of an epoch is one integer, g.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from feeder.copies import Copies
from feeder.errors import ConfigError
from feeder.keyed import derive_key, draw, permute
from feeder.order_settings import OrderSettings

Int64Array = NDArray[np.int64]

COUNT_LIMIT = 1 << 62  # of epochs and positions: with all that is added to them they stay in 63 bits

_FRACTION_BITS = 16  # window keys are fixed-point numbers: the same on every machine
_MAX_WINDOW = 1 << 30  # keeps every product below in 63 bits
_MIN_BLOCK = 4096  # positions computed at a time: amortises NumPy's cost per call
_CACHED_POSITIONS = 1 << 22  # positions kept in blocks: 64 MiB at most with copies, 32 MiB without


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """The part of one step that one rank gets, padded to the same length on all ranks.

    Attributes:
        ids: int64[B], sample ids of their dataset; -1 where padded.
        copies: int64[B], which copy of the sample this is.
        valid: bool[B], False where padded; padding stands at the end.
        sources: int64[B], number of the dataset in a mixture; 0 where there is one.
        epochs: int64[B], the epoch in which the row's own dataset is.
    """

    ids: Int64Array
    copies: Int64Array
    valid: NDArray[np.bool_]
    sources: Int64Array
    epochs: Int64Array

    @classmethod
    def of_one(cls, ids: Int64Array, copies: Int64Array, valid: NDArray[np.bool_], epoch: int) -> "RankBatch":
        """Return a batch of a dataset that is alone."""
        return cls(ids=ids, copies=copies, valid=valid, sources=np.zeros_like(ids), epochs=np.full_like(ids, epoch))


class Plan(Protocol):
    """Which samples stand where, of one dataset or of a mixture.

    Duties: methods are pure, safe from many threads, and depend on nothing but their arguments and what the plan was
    made of; a plan pickles.
    """

    @property
    def num_positions(self) -> int:
        """Positions of an epoch."""
        ...

    def steps(self, global_batch: int, position: int = 0) -> int:
        """Return how many steps of G samples follow a position."""
        ...

    def rank_batch(self, epoch: int, position: int, global_batch: int, rank: int, world_size: int) -> RankBatch:
        """Return rank's part of the step that starts at a position."""
        ...

    def stand_in(self, source: int, sample_id: int, number: int) -> int:
        """Return the id of the sample of the same segment of a dataset that a 64-bit number picks."""
        ...


@dataclass(frozen=True, slots=True)
class _Stream:
    """The segments of one epoch in their order, laid end to end."""

    segments: Int64Array  # [P], those that have rows
    starts: Int64Array  # [P + 1], where the rows of each start in the stream
    phases: Int64Array  # [S], by segment: where its first row stands in its quotas


@dataclass(frozen=True, slots=True)
class _Lane:
    """One lane of one epoch: pieces of segments, laid end to end."""

    segments: Int64Array  # [P], the segment of each piece
    first_rows: Int64Array  # [P], the first row of its segment
    starts: Int64Array  # [P + 1], where the piece starts in the lane


class Order:
    """The order of a dataset's samples in every epoch.

    Methods are pure, safe from many threads, and the object pickles.

    Args:
        segment_samples: int64[S], the number of samples of each segment, in manifest order.
        settings: see `OrderSettings`.
        copies: how often each sample occurs in an epoch (0 leaves it out), or None for once each.

    Raises:
        ConfigError: more lanes than positions, a window that is negative or beyond 2**30 samples, a table of copies
            that does not fit.
    """

    def __init__(self, segment_samples: Int64Array, settings: OrderSettings, copies: Copies | None = None) -> None:
        self.settings = settings
        self._segment_samples = np.asarray(segment_samples, dtype=np.int64)
        self._first_ids = np.concatenate(([0], np.cumsum(self._segment_samples)))
        self._copies = copies
        self._unit = 1 if copies is None else copies.unit
        self._quotas = self._segment_samples if copies is None else copies.segment_quotas(self._first_ids)
        self.num_positions = int(self._quotas.sum()) // self._unit
        lanes, window = settings.lanes, settings.window
        if not 1 <= lanes <= max(1, self.num_positions):
            raise ConfigError(
                f"the order has {lanes} lanes and {self.num_positions} samples an epoch; lanes must be from 1 to the"
                " number of samples: lower Shuffle(lanes=)"
            )
        if window is not None and not 0 <= window <= _MAX_WINDOW:
            raise ConfigError(
                f"the window is {window} samples; it must be from 0 to {_MAX_WINDOW}:"
                " write Shuffle(window_shards='all')"
            )
        if settings.copies_digest != (None if copies is None else copies.digest):
            raise ConfigError("the table of copies is not the one whose digest stands in the order's settings")
        longest = -(-self.num_positions // lanes)
        self._window = None if window is None or window >= longest else window
        self._block_size = max(_MIN_BLOCK, 1 << (self._window or 0).bit_length())
        self._stream = lru_cache(maxsize=2)(self._compute_stream)
        self._lane = lru_cache(maxsize=4096)(self._compute_lane)
        self._block = lru_cache(maxsize=max(8, _CACHED_POSITIONS // self._block_size))(self._compute_block)

    def __reduce__(self) -> tuple[Any, ...]:
        return Order, (self._segment_samples, self.settings, self._copies)

    def lane_length(self, lane: int) -> int:
        """Return the number of positions in a lane."""
        return (self.num_positions - lane + self.settings.lanes - 1) // self.settings.lanes

    def steps(self, global_batch: int, position: int = 0) -> int:
        """Return how many steps of G samples follow a position; in training (shuffled), only whole ones."""
        left = max(0, self.num_positions - position)
        return left // global_batch if self.settings.shuffle else -(-left // global_batch)

    def rank_batch(self, epoch: int, position: int, global_batch: int, rank: int, world_size: int) -> RankBatch:
        """Return rank's part of the step that starts at a position.

        Args:
            epoch: from 0, below `COUNT_LIMIT`.
            position: g, the first position of the step, from 0, below `COUNT_LIMIT`.
            global_batch: G, positions in the step; the epoch's end cuts it.
            rank, world_size: r and R; ranks get floor(G / R) or ceil(G / R) samples, padded to ceil(G / R).
        """
        length = -(-global_batch // world_size)
        taken = max(0, min(global_batch, self.num_positions - position))
        share, longer = divmod(taken, world_size)
        first, count = rank * share + min(rank, longer), share + (rank < longer)
        ids = np.full(length, -1, dtype=np.int64)
        copies = np.zeros(length, dtype=np.int64)
        ids[:count], copies[:count] = self.part(epoch, position, taken, first, count)
        return RankBatch.of_one(ids, copies, np.arange(length) < count, epoch)

    def part(self, epoch: int, position: int, taken: int, first: int, count: int) -> tuple[Int64Array, Int64Array]:
        """Return ids and copies of ``count`` samples from the ``first`` of ``taken`` positions, sorted by lane.

        Args:
            epoch, position: where the positions start.
            taken: how many there are; all of them lie in the epoch.
            first, count: which of them are asked for, once they are sorted by lane.
        """
        found = [self._lane_range(epoch, *part) for part in self._lane_parts(position, taken, first, count)]
        none = np.empty(0, np.int64)
        return (
            np.concatenate([none, *(ids for ids, _ in found)]),
            np.concatenate([none, *(copies for _, copies in found)]),
        )

    def stand_in(self, source: int, sample_id: int, number: int) -> int:
        """Return the id that a 64-bit number picks in a sample's own segment, each as likely as it is frequent."""
        assert source == 0
        segment = int(np.searchsorted(self._first_ids, sample_id, side="right")) - 1
        first, last = (int(end) for end in self._first_ids[segment : segment + 2])
        offset = number % int(self._quotas[segment])
        if self._copies is None:
            return first + offset
        ids, _ = self._copies.resolve(first, last, np.array([offset]))
        return int(ids[0])

    def _lane_parts(self, position: int, taken: int, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (lane, t0, t1) of ``count`` samples from the ``first`` of a step's positions, sorted by lane."""
        lanes = self.settings.lanes
        lane = np.arange(lanes, dtype=np.int64)
        begin = (position - lane + lanes - 1) // lanes
        end = (position + taken - lane + lanes - 1) // lanes
        ends = np.cumsum(end - begin)
        at = int(np.searchsorted(ends, first, side="right"))
        while count > 0:
            skipped = first - (int(ends[at]) - int(end[at] - begin[at]))
            t0 = int(begin[at]) + skipped
            t1 = min(int(end[at]), t0 + count)
            yield at, t0, t1
            first, count, at = first + t1 - t0, count - (t1 - t0), at + 1

    def _lane_range(self, epoch: int, lane: int, t0: int, t1: int) -> tuple[Int64Array, Int64Array]:
        """Return ids and copies at positions [t0, t1) of a lane."""
        size = self._block_size
        parts = []
        for block in range(t0 // size, -(-t1 // size)):
            ids, copies = self._block(epoch, lane, block)
            inside = slice(max(0, t0 - block * size), t1 - block * size)
            parts.append((ids[inside], np.zeros(len(ids[inside]), np.int64) if copies is None else copies[inside]))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([copies for _, copies in parts])

    def _compute_block(self, epoch: int, lane: int, block: int) -> tuple[Int64Array, Int64Array | None]:
        """Return ids and copies of one block of a lane's positions."""
        length = self.lane_length(lane)
        t0 = block * self._block_size
        t1 = min(length, t0 + self._block_size)
        seed = self.settings.seed
        if not self.settings.shuffle:
            rows = np.arange(t0, t1, dtype=np.int64)
        elif self._window is None:
            rows = permute(derive_key("order.lane", seed, epoch, lane), length, np.arange(t0, t1))
        else:
            rows = _window_order(derive_key("order.window", seed, epoch, lane), length, self._window, t0, t1)
        pieces = self._lane(epoch, lane)
        piece = np.searchsorted(pieces.starts, rows, side="right") - 1
        segments = pieces.segments[piece]
        segment_rows = rows - pieces.starts[piece] + pieces.first_rows[piece]
        if self._copies is None:
            return self._first_ids[segments] + segment_rows, None
        return self._resolve_copies(epoch, segments, segment_rows, self._copies)

    def _resolve_copies(
        self, epoch: int, segments: Int64Array, segment_rows: Int64Array, table: Copies
    ) -> tuple[Int64Array, Int64Array]:
        """Turn rows of segments in which samples have quotas of their own into ids and copy numbers."""
        offsets = segment_rows * self._unit + self._stream(epoch).phases[segments]
        keys = None
        if self._unit > 1 and self.settings.shuffle:  # whole copies are the same in any order
            keys = draw(derive_key("order.copies", self.settings.seed, epoch), segments + 1)  # 0 is the first row's
        ids, copies = np.empty_like(segments), np.empty_like(segments)
        by_segment = np.argsort(segments, kind="stable")
        bounds = np.flatnonzero(np.diff(segments[by_segment], prepend=-1, append=-1))
        for start, stop in itertools.pairwise(bounds):
            chosen = by_segment[start:stop]
            first, last = self._first_ids[segments[chosen[0]] : segments[chosen[0]] + 2]
            key = None if keys is None else keys[chosen[:1]]
            ids[chosen], copies[chosen] = table.resolve(first, last, offsets[chosen], key)
        return ids, copies

    def _compute_stream(self, epoch: int) -> _Stream:
        """Permute the segments, and find which of their rows come first in this epoch."""
        seed, sticky, unit = self.settings.seed, self.settings.sticky, self._unit
        segments = np.flatnonzero(self._quotas)
        if self.settings.shuffle:
            key = derive_key("order.segments", seed) if sticky else derive_key("order.segments", seed, epoch)
            segments = segments[np.argsort(draw(key, segments), kind="stable")]
        ends = np.concatenate(([0], np.cumsum(self._quotas[segments])))
        first_row = int(draw(derive_key("order.copies", seed, epoch), 0)) % unit
        starts = -((first_row - ends) // unit)  # rounded up
        phases = np.zeros(len(self._quotas), np.int64)
        phases[segments] = starts[:-1] * unit + first_row - ends[:-1]
        occupied = np.diff(starts) > 0
        return _Stream(segments[occupied], np.append(starts[:-1][occupied], starts[-1]), phases)

    def _compute_lane(self, epoch: int, lane: int) -> _Lane:
        """Cut a lane out of the stream of segments, and permute its pieces if sticky."""
        stream = self._stream(epoch)
        segments, starts = stream.segments, stream.starts
        share, longer = divmod(self.num_positions, self.settings.lanes)
        begin = lane * share + min(lane, longer)
        end = begin + share + (lane < longer)
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, end, side="left"))
        segments = segments[first:last]
        first_rows = np.maximum(begin - starts[first:last], 0)
        rows = np.minimum(starts[first + 1 : last + 1], end) - starts[first:last] - first_rows
        if self.settings.sticky and self.settings.shuffle:
            key = derive_key("order.pieces", self.settings.seed, epoch, lane)
            order = np.argsort(draw(key, np.arange(len(segments))), kind="stable")
            segments, first_rows, rows = segments[order], first_rows[order], rows[order]
        return _Lane(segments, first_rows, np.concatenate(([0], np.cumsum(rows))))


def _window_order(key: int, length: int, window: int, t0: int, t1: int) -> Int64Array:
    """Return the rows at positions [t0, t1) of a lane of ``length`` rows, shuffled within a window.

    The row at position p has a key within window / 2 + 1 of p, and a row's key lies within window / 2 + 1/2 of the
    row: so only rows [first, last) below can have keys in [low, high), and every row before ``first`` has a key below
    ``low``.
    """
    first, last = max(0, t0 - window - 4), min(length, t1 + window + 4)
    rows = np.arange(first, last, dtype=np.int64)
    keys = _window_keys(key, length, window, rows)
    low = (t0 - window // 2 - 2) << _FRACTION_BITS
    high = (t1 + window // 2 + 3) << _FRACTION_BITS
    near = (keys >= low) & (keys < high)
    before = first + int(np.count_nonzero(keys < low))
    rows, keys = rows[near], keys[near]
    order = _stable_argsort(keys - low, high - low)
    return rows[order[t0 - before : t1 - before]]


def _window_keys(key: int, length: int, window: int, rows: Int64Array) -> Int64Array:
    """Return the fixed-point sort keys of rows of a lane."""
    shift = np.int64(_FRACTION_BITS)
    fraction = (draw(key, rows) >> np.uint64(32)).astype(np.int64)  # u + 1/2, in units of 2**-32
    offset = ((fraction * window) >> np.int64(32 - _FRACTION_BITS)) - (window << (_FRACTION_BITS - 1))
    keys = (rows << shift) + (1 << (_FRACTION_BITS - 1)) + offset
    end = length << _FRACTION_BITS
    keys = np.where(keys < 0, -1 - keys, keys)
    return np.where(keys >= end, 2 * end - 1 - keys, keys)


def _stable_argsort(keys: Int64Array, limit: int) -> Int64Array:
    """Return the stable argsort of keys in [0, limit).

    Key and index packed into one integer are distinct, so NumPy's vectorised sort of plain integers gives the same
    result several times as fast; where they do not fit into 63 bits, the stable sort does it.
    """
    index_bits = len(keys).bit_length()
    if limit.bit_length() + index_bits > 63:
        return np.argsort(keys, kind="stable")
    packed = (keys << np.int64(index_bits)) | np.arange(len(keys), dtype=np.int64)
    packed.sort()
    return packed & np.int64((1 << index_bits) - 1)
