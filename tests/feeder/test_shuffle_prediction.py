"""Closed forms for pairs of samples in batches, against orders that are simulated in plain NumPy."""

import numpy as np
import pytest

from feeder.order import Order
from feeder.order_settings import OrderSettings
from feeder.shuffle_prediction import (
    Concordance,
    ShuffleModel,
    full_shuffle,
    lag_pairs,
    predict,
    share_of_pairs_in_lanes,
)

_SEEDS = 4


def model_of(*, segments, samples, lanes, window, sticky, batch):
    """Return a model of segments of unequal sizes; the window is in mean segments."""
    sizes = (samples * np.random.default_rng(0).uniform(0.6, 1.4, segments)).astype(np.int64)
    return ShuffleModel(
        segment_samples=sizes,
        lanes=lanes,
        window=None if window == "all" else int(window * sizes.mean()),
        sticky=sticky,
        global_batch=batch,
    )


def simulated(model, parts):
    """Return the mean same-segment pairs of a batch, and the share of its pairs that meet again, over some seeds."""
    sizes, batch = model.segment_samples, model.global_batch
    segment_of = np.repeat(np.arange(len(sizes)), sizes)
    same = again = pairs = batches = 0
    for seed in range(_SEEDS):
        order = Order(
            sizes,
            OrderSettings(seed=seed, shuffle=True, lanes=model.lanes, window=model.window, sticky=model.sticky),
        )
        numbers = np.full((2, len(segment_of)), -1)
        for epoch in (0, 1):
            for step in range(order.steps(batch)):
                for rank in range(parts):
                    taken = order.rank_batch(epoch, step * batch, batch, rank, parts)
                    ids = taken.ids[taken.valid]
                    numbers[epoch, ids] = step * parts + rank
                    same += pairs_of(segment_of[ids])
                    batches += 1
        both = (numbers >= 0).all(axis=0)
        again += pairs_of(numbers[0, both] * len(segment_of) + numbers[1, both])
        pairs += pairs_of(numbers[0][numbers[0] >= 0])
    return same / batches, again / pairs


def pairs_of(values):
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1)).sum()) // 2


CASES = [
    {"segments": 64, "samples": 200, "lanes": 4, "window": 8, "sticky": True, "batch": 256},
    {"segments": 64, "samples": 200, "lanes": 4, "window": 8, "sticky": False, "batch": 256},
    {"segments": 64, "samples": 200, "lanes": 4, "window": "all", "sticky": True, "batch": 256},
    {"segments": 64, "samples": 200, "lanes": 4, "window": "all", "sticky": False, "batch": 256},
    {"segments": 64, "samples": 200, "lanes": 1, "window": 1, "sticky": True, "batch": 128},
    {"segments": 64, "samples": 200, "lanes": 1, "window": 0, "sticky": True, "batch": 128},
    {"segments": 128, "samples": 100, "lanes": 32, "window": 2, "sticky": True, "batch": 512},
    # a window of half the lane and of most of it: rows are reflected at the ends
    {"segments": 32, "samples": 200, "lanes": 2, "window": 8, "sticky": True, "batch": 256},
    {"segments": 32, "samples": 300, "lanes": 1, "window": 28, "sticky": True, "batch": 64},
    # lanes that get 6 or 7 positions of a step
    {"segments": 128, "samples": 100, "lanes": 16, "window": 4, "sticky": True, "batch": 100},
]


@pytest.mark.parametrize(
    ("case", "parts"),
    # batches of a dozen samples have too few pairs to compare
    [(case, parts) for case in CASES for parts in (1, 2, 8) if case["batch"] // parts >= 16],
)
def test_predictions_lie_within_ten_percent_of_simulations(case, parts):
    model = model_of(**case)
    same, again = simulated(model, parts)
    predicted = predict(model, parts)
    assert predicted.same_segment_pairs == pytest.approx(same, rel=0.1)
    assert predicted.meet_again == pytest.approx(again, rel=0.1)


def test_ranks_that_cut_lanes_are_predicted():
    model = model_of(segments=128, samples=100, lanes=8, window=4, sticky=True, batch=512)
    for parts in (3, 5, 12):
        same, again = simulated(model, parts)
        predicted = predict(model, parts)
        assert predicted.same_segment_pairs == pytest.approx(same, rel=0.1)
        assert predicted.meet_again == pytest.approx(again, rel=0.1)


def test_a_full_shuffle_has_the_pairs_of_chance():
    model = model_of(segments=40, samples=60, lanes=1, window="all", sticky=False, batch=120)
    random = np.random.default_rng(1)
    segment_of = np.repeat(np.arange(40), model.segment_samples)
    steps = len(segment_of) // 120
    found = [
        pairs_of(segment_of[random.permutation(len(segment_of))[: steps * 120]].reshape(steps, 120)[i])
        for i in range(steps)
        for _ in range(20)
    ]
    full, whole_lane = full_shuffle(model), predict(model)
    assert full.same_segment_pairs == pytest.approx(np.mean(found), rel=0.03)
    assert whole_lane.same_segment_pairs == pytest.approx(full.same_segment_pairs, rel=0.001)
    assert whole_lane.meet_again == pytest.approx(full.meet_again, rel=0.001)


def test_pairs_at_a_lag_are_counted():
    sizes = np.array([4, 0, 1, 7])
    expected = [sum(max(0, size - lag) for size in sizes) for lag in range(1, 7)]
    assert lag_pairs(sizes).tolist() == expected


def test_without_window_a_batch_takes_a_run_of_rows():
    model = ShuffleModel(segment_samples=np.full(10, 100), lanes=1, window=0, sticky=True, global_batch=10)
    # a run of 10 rows has 45 pairs; at lag d, 10 - d of them, of which d in 100 lie across a border
    expected = sum((10 - lag) * (1 - lag / 100) for lag in range(1, 10))
    assert predict(model).same_segment_pairs == pytest.approx(expected, rel=0.01)


def test_a_larger_window_is_never_worse():
    model = model_of(segments=256, samples=100, lanes=4, window=1, sticky=True, batch=256)
    sizes = model.segment_samples
    found = [
        predict(ShuffleModel(segment_samples=sizes, lanes=4, window=window, sticky=True, global_batch=256))
        for window in (0, 1, 10, 100, 200, 400, 800, 1600, 3200, 6000, None)
    ]
    assert [one.same_segment_pairs for one in found] == sorted((one.same_segment_pairs for one in found), reverse=True)
    assert [one.meet_again for one in found] == sorted((one.meet_again for one in found), reverse=True)


def test_batches_of_one_sample_have_no_pairs():
    model = ShuffleModel(segment_samples=np.full(10, 100), lanes=1, window=200, sticky=True, global_batch=4)
    predicted = predict(model, 4)
    assert (predicted.same_segment_pairs, predicted.meet_again) == (0, 0)
    assert share_of_pairs_in_lanes(model, 4) == 0


def test_balance_follows_from_pairs():
    model = ShuffleModel(segment_samples=np.full(64, 200), lanes=1, window=None, sticky=True, global_batch=256)
    chance = (12_800 / 10 - 1) / 12_799  # that two samples are of one of ten classes of equal size
    mixed = Concordance(same_segment=chance, other_segments=chance, squared_shares=0.1)
    assert predict(model, 1, mixed).balance == pytest.approx(1)
    one_class_a_segment = Concordance(
        same_segment=1, other_segments=3 * 200 / (63 * 200), squared_shares=1 / 16
    )  # 16 classes of 4 segments each
    for lanes, least, most in ((1, 0.99, 1.01), (4, 0.94, 0.96), (16, 0.75, 0.79)):  # a stratified sample
        lanes_of = ShuffleModel(
            segment_samples=np.full(64, 200), lanes=lanes, window=None, sticky=True, global_batch=256
        )
        balance = predict(lanes_of, 1, one_class_a_segment).balance
        assert balance is not None
        assert least < balance < most
