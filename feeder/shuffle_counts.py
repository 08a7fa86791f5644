"""Counting batches of sample ids: classes, segments, and pairs that meet again (see `feeder.shuffle_quality`)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.order import Order
from feeder.shuffle_prediction import Concordance, ShuffleModel, share_of_pairs_in_lanes

Int64Array = NDArray[np.int64]

_FOLLOWED_ROWS = 1 << 20  # positions of an epoch that are followed into the next one
_LABELLED_SEGMENTS = 512  # whose labels are compared among each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How evenly classes are spread over batches.

    Attributes:
        ratio: variance of class counts over that of a full shuffle, mean of all batches looked at.
        sigma: standard deviation of one batch's ratio under a full shuffle.
        standard_error: that of the mean.
    """

    ratio: float
    sigma: float
    standard_error: float

    @property
    def z(self) -> float:
        """By how many standard errors the ratio is off 1; negative if batches are evener than chance."""
        return (self.ratio - 1) / self.standard_error if self.standard_error else 0.0


class Classes:
    """The labels of a dataset, counted.

    Attributes:
        numbers: int[N], the class of each sample, from 0; samples without a label are one more class.
        shares: float64[C], of each class in the dataset.
        squared_shares, cubed_shares: Σ p², Σ p³.
    """

    def __init__(self, labels: NDArray[Any]) -> None:
        self.numbers = labels if not len(labels) or labels.min() >= 0 else labels + 1
        self._counts = np.bincount(self.numbers).astype(np.float64)
        self.shares = self._counts / max(1, len(labels))
        self.squared_shares = float((self.shares**2).sum())
        self.cubed_shares = float((self.shares**3).sum())

    def concordance(self, segment_samples: Int64Array) -> Concordance:
        """Return how often two samples are of one class, from the labels of evenly spaced segments."""
        ends = np.cumsum(segment_samples)
        chosen = np.flatnonzero(segment_samples > 1)
        if len(chosen) > _LABELLED_SEGMENTS:
            chosen = chosen[np.arange(_LABELLED_SEGMENTS) * len(chosen) // _LABELLED_SEGMENTS]
        same = pairs = 0
        for end, size in zip(ends[chosen].tolist(), segment_samples[chosen].tolist(), strict=True):
            same += pairs_alike(self.numbers[end - size : end])
            pairs += size * (size - 1) // 2
        number = len(self.numbers)
        all_alike = float((self._counts * (self._counts - 1)).sum()) / 2
        in_segments = float((segment_samples * (segment_samples - 1.0)).sum()) / 2
        elsewhere = number * (number - 1) / 2 - in_segments
        same_segment = same / pairs if pairs else 0.0
        return Concordance(
            same_segment=same_segment,
            other_segments=max(0.0, all_alike - same_segment * in_segments) / elsewhere if elsewhere else 0.0,
            squared_shares=self.squared_shares,
        )


@dataclass(slots=True)
class Sums:
    """What is added up over batches of one size."""

    batches: int = 0
    pairs: int = 0  # of one segment
    deviation: float = 0.0  # Σ over batches and classes of (x − n p)²
    expected: float = 0.0  # of the same under a full shuffle


class BatchCounter:
    """Counts batches of ids of one dataset."""

    def __init__(self, segment_samples: Int64Array, classes: Classes | None) -> None:
        self._ends = np.cumsum(segment_samples)
        self._samples = int(self._ends[-1])
        self._classes = classes

    def add(self, sums: Sums, ids: Int64Array, parts: int) -> None:
        """Count the batches of a step whose ids, sorted by lane, are cut into so many parts."""
        sizes = np.full(parts, len(ids) // parts)
        sizes[: len(ids) % parts] += 1
        part = np.repeat(np.arange(parts), sizes)
        sums.batches += parts
        segments = np.searchsorted(self._ends, ids, side="right")
        sums.pairs += pairs_alike(part * len(self._ends) + segments)
        if self._classes is None:
            return
        numbers, shares = self._classes.numbers[ids].astype(np.int64), self._classes.shares
        squares, n = self._classes.squared_shares, sizes.astype(np.float64)
        counts_squared = len(ids) + 2 * pairs_alike(part * len(shares) + numbers)
        sums.deviation += counts_squared - 2 * float((n[part] * shares[numbers]).sum()) + float((n * n).sum()) * squares
        sums.expected += float((n * (self._samples - n)).sum()) / max(1, self._samples - 1) * (1 - squares)

    def balance(self, sums: Sums, batch: float, batches_per_epoch: int, epochs: int) -> Balance | None:
        """Return the ratio with its errors, or None without labels.

        With one-hot vectors e of the samples of a batch, Σ (x − n p)² = |Σ (e − p)|². For independent samples the n
        terms |e − p|² have variance 4 (Σ p³ − (Σ p²)²), the n (n − 1) / 2 products 2 (e − p)(e' − p) have variance
        4 (Σ p² − 2 Σ p³ + (Σ p²)²), and all are uncorrelated. Without replacement expectation and deviation shrink
        alike. Two of the K batches of an epoch, whose counts sum to a constant, correlate by 1 / (K − 1)².
        """
        if self._classes is None or sums.expected <= 0:
            return None
        squares, cubes = self._classes.squared_shares, self._classes.cubed_shares
        variance = 2 * batch * (batch - 1) * (squares - 2 * cubes + squares**2) + 4 * batch * (cubes - squares**2)
        sigma = math.sqrt(max(0.0, variance)) / (batch * (1 - squares))
        correlated = 1 + (sums.batches / epochs - 1) / max(1, batches_per_epoch - 1) ** 2
        return Balance(
            ratio=sums.deviation / sums.expected,
            sigma=sigma,
            standard_error=sigma * math.sqrt(correlated / sums.batches),
        )


def pairs_alike(values: NDArray[Any]) -> int:
    """Return how many pairs of values are equal."""
    ordered = np.sort(values)
    bounds = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    lengths = np.diff(bounds)
    return int((lengths * (lengths - 1)).sum()) // 2


def shares_met_again(order: Order, model: ShuffleModel, parts: Collection[int], epochs: int) -> dict[int, float | None]:
    """Return the share of pairs of a batch, whole (1 part) or of R ranks, that share a batch in the next epoch.

    If lanes keep their shards, some lanes are followed and stand for all: pairs of one lane and pairs of two are
    weighted as they occur in batches. Else every sample has to be followed; None if there are too many.
    """
    all_lanes, length = order.settings.lanes, order.lane_length(0)
    lanes = max(1, min(all_lanes, _FOLLOWED_ROWS // length))
    epochs = max(1, min(epochs, _FOLLOWED_ROWS // (lanes * length)))
    if lanes * length > 4 * _FOLLOWED_ROWS or (lanes < all_lanes and not order.settings.sticky):
        return dict.fromkeys(parts)
    found = {part: _Met() for part in parts}
    for epoch in range(epochs):
        before, after = ([_lane_ids(order, e, lane) for lane in range(lanes)] for e in (epoch, epoch + 1))
        first, second = (np.argsort(np.concatenate(ids)) for ids in (before, after))  # the same ids: see above
        lane = np.repeat(np.arange(lanes), list(map(len, before)))[first]
        for part, met in found.items():
            places = (_batch_numbers(order, model.global_batch, part, lengths) for lengths in (before, after))
            met.add(lane, *(numbers[order_] for numbers, order_ in zip(places, (first, second), strict=True)))
    # Without a second lane to follow: two lanes take the same share of their samples in every step, each at random.
    chance = 1 / max(1, order.steps(model.global_batch))
    return {
        part: met.share(share_of_pairs_in_lanes(model, part), lanes == all_lanes, chance) for part, met in found.items()
    }


@dataclass(slots=True)
class _Met:
    """Pairs of samples that share a batch, and those among them that share one in the next epoch, too."""

    pairs: int = 0
    pairs_in_lane: int = 0
    met: int = 0
    met_in_lane: int = 0

    def add(self, lane: Int64Array, before: Int64Array, after: Int64Array) -> None:
        """Count samples, of which each has the numbers of its batches in two epochs, −1 for none."""
        taken = before >= 0
        self.pairs += pairs_alike(before[taken])
        self.pairs_in_lane += pairs_alike(_joined(before[taken], lane[taken]))
        both = taken & (after >= 0)
        meeting = _joined(before[both], after[both])
        self.met += pairs_alike(meeting)
        self.met_in_lane += pairs_alike(_joined(meeting, lane[both]))

    def share(self, weight: float, complete: bool, chance: float) -> float:
        """Return the share that met; ``weight`` is that of pairs of one lane in whole batches."""
        if complete:
            return self.met / max(1, self.pairs)
        of_two = self.pairs - self.pairs_in_lane
        share_of_two = (self.met - self.met_in_lane) / of_two if of_two else chance
        return weight * self.met_in_lane / max(1, self.pairs_in_lane) + (1 - weight) * share_of_two


def _joined(left: Int64Array, right: Int64Array) -> Int64Array:
    """Return numbers that are equal where both are."""
    return left * (int(right.max(initial=0)) + 1) + right


def _lane_ids(order: Order, epoch: int, lane: int) -> Int64Array:
    """Return the ids of a lane, in its order: a step that takes the whole epoch hands each of L ranks one lane."""
    taken = order.rank_batch(epoch, 0, order.num_positions, lane, order.settings.lanes)
    return taken.ids[taken.valid]


def _batch_numbers(order: Order, global_batch: int, parts: int, lanes: Sequence[Int64Array]) -> Int64Array:
    """Return the number of the batch that each position of the first lanes is in, lane by lane; −1 where dropped."""
    found = []
    for lane, ids in enumerate(lanes):
        rows = np.arange(len(ids))
        step = (rows * order.settings.lanes + lane) // global_batch
        start = step * global_batch
        first = -((lane - start) // order.settings.lanes)  # the lane's first row in the step
        below = _positions_below(start + global_batch, lane, order) - _positions_below(start, lane, order)
        number = below + rows - first  # in the step, sorted by lane
        share, longer = divmod(global_batch, parts)
        cut = longer * (share + 1)
        part = np.where(number < cut, number // (share + 1), longer + (number - cut) // max(1, share))
        found.append(np.where(step < order.steps(global_batch), step * parts + part, -1))
    return np.concatenate(found)


def _positions_below(position: Int64Array, lane: int, order: Order) -> Int64Array:
    """Return how many of the positions before one belong to lanes before one."""
    lanes = order.settings.lanes
    below: Int64Array = position // lanes * lane + np.minimum(position % lanes, lane)
    return below
