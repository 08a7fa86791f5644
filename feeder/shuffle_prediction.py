"""What lanes and window do to the pairs of samples in a batch: closed forms, from counts alone.

**Same-segment pairs.** A lane of n rows gives T consecutive positions to a step. A pair of rows at lag d has keys that
differ by X = d + B (u − u'), u and u' uniform on [−½, ½); keys lie one to a unit, so that the step takes an interval of
length T of them, at a random place. Both rows fall into it with probability h(d) / n,

    h(d) = E max(0, T − |X|) = (1_T * 1_T * 1_B * 1_B)(d) / B² = δ_T² δ_B² |d|³ / (12 B²),

as the triangle max(0, T − |x|) is the convolution of two boxes of width T, B (u − u') has the density of two boxes of
width B, and a convolution of boxes is a central difference of the power whose derivatives it consumes: |x|³ / 12 is
|x| / 2, whose second derivative is the unit impulse, integrated twice (a cubic B-spline; Schoenberg 1946). Without
window (B = 0) h(d) = max(0, T − d); with window "all" every lag is alike.

A key beyond an end of the lane is reflected: the lane is half of a circle on which row i stands at i and at −1 − i, and
two rows also meet where one is near the other's image. So the lane, which has n − d pairs at lag d, counts

    κ(d) = (n − d) h(d) + Σ_i h(2i + d + 1) over both ends = (n − d) h(d) + ∫_d^∞ h(x) dx

for them, the sum taken by the midpoint rule. A step holds exactly T positions, not T in the mean: κ is scaled to sum to
T (T − 1) / 2. With w(d) the share of the pairs at lag d that lie in one segment, the same-segment pairs of a lane in a
step are Σ κ(d) w(d). A segment that is cut by a lane's end is in two lanes, in which its rows move apart.

**Class balance.** For a batch of n samples with counts x of classes with shares p in the dataset, Σ (x − n p)² is
n + 2 (pairs of one class) − n² Σ p². Pairs within a segment are of one class with probability q_s, all others with q_d,
since segments are permuted; a full shuffle has the hypergeometric value n (1 − Σ p²) (N − n) / (N − 1). So the number
of same-segment pairs decides the class balance, too. If labels are sorted, lanes make it better than that of a full
shuffle: a batch is then a stratified sample. (q_s is the mean over a segment: where labels are sorted within segments,
too, a window of one segment leaves more than is predicted.)

**Meeting again.** Draws of two epochs are independent. If shards are sticky, two rows of a lane are in the same lane in
the next epoch: at the same lag if they are in one piece, at a random one otherwise, since pieces are permuted; rows of
two lanes come in the same step by chance. If not, all but rows of one segment meet by chance.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Of a lane in use beside its window: a row moves by half a window to either side, so that window + 1 segments are open
# at a time; one is coming, and the next one after it must find its place before the last one leaves.
SEGMENTS_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleModel:
    """An order as the closed forms see it.

    Attributes:
        segment_samples: int64[S], samples of each segment.
        lanes: L.
        window: B in samples; None for the whole lane.
        sticky: whether lanes keep their segments.
        global_batch: G, samples of a step.
    """

    segment_samples: NDArray[np.int64]
    lanes: int
    window: int | None
    sticky: bool
    global_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Concordance:
    """How often two samples are of one class.

    Attributes:
        same_segment: probability for two samples of one segment.
        other_segments: for two samples of different ones.
        squared_shares: Σ p², over the classes' shares of the dataset.
    """

    same_segment: float
    other_segments: float
    squared_shares: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of batches of one size.

    Attributes:
        same_segment_pairs: mean pairs of a batch whose samples are of one segment.
        meet_again: share of a batch's pairs that share a batch in the next epoch.
        balance: variance of class counts over that of a full shuffle; None without labels.
    """

    same_segment_pairs: float
    meet_again: float
    balance: float | None


def predict(model: ShuffleModel, parts: int = 1, concordance: Concordance | None = None) -> Prediction:
    """Return what to expect of batches.

    Args:
        model: the order.
        parts: R for the batches of R ranks, 1 for global batches.
        concordance: of the labels, if there are any.
    """
    at_lag = lag_pairs(model.segment_samples)
    samples = float(model.segment_samples.sum())
    lane, batch = samples / model.lanes, model.global_batch / parts
    steps = int(samples // model.global_batch)  # of an epoch
    runs, lane_of, part_of = _runs(model.lanes, model.global_batch, parts)
    lags = np.arange(1, len(at_lag) + 1)
    uncut = np.clip(1 - lags * (model.lanes - 1) / samples, 0, 1)  # share of the pairs at a lag in one lane
    of_lane = at_lag * uncut / model.lanes  # pairs of one piece
    of_piece = of_lane / np.maximum(lane - lags, 1)  # share of them, of all pairs of a lane at a lag

    kernels = {run: _pairs(run) * _kernel(lane, run, model.window, len(at_lag)) for run in np.unique(runs).tolist()}
    in_piece = {run: float((kernel * of_piece).sum()) for run, kernel in kernels.items()}
    in_cut = 0.0
    if model.lanes > 1 and (model.sticky or model.window is None):
        apart = float((at_lag * (1 - uncut)).sum()) / (model.lanes - 1)  # pairs of a segment that a lane's end cuts
        neighbours = part_of[1:] == part_of[:-1]
        in_cut = apart * float((runs[1:] * runs[:-1])[neighbours].sum()) / lane**2
    same = (sum(in_piece[run] for run in runs.tolist()) + in_cut) / parts

    all_pairs = _pairs(batch)
    if not all_pairs:
        met = 0.0
    elif model.sticky:
        met = 0.0
        other_pairs = max(1.0, lane * (lane - 1) / 2 - float(of_lane.sum()))
        for lengths, times in _lanes(runs, lane_of).items():
            together = sum((kernels[run] for run in lengths), np.zeros(len(at_lag)))
            met += times * float((together**2 * of_piece / np.maximum(lane - lags, 1)).sum()) * steps
            other_pieces = sum(_pairs(run) - in_piece[run] for run in lengths)
            met += times * other_pieces * min(1.0, other_pieces * steps / other_pairs)
        squares, fourths = np.bincount(part_of, runs**2), np.bincount(part_of, runs**4)
        met += float((squares**2 - fourths).sum()) / 2 * steps / lane**2  # of two lanes
    else:
        together = sum((kernels[run] for run in runs.tolist()), np.zeros(len(at_lag))) / model.lanes
        once_more = together**2 * of_piece * uncut / np.maximum(lane - lags, 1) * model.lanes * steps
        others = max(1.0, samples * (samples - 1) / 2 - float(at_lag.sum()))
        met = float(once_more.sum()) + parts**2 * max(0.0, all_pairs - same) ** 2 * steps / others
    return Prediction(
        same_segment_pairs=same,
        meet_again=met / parts / all_pairs if all_pairs else 0.0,
        balance=None if concordance is None else _balance(batch, samples, same, concordance),
    )


def _runs(lanes: int, global_batch: int, parts: int) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Return length, lane and part of every run of a step: what one part gets of one lane.

    Lengths are mean ones. Where parts cut lanes in very many ways they are rounded to 64ths of a lane's.
    """
    step, batch = global_batch / lanes, global_batch / parts
    ends = np.sort(np.concatenate((np.arange(1, lanes + 1) * step, np.arange(1, parts) * batch)))
    starts = np.concatenate(([0.0], ends[:-1]))
    real = ends - starts > step * 1e-6
    lengths, middles = np.round((ends - starts)[real], 9), ((ends + starts) / 2)[real]
    if len(np.unique(lengths)) > 64:
        lengths = np.rint(lengths / step * 64) * step / 64
    return lengths, (middles / step).astype(np.int64), (middles / batch).astype(np.int64)


def _lanes(runs: FloatArray, lane_of: NDArray[np.int64]) -> Counter[tuple[float, ...]]:
    """Return the lengths of the runs that lanes are cut into, and how many lanes are cut so."""
    cuts = np.split(runs, np.flatnonzero(np.diff(lane_of)) + 1)
    return Counter(tuple(sorted(cut.tolist())) for cut in cuts)


def share_of_pairs_in_lanes(model: ShuffleModel, parts: int = 1) -> float:
    """Return the share of a batch's pairs whose samples are of one lane."""
    runs, _, _ = _runs(model.lanes, model.global_batch, parts)
    all_pairs = _pairs(model.global_batch / parts) * parts
    return sum(map(_pairs, runs.tolist())) / all_pairs if all_pairs else 0.0


def full_shuffle(model: ShuffleModel, parts: int = 1) -> Prediction:
    """Return what a permutation of the whole dataset in every epoch would give; arguments as in `predict`."""
    samples, batch = float(model.segment_samples.sum()), model.global_batch / parts
    chosen = 2 * _pairs(batch) / max(1.0, samples * (samples - 1))  # of all pairs, those in a given batch
    return Prediction(
        same_segment_pairs=chosen * float(lag_pairs(model.segment_samples).sum()),
        meet_again=chosen * parts * int(samples // model.global_batch),
        balance=1.0,
    )


def lag_pairs(segment_samples: NDArray[np.int64]) -> FloatArray:
    """Return float64[longest − 1]: pairs of rows at lag 1, 2, … that lie in one segment, Σ max(0, m − d)."""
    longer = np.bincount(segment_samples)[::-1].cumsum()[::-1]  # segments of at least so many rows
    pairs: FloatArray = longer[2:][::-1].cumsum()[::-1].astype(np.float64)
    return pairs


def _pairs(take: float) -> float:
    """Return the mean pairs of a run whose length is an integer and ``take`` in the mean."""
    whole = int(take)
    return whole * (whole - 1) / 2 + whole * (take - whole)


def _kernel(lane: float, run: float, window: int | None, lags: int) -> FloatArray:
    """Return float64[lags]: which share of the pairs of a run is at lag 1, 2, … in its lane: κ(d) / Σ κ."""
    if window is None or window >= lane:
        share: FloatArray = np.clip(lane - np.arange(1, lags + 1), 0, None) / max(1.0, lane * (lane - 1) / 2)
        return share
    reach = int(min(max(1, np.ceil(lane) - 1), np.ceil(run + window) + 1))
    distance = np.arange(1, max(reach, lags) + 1, dtype=np.float64)
    if window == 0:
        near = np.clip(run - distance, 0, None)
        folded = near**2 / 2
    else:
        near = np.clip(_boxes(distance, run, window, 3), 0, None)
        folded = np.clip(run * run / 2 - _boxes(distance, run, window, 4), 0, None)
    kernel = np.clip(lane - distance, 0, None) * near + np.where(distance < lane, folded, 0)
    total = float(kernel[:reach].sum())
    normalised: FloatArray = kernel[:lags] / total if total > 0 else np.zeros(lags)
    return normalised


def _boxes(x: FloatArray, run: float, window: float, power: int) -> FloatArray:
    """Return h(x) for power 3, and its integral from 0 to x for power 4."""
    total = np.zeros_like(x)
    for i, a in ((-1, 1), (0, -2), (1, 1)):
        for j, b in ((-1, 1), (0, -2), (1, 1)):
            at = x + i * run + j * window
            total += a * b * np.abs(at) ** 3 * (1 if power == 3 else at)
    return total / ((12 if power == 3 else 48) * window * window)


def _balance(batch: float, samples: float, same_segment_pairs: float, concordance: Concordance) -> float | None:
    """Return the variance of class counts over that of a full shuffle."""
    others = batch * (batch - 1) / 2 - same_segment_pairs
    one_class = same_segment_pairs * concordance.same_segment + others * concordance.other_segments
    expected = batch * (1 - concordance.squared_shares) * (samples - batch) / max(1.0, samples - 1)
    if expected <= 0:  # one class, or one batch that holds everything
        return None
    return max(0.0, (batch + 2 * one_class - batch * batch * concordance.squared_shares) / expected)
