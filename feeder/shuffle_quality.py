"""How well an order mixes, measured on its sample ids: no image is read.

`assess` looks at steps of some epochs (all, or one at random from each of equal stretches) and compares their batches,
whole and as ranks get them, with a full shuffle (a permutation of the dataset in every epoch) and with what lanes and
window predict (`feeder.shuffle_prediction`):

- **class balance**: Σ (x − n p)² over the counts x of classes in a batch of n, whose shares in the dataset are p,
  divided by its hypergeometric expectation Σ n p (1 − p) (N − n) / (N − 1): 1 in the mean for a full shuffle, more if
  batches are uneven, less if lanes make them evener than chance.
- **same-segment pairs**: pairs of samples of a batch that lie in one segment; neighbours in the source, as a rule.
- **meeting again**: which share of a batch's pairs is in one batch again in the next epoch.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.keyed import derive_key, draw
from feeder.order import Order
from feeder.shuffle_counts import Balance, BatchCounter, Classes, Sums, shares_met_again
from feeder.shuffle_prediction import SEGMENTS_AHEAD, Concordance, Prediction, ShuffleModel, full_shuffle, predict

Int64Array = NDArray[np.int64]

WINDOWS: tuple[int | Literal["all"], ...] = (1, 2, 4, 8, 16, 32, "all")  # shards, of which `assess` tells the effect

_ROWS = 1 << 22  # rows of lanes that are sorted to find sampled steps: about 2 s
_BLOCK = 4096  # rows that an order sorts at once, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchQuality:
    """What was found of global batches, or of those of ranks.

    Attributes:
        samples: of a batch.
        balance: None without labels, or if there is only one class.
        same_segment_pairs: of a batch, in the mean.
        meet_again: share of a batch's pairs that share a batch in the next epoch; None where no epoch was short enough
            to be followed.
        predicted: by lanes and window. full: for a full shuffle.
    """

    samples: float
    balance: Balance | None
    same_segment_pairs: float
    meet_again: float | None
    predicted: Prediction
    full: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What another window would give, by formula.

    Attributes:
        window_shards: in mean segments.
        buffered_segments: in use at one time, over all lanes: lanes x (window + 3), or all there are.
        global_batches, rank_batches: see `Prediction`.
    """

    window_shards: int | Literal["all"]
    buffered_segments: int
    global_batches: Prediction
    rank_batches: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleQuality:
    """What `assess` found.

    Attributes:
        steps, of_steps: looked at, and there are, in an epoch.
        epochs: looked at.
        concordance: of the labels in segments; None without labels.
        global_batches, rank_batches: what was found of them.
        buffered_segments: as in `Outlook`, for the order's own window.
        outlook: of the windows in `WINDOWS`.
    """

    steps: int
    of_steps: int
    epochs: int
    concordance: Concordance | None
    global_batches: BatchQuality
    rank_batches: BatchQuality
    buffered_segments: int
    outlook: tuple[Outlook, ...]


def assess(
    order: Order,
    segment_samples: Int64Array,
    *,
    global_batch: int,
    world_size: int = 1,
    epochs: int = 2,
    labels: NDArray[Any] | None = None,
) -> ShuffleQuality:
    """Return how well an order mixes; a pure function.

    Args:
        order: shuffled, without a table of copies.
        segment_samples: int64[S], those of the order.
        global_batch: G, at most the number of samples.
        world_size: R, at most G.
        epochs: to look at, from 0.
        labels: int[N], the class of each sample by id, −1 for none; None if there are no labels.
    """
    settings = order.settings
    if not settings.shuffle or settings.copies_digest is not None:
        raise ConfigError("the quality of a shuffle is that of an order that is shuffled and takes every sample once")
    of_steps = order.steps(global_batch)
    if not 1 <= world_size <= global_batch or of_steps < 1 or epochs < 1:
        raise ConfigError(
            f"a global batch of {global_batch} on {world_size} ranks over {epochs} epochs leaves nothing to assess:"
            f" there are {order.num_positions} samples; each rank gets one a step at least"
        )
    model = ShuffleModel(
        segment_samples=segment_samples,
        lanes=settings.lanes,
        window=settings.window,
        sticky=settings.sticky,
        global_batch=global_batch,
    )
    classes = None if labels is None else Classes(labels)
    concordance = None if classes is None else classes.concordance(segment_samples)
    if concordance is not None and concordance.squared_shares == 1:
        classes = None  # one class: any batch is balanced
    counter = BatchCounter(segment_samples, classes)
    numbers = [_sampled_steps(model, of_steps, epoch, epochs, settings.seed) for epoch in range(epochs)]
    parts = {1: Sums(), world_size: Sums()}
    for epoch, steps in enumerate(numbers):
        for step in steps:
            ids = order.rank_batch(epoch, step * global_batch, global_batch, 0, 1).ids
            for ranks, sums in parts.items():
                counter.add(sums, ids, ranks)
    meeting = shares_met_again(order, model, parts, epochs)
    found = {}
    for ranks, sums in parts.items():
        found[ranks] = BatchQuality(
            samples=global_batch / ranks,
            balance=counter.balance(sums, global_batch / ranks, ranks * of_steps, epochs),
            same_segment_pairs=sums.pairs / sums.batches,
            meet_again=meeting[ranks],
            predicted=predict(model, ranks, concordance),
            full=full_shuffle(model, ranks),
        )
    return ShuffleQuality(
        steps=len(numbers[0]),
        of_steps=of_steps,
        epochs=epochs,
        concordance=concordance,
        global_batches=found[1],
        rank_batches=found[world_size],
        buffered_segments=buffered_segments(model),
        outlook=tuple(_outlook(model, world_size, window, concordance) for window in WINDOWS),
    )


def buffered_segments(model: ShuffleModel) -> int:
    """Return how many segments are in use at one time: of each lane, its window and 3 more, or all that it has."""
    occupied = int(np.count_nonzero(model.segment_samples))
    if model.window is None:
        return occupied
    mean = float(model.segment_samples.sum()) / max(1, occupied)
    return min(occupied, model.lanes * (math.ceil(model.window / mean) + SEGMENTS_AHEAD))


def _outlook(
    model: ShuffleModel, world_size: int, window: int | Literal["all"], concordance: Concordance | None
) -> Outlook:
    occupied = max(1, int(np.count_nonzero(model.segment_samples)))
    other = replace(model, window=None if window == "all" else int(window * model.segment_samples.sum() // occupied))
    return Outlook(
        window_shards=window,
        buffered_segments=buffered_segments(other),
        global_batches=predict(other, 1, concordance),
        rank_batches=predict(other, world_size, concordance),
    )


def _sampled_steps(model: ShuffleModel, of_steps: int, epoch: int, epochs: int, seed: int) -> list[int]:
    """Return the numbers of the steps to look at in an epoch, ascending: one of each of equal stretches."""
    samples = int(model.segment_samples.sum())
    count = of_steps
    if samples * epochs > _ROWS:
        block = min(max(_BLOCK, 2 * (model.window or 0)), -(-samples // model.lanes))  # rows sorted in each lane
        count = min(of_steps, max(1, _ROWS // (epochs * max(model.global_batch, model.lanes * block))))
    bounds = np.arange(count + 1) * of_steps // count
    offsets = draw(derive_key("shuffle_quality.steps", seed, epoch), np.arange(count)) % np.diff(bounds).astype(
        np.uint64
    )
    return [int(step) for step in bounds[:-1] + offsets.astype(np.int64)]
