"""`suggest_shuffle`: lanes, window and stickiness for a cluster, with what they cost and what else there is."""

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import checked_integer
from feeder.errors import ConfigError
from feeder.lanes import Job, moved_bytes, node_bytes, node_shares, touched
from feeder.order_settings import DEFAULT_WINDOW_SHARDS, MIN_SEGMENTS_A_LANE, Shuffle
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.reading.opening import open_dataset
from feeder.shuffle_prediction import SEGMENTS_AHEAD, Concordance, ShuffleModel, full_shuffle, predict

LANES_A_NODE = 8  # enough that a lane which two nodes share costs a node an eighth at most, few enough for its memory
_WINDOWS = (8, 4, 2, 1)
_CLASSES = 1000  # where a dataset does not say how many it has
_NEAR = 1.02  # bytes of nodes that differ by less count as equal


class HasManifest(Protocol):
    """An open dataset."""

    @property
    def manifest(self) -> Manifest:
        """What it holds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleCosts:
    """One way to shuffle, and its price on a cluster.

    Attributes:
        shuffle: ready to use.
        lanes_per_node: lanes on a node, on average.
        transit_bytes: what is on its way on a node at most: lanes × (window + 3) shards.
        node_bytes: shards that a node needs in an epoch, on the node that needs most; the same ones in every epoch if
            sticky, others if not.
        cluster_bytes: of all nodes together; what exceeds the dataset are shards that two nodes need.
        lost_node_bytes: shards that other nodes need when one node is lost, on average over which one it is.
        lost_node_worst_bytes: when it is the worst one.
        reach: part of its lane within which a sample may move.
        same_shard_pairs: of a global batch: pairs of samples of one shard, expected.
        class_spread: standard deviation of the counts of classes in a global batch if each shard held one class, in
            units of a full shuffle's; None if there is one class.
    """

    shuffle: Shuffle
    lanes_per_node: float
    transit_bytes: int
    node_bytes: int
    cluster_bytes: int
    lost_node_bytes: int
    lost_node_worst_bytes: int
    reach: float
    same_shard_pairs: float
    class_spread: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleAdvice:
    """What `suggest_shuffle` returns; as text it is a table.

    Attributes:
        job: the dataset and the cluster.
        gpus_per_node: ranks of a node.
        suggested: the way to shuffle that fits.
        alternatives: others, for comparison.
        steps: whole steps of an epoch.
        samples_per_epoch: samples in them; the others come in other epochs.
        full_shuffle_pairs: what `ShuffleCosts.same_shard_pairs` would be in a permutation of the whole dataset.
        cache_bytes: that a node has for shards, or None.
        notes: sentences about what does not fit, or costs.
    """

    job: Job
    gpus_per_node: int
    suggested: ShuffleCosts
    alternatives: tuple[ShuffleCosts, ...]
    steps: int
    samples_per_epoch: int
    full_shuffle_pairs: float
    cache_bytes: int | None
    notes: tuple[str, ...]

    @property
    def shuffle(self) -> Shuffle:
        """The `Shuffle` to give to a dataset."""
        return self.suggested.shuffle

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def suggest_shuffle(
    dataset: str | os.PathLike[str] | Manifest | HasManifest | None = None,
    *,
    nodes: int,
    gpus_per_node: int = 8,
    global_batch: int,
    cache_bytes: int | None = None,
    samples: int | None = None,
    shards: int | None = None,
    shard_bytes: int = 1 << 26,
    shuffled_when_written: bool = True,
) -> ShuffleAdvice:
    """Suggest lanes, window and stickiness, and say what they cost.

    Args:
        dataset: its path or URL, its manifest, or an open dataset; None to describe it with the arguments below.
        nodes, gpus_per_node: of the cluster; each GPU is a rank, those of a node follow one another.
        global_batch: samples of a step over all ranks.
        cache_bytes: what each node has for shards; bounds the window. None for as much as is needed.
        samples, shards, shard_bytes: of a dataset that is not there yet.
        shuffled_when_written: of such a dataset; samples of one that is not move through their whole lanes.

    Raises:
        ConfigError: arguments that cannot be, or a global batch larger than the dataset.
        ShardsError: the dataset is missing, or not whole.
    """
    nodes = checked_integer("nodes", nodes, least=1)
    gpus_per_node = checked_integer("gpus_per_node", gpus_per_node, least=1)
    global_batch = checked_integer("global_batch", global_batch, least=nodes * gpus_per_node)
    if cache_bytes is not None:
        cache_bytes = checked_integer("cache_bytes", cache_bytes, least=1)
    if dataset is not None:
        manifest = _manifest(dataset)
        segments, classes = manifest.segments.samples, len(manifest.classes) or _CLASSES
        samples, shards = manifest.num_samples, len(segments)
        mean_bytes = manifest.size_bytes / max(1, shards)
        shuffled_when_written = manifest.shuffled
    else:
        if samples is None or shards is None:
            raise ConfigError("neither a dataset nor its samples and shards are given; give one or the other")
        shards = checked_integer("shards", shards, least=1)
        samples = checked_integer("samples", samples, least=shards)
        mean_bytes = checked_integer("shard_bytes", shard_bytes, least=1)
        segments, classes = np.diff(samples * np.arange(shards + 1) // shards), _CLASSES
    if global_batch > samples:
        raise ConfigError(
            f"the global batch is {global_batch} and there are {samples} samples, so that an epoch would have no step;"
            " lower the global batch"
        )
    job = Job(samples=samples, shards=shards, shard_bytes=mean_bytes, nodes=nodes, global_batch=global_batch)
    mixing = _Mixing(segments=segments, global_batch=global_batch, classes=min(classes, shards))
    window = DEFAULT_WINDOW_SHARDS if shuffled_when_written else None
    suggested, notes = _fitting(job, mixing, _suggested_lanes(job), window, cache_bytes)
    steps = job.steps
    return ShuffleAdvice(
        job=job,
        gpus_per_node=gpus_per_node,
        suggested=suggested,
        alternatives=tuple(_alternatives(job, mixing, suggested)),
        steps=steps,
        samples_per_epoch=steps * global_batch,
        full_shuffle_pairs=full_shuffle(mixing.model(1, None)).same_segment_pairs,
        cache_bytes=cache_bytes,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mixing:
    """What decides how well batches are mixed, beside lanes and window."""

    segments: NDArray[np.int64]
    global_batch: int
    classes: int

    def model(self, lanes: int, window: int | None) -> ShuffleModel:
        samples = None if window is None else window * int(self.segments.sum()) // len(self.segments)
        return ShuffleModel(
            segment_samples=self.segments, lanes=lanes, window=samples, sticky=True, global_batch=self.global_batch
        )

    def concordance(self) -> Concordance:
        """Return that of equal classes whose samples fill whole shards."""
        of_class = len(self.segments) / self.classes
        others = (of_class - 1) / max(1, len(self.segments) - 1)
        return Concordance(same_segment=1.0, other_segments=others, squared_shares=1 / self.classes)


def _manifest(dataset: str | os.PathLike[str] | Manifest | HasManifest) -> Manifest:
    if isinstance(dataset, Manifest):
        return dataset
    return open_dataset(dataset).manifest if isinstance(dataset, str | os.PathLike) else dataset.manifest


def _suggested_lanes(job: Job) -> int:
    """Return about 8 lanes a node: of the counts that nodes share alike, or powers of two, those with least traffic."""
    most = max(1, min(job.shards // MIN_SEGMENTS_A_LANE, job.global_batch, job.samples))
    wanted = min(LANES_A_NODE * job.nodes, most)
    power = 1 << (wanted.bit_length() - 1)
    divisors = [count for count in range(1, min(job.nodes, most) + 1) if job.nodes % count == 0]
    candidates = {power, 2 * power, wanted // job.nodes * job.nodes, divisors[-1]}
    traffic = {
        lanes: float(node_bytes(job, node_shares(job, lanes)).max()) for lanes in candidates if 1 <= lanes <= most
    }
    least = min(traffic.values())
    return min(
        (lanes for lanes, size in traffic.items() if size <= least * _NEAR),
        key=lambda lanes: (abs(lanes - wanted), lanes),
    )


def _fitting(
    job: Job, mixing: _Mixing, lanes: int, window: int | None, cache_bytes: int | None
) -> tuple[ShuffleCosts, list[str]]:
    """Return the first way whose shards on their way fit into the cache, and what to say about it."""
    tried = [window, *(shorter for shorter in _WINDOWS if window is None or shorter < window)]
    ways = [_costs(job, mixing, lanes, width) for width in tried]
    fitting = [way for way in ways if cache_bytes is None or way.transit_bytes <= cache_bytes]
    way = fitting[0] if fitting else ways[-1]
    notes = []
    if cache_bytes is not None and not fitting:
        notes.append(
            f"even with a window of 1 shard {_gigabytes(way.transit_bytes)} are on their way on a node, more than its"
            f" {_gigabytes(cache_bytes)} of cache: give it more, or write smaller shards"
        )
    elif way is not ways[0]:
        notes.append(
            f"the window is {way.shuffle.window_shards} shards rather than {ways[0].shuffle.window_shards}, so that"
            f" what is on its way fits into {_gigabytes(cache_bytes or 0)} of cache"
        )
    if cache_bytes is not None and cache_bytes < way.node_bytes + way.transit_bytes:
        kept = max(0.0, (cache_bytes - way.transit_bytes) / way.node_bytes)
        notes.append(
            f"a node's cache holds {kept:.0%} of the shards that it needs in every epoch; it reads the others again"
            " each time"
        )
    if way.lanes_per_node < 1:
        notes.append(
            f"{job.shards} shards make {lanes} lanes for {job.nodes} nodes, so that nodes need the same shards;"
            " smaller shards would help"
        )
    return way, notes


def _alternatives(job: Job, mixing: _Mixing, chosen: ShuffleCosts) -> Iterator[ShuffleCosts]:
    """Yield ways that differ from the suggested one in one respect."""
    lanes, width = _lanes(chosen), chosen.shuffle.window_shards
    window = width if isinstance(width, int) else None
    others = sorted({1 << (lanes - 1).bit_length(), lanes // 2, lanes * 2} - {lanes, 0})
    for other in others:
        if other <= min(job.shards, job.samples, job.global_batch):
            yield _costs(job, mixing, other, window)
    for other_window in (2, 8, 32, None):
        if other_window != window and (other_window is None or other_window < job.shards / lanes):
            yield _costs(job, mixing, lanes, other_window)


def _costs(job: Job, mixing: _Mixing, lanes: int, window: int | None) -> ShuffleCosts:
    """Return what a way to shuffle costs."""
    shares = node_shares(job, lanes)
    needed = node_bytes(job, shares)
    mean_lost = worst_lost = 0.0
    if job.nodes > 1:
        left = dataclasses.replace(
            job, nodes=job.nodes - 1, global_batch=max(1, job.global_batch * (job.nodes - 1) // job.nodes)
        )
        mean_lost, worst_lost = moved_bytes(job, shares, node_shares(left, lanes))
    of_lane = job.shards / lanes
    ahead = of_lane + 1 if window is None else min(window + SEGMENTS_AHEAD, of_lane + 1)
    on_node = float((touched(job, shares) > 0.5).sum(axis=1).max())
    expected = predict(mixing.model(lanes, window), concordance=mixing.concordance())
    return ShuffleCosts(
        shuffle=Shuffle(window_shards="all" if window is None else window, lanes=lanes),
        lanes_per_node=lanes / job.nodes,
        transit_bytes=round(on_node * ahead * job.shard_bytes),
        node_bytes=round(needed.max()),
        cluster_bytes=round(needed.sum()),
        lost_node_bytes=round(mean_lost),
        lost_node_worst_bytes=round(worst_lost),
        reach=1.0 if window is None else min(1.0, window / of_lane),
        same_shard_pairs=expected.same_segment_pairs,
        class_spread=None if expected.balance is None else math.sqrt(expected.balance),
    )


def _lanes(costs: ShuffleCosts) -> int:
    lanes = costs.shuffle.lanes
    assert isinstance(lanes, int)
    return lanes


# Text ----------------------------------------------------------------------------------------------------------------

_HEADERS = (
    "lanes",
    "a node",
    "window",
    "on its way",
    "node reads",
    "all read",
    "lost node",
    "reach",
    "pairs",
    "spread",
)
_LEGEND = (
    "on its way: shards in use on a node; node reads, all read: shards that the node which needs most, and all nodes",
    "together, read in an epoch; lost node: what others need when one goes; reach: how much of its lane a sample may",
    "cross; pairs: samples of one shard in a global batch; spread: how far the counts of classes stray if each shard",
    "held one; both in units of a full shuffle's",
)


def _lines(advice: ShuffleAdvice) -> Iterator[str]:
    job = advice.job
    yield f"{job.samples:,} samples in {job.shards:,} shards of {job.shard_bytes / 1e6:,.1f} MB"
    yield f"{job.nodes:,} x {advice.gpus_per_node} GPUs (nodes x GPUs of one), global batch {job.global_batch:,}"
    yield f"{advice.steps:,} steps and {advice.samples_per_epoch:,} samples an epoch"
    shuffle = advice.shuffle
    yield f"suggested: feeder.Shuffle(window_shards={shuffle.window_shards!r}, lanes={shuffle.lanes})"
    yield ""
    rows = [_HEADERS, *(_cells(advice, way) for way in (advice.suggested, *advice.alternatives))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADERS))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    yield ""
    yield from _LEGEND
    for note in advice.notes:
        yield f"note: {note}"


def _cells(advice: ShuffleAdvice, way: ShuffleCosts) -> tuple[str, ...]:
    window = way.shuffle.window_shards
    return (
        f"{way.shuffle.lanes:,}",
        f"{way.lanes_per_node:.2f}",
        window if isinstance(window, str) else f"{window:,}",
        _gigabytes(way.transit_bytes),
        _gigabytes(way.node_bytes),
        _gigabytes(way.cluster_bytes),
        _gigabytes(way.lost_node_bytes),
        f"{way.reach:.0%}",
        f"{way.same_shard_pairs / max(advice.full_shuffle_pairs, 1e-9):.1f}x",
        "" if way.class_spread is None else f"{way.class_spread:.2f}x",
    )


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.1f} MB"
