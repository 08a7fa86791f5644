"""What lanes and windows cost and give, as formulas: which shards a node reads, how well a batch is mixed.

Shards stand for segments here, all of the mean size. The formulas are held against orders that are walked through
(`tests/feeder/test_lanes.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 256  # looked at for how steps lie over lanes; they repeat after L / gcd(G, L)
_GRID = 64  # points of the numerical integrals


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A dataset and who reads it.

    Attributes:
        samples, shards: of the dataset, or of what is selected of it.
        shard_bytes: mean size of a shard.
        nodes: that have ranks, equally many each, numbered one after another.
        global_batch: G, samples of a step over all ranks.
    """

    samples: int
    shards: int
    shard_bytes: float
    nodes: int
    global_batch: int

    @property
    def steps(self) -> int:
        """The whole steps of an epoch."""
        return self.samples // self.global_batch


def node_shares(job: Job, lanes: int) -> NDArray[np.float64]:
    """Return float64[nodes, L], the part of the samples of each lane that a node gets.

    A step takes positions [g, g + G), of which lane l has those that are l modulo L; the positions, sorted by lane, are
    cut into equal parts. Where L divides G every step is cut alike, else the cuts wander.
    """
    taken = np.zeros(job.nodes * lanes)
    cuts = job.global_batch * np.arange(1, job.nodes + 1) // job.nodes
    lane = np.arange(lanes)
    cycle = lanes // int(np.gcd(job.global_batch, lanes))
    for step in range(min(_STEPS, cycle, max(1, job.steps))):
        position = step * job.global_batch % lanes
        counts = (position + job.global_batch - lane + lanes - 1) // lanes - (position - lane + lanes - 1) // lanes
        ends = np.cumsum(counts)
        borders = np.unique(np.concatenate((ends, cuts)))
        sizes = np.diff(borders, prepend=0)
        places = np.searchsorted(cuts, borders) * lanes + np.searchsorted(ends, borders)
        taken += np.bincount(places, sizes, minlength=len(taken))
    shares = taken.reshape(job.nodes, lanes)
    totals = shares.sum(axis=0)
    return np.asarray(shares / np.maximum(totals, 1e-12))


def touched(job: Job, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64[nodes, L], the part of the shards of each lane of which a node reads samples in an epoch.

    Of a lane that it shares a node gets a sample of a shard of m with probability f each: a shard in
    1 - (1 - f)**m of all cases.
    """
    return np.asarray(-np.expm1(np.log1p(-np.minimum(shares, 1 - 1e-12)) * job.samples / job.shards))


def node_bytes(job: Job, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64[nodes], the bytes of the shards that a node needs in an epoch.

    A node's lanes lie side by side in the stream, which cuts a shard at each of their two ends: half a shard more at
    either, unless the stream ends there.
    """
    lanes = shares.shape[1]
    whole = touched(job, shares).sum(axis=1) * job.shards / lanes
    at_ends = (shares[:, 0] == 0).astype(float) / 2 + (shares[:, -1] == 0) / 2
    return np.asarray(np.minimum(whole + at_ends, job.shards) * job.shard_bytes)


def moved_bytes(job: Job, before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bytes of shards that nodes need and did not have when one node is lost: the mean, and the worst case.

    Args:
        before: `node_shares` with all nodes.
        after: `node_shares` with one node less, which keeps the others' order: node k + 1 becomes k behind the gap.
    """
    if job.nodes == 1:
        return 0.0, 0.0
    had, needs = touched(job, before), touched(job, after)
    per_lane = job.shards / before.shape[1] * job.shard_bytes
    kept_number = (needs * (1 - had[:-1])).sum(axis=1) * per_lane
    moved_up = (needs * (1 - had[1:])).sum(axis=1) * per_lane
    lost_at = np.concatenate(([0], np.cumsum(kept_number))) + np.append(np.cumsum(moved_up[::-1])[::-1], 0)
    return float(lost_at.mean()), float(lost_at.max())


def same_shard_probability(job: Job, lanes: int, window: int | None) -> float:
    """Return the probability that two samples of a global batch come from one shard: about 1 / (window · lanes).

    A position of a lane takes a row from the window of w shards around it, each as likely. Two positions whose distance
    is d shards take rows of one shard with probability ::

        P(d) = 1/w**2 · ∫ (1 - |t|) · max(0, w - |t + d|) dt        t from -1 to 1

    since rows at distance t lie in one shard with probability 1 - |t|; close by it is (w - 1/3) / w**2. It is never one
    row twice, which would happen with probability max(0, w - d) / (w**2 · m), m the samples of a shard. At the ends of
    a lane of n shards, where keys are reflected, rows are half as many: 1 + w / (2 n) on average. A batch has
    c = G / L positions of a lane, side by side: distances of d samples occur as often as c - d. Two lanes share the
    shard at their border, which adds 1 / (6 n**2) for lanes side by side. In the whole lane (w = n) all of it is what a
    full shuffle has, 1 / shards, but for the samples that a batch takes from every lane alike.

    Args:
        job: see `Job`.
        lanes: L.
        window: in shards; None for the whole lane.
    """
    size = job.samples / job.shards
    of_lane = job.shards / lanes
    taken = job.global_batch / lanes  # positions that a batch has of a lane, c
    inside = 0.0
    if taken > 1:
        if window is None or window >= of_lane:
            inside = float(_meeting(np.zeros(1), of_lane, size)[0])
        else:
            d = np.linspace(1, max(1, taken - 1), _GRID)
            weights = (taken - d) / (taken - d).sum()
            inside = float((_meeting(d / size, max(window, 1 / size), size) * weights).sum())
            inside *= 1 + window / (2 * of_lane)
    pairs_inside = lanes * taken * max(0.0, taken - 1) / 2
    pairs_beside = (lanes - 1) * taken**2
    beside = 1 / (6 * max(1.0, of_lane) ** 2)
    pairs = job.global_batch * (job.global_batch - 1) / 2
    return (pairs_inside * inside + pairs_beside * beside) / max(1.0, pairs)


def _meeting(distances: NDArray[np.float64], window: float, size: float) -> NDArray[np.float64]:
    """Return the probability that two positions take rows of one shard, for distances and a window in shards."""
    t = ((np.arange(2 * _GRID) + 0.5) / _GRID - 1)[:, None]
    overlap = np.maximum(0, window - np.abs(t + distances))
    shard = ((1 - np.abs(t)) * overlap).sum(axis=0) / _GRID / window**2
    row = np.maximum(0, window - distances) / window**2 / size
    return np.asarray(np.maximum(0, shard - row) / np.maximum(1e-12, 1 - row))


def class_spread(job: Job, probability: float) -> float:
    """Return how far a class's count in a batch strays if shards hold one class each, in units of a full shuffle's.

    It is the square root of the design effect 1 + (G - 1) ρ of cluster sampling (Kish, "Survey Sampling", 1965),
    with ρ what `same_shard_probability` exceeds that of a full shuffle. Shards of shuffled samples have 1.
    """
    size = job.samples / job.shards
    full = max(0.0, size - 1) / max(1.0, job.samples - 1)
    return float(np.sqrt(max(0.0, 1 + (job.global_batch - 1) * (probability - full))))
