"""Which shards the ranks of a node read, and what changes when one node is lost, as formulas.

Shards stand for segments here, all of the mean size. The formulas are held against orders that are walked through
(`tests/feeder/test_lanes.py`). How well batches are mixed is in `feeder.shuffle_prediction`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 256  # looked at for how steps lie over lanes; they repeat after L / gcd(G, L)


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
