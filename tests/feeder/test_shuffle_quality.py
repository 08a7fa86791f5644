"""What is measured of orders: the measures against brute force, and what they find in good and in bad orders."""

import numpy as np
import pytest

from feeder.errors import ConfigError
from feeder.order import Order
from feeder.order_settings import OrderSettings, Shuffle, resolve_settings
from feeder.shuffle_counts import BatchCounter, Classes, Sums
from feeder.shuffle_prediction import ShuffleModel
from feeder.shuffle_quality import WINDOWS, assess, buffered_segments

SEGMENTS, SAMPLES, CLASSES = 128, 150, 40


def labels_of(*, sorted_labels, seed=0):
    """Return labels of unequal classes, as a build writes them: in random order, or in that of class folders."""
    random = np.random.default_rng(seed)
    shares = random.uniform(0.5, 1.5, CLASSES)
    labels = random.choice(CLASSES, SEGMENTS * SAMPLES, p=shares / shares.sum()).astype(np.int32)
    return np.sort(labels) if sorted_labels else labels


def quality_of(labels, *, batch=256, ranks=4, window="all", sticky=True, lanes="auto", seed=0, epochs=2):
    sizes = np.full(SEGMENTS, SAMPLES)
    settings = resolve_settings(
        Shuffle(window_shards=window, sticky_shards=sticky, lanes=lanes),
        seed=seed,
        segment_samples=sizes,
        shuffled_when_written=True,
        global_batch=batch,
    )
    return assess(Order(sizes, settings), sizes, global_batch=batch, world_size=ranks, epochs=epochs, labels=labels)


@pytest.mark.parametrize("window", [1, 8, "all"])
@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_of_a_shuffled_build_are_those_of_a_full_shuffle(window, sticky, seed):
    quality = quality_of(labels_of(sorted_labels=False, seed=seed), window=window, sticky=sticky, seed=seed)
    assert quality.steps == quality.of_steps == SEGMENTS * SAMPLES // 256
    for found in (quality.global_batches, quality.rank_batches):
        assert abs(found.balance.z) < 3
        assert found.same_segment_pairs == pytest.approx(found.predicted.same_segment_pairs, rel=0.1)
        assert found.meet_again == pytest.approx(found.predicted.meet_again, rel=0.1)
    if window == 1:  # what the full shuffle does not have
        assert quality.rank_batches.same_segment_pairs > 10 * quality.rank_batches.full.same_segment_pairs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_window_of_the_whole_lane_mends_sorted_shards(seed):
    quality = quality_of(labels_of(sorted_labels=True, seed=seed), window="all", seed=seed, lanes=1)
    assert abs(quality.global_batches.balance.z) < 3
    several = quality_of(labels_of(sorted_labels=True, seed=seed), window="all", seed=seed, lanes=4)
    balance = several.global_batches.balance
    assert abs(balance.ratio - 1) < 3 * balance.sigma  # of one batch
    assert balance.z < 3  # over all batches lanes make it evener than chance, never less even


def test_sorted_shards_without_a_window_are_found():
    quality = quality_of(labels_of(sorted_labels=True), window=0)
    for found in (quality.global_batches, quality.rank_batches):
        assert found.balance.ratio > 20
        assert found.balance.z > 100
    assert quality.concordance.same_segment > 10 * quality.concordance.other_segments
    eight = quality_of(labels_of(sorted_labels=True), window=8)
    assert eight.global_batches.balance.ratio == pytest.approx(eight.global_batches.predicted.balance, rel=0.15)
    assert eight.global_batches.balance.z > 3


def test_an_order_whose_batches_stay_together_is_found():
    """Meeting again is measured apart from the other two: batches may be perfect in each epoch, and always the same."""

    class Frozen(Order):
        def rank_batch(self, epoch, *args):
            return super().rank_batch(0, *args)

    sizes = np.full(SEGMENTS, SAMPLES)
    settings = OrderSettings(seed=0, shuffle=True, lanes=4, window=None, sticky=True)
    quality = assess(Frozen(sizes, settings), sizes, global_batch=256, world_size=4)
    assert quality.global_batches.meet_again == quality.rank_batches.meet_again == 1
    assert quality.global_batches.balance is None


def test_pairs_that_meet_again_are_counted_as_by_hand(monkeypatch):
    sizes = np.random.default_rng(3).integers(20, 60, 48)
    for lanes, batch, ranks, sticky, window in ((3, 50, 4, True, 100), (4, 96, 3, False, None), (5, 64, 1, True, None)):
        settings = OrderSettings(seed=1, shuffle=True, lanes=lanes, window=window, sticky=sticky)
        order = Order(sizes, settings)
        quality = assess(order, sizes, global_batch=batch, world_size=ranks, epochs=1)
        for parts, found in ((1, quality.global_batches), (ranks, quality.rank_batches)):
            sets = [
                [
                    set(taken.ids[taken.valid].tolist())
                    for step in range(order.steps(batch))
                    for rank in range(parts)
                    for taken in [order.rank_batch(epoch, step * batch, batch, rank, parts)]
                ]
                for epoch in (0, 1)
            ]
            met = sum(len(a & b) * (len(a & b) - 1) for a in sets[0] for b in sets[1])
            assert found.meet_again == pytest.approx(met / sum(len(a) * (len(a) - 1) for a in sets[0]))


def test_some_lanes_stand_for_all(monkeypatch):
    exact = quality_of(None, window=4, batch=1024, lanes=16, ranks=4)
    monkeypatch.setattr("feeder.shuffle_counts._FOLLOWED_ROWS", 4 * SEGMENTS * SAMPLES // 16)
    estimated = quality_of(None, window=4, batch=1024, lanes=16, ranks=4)
    for name in ("global_batches", "rank_batches"):
        assert getattr(estimated, name).meet_again != getattr(exact, name).meet_again
        assert getattr(estimated, name).meet_again == pytest.approx(getattr(exact, name).meet_again, rel=0.05)
    monkeypatch.setattr("feeder.shuffle_counts._FOLLOWED_ROWS", SEGMENTS * SAMPLES // 64)
    assert quality_of(None, window=4, batch=1024, lanes=1).global_batches.meet_again is None
    assert quality_of(None, window=4, batch=1024, lanes=16, sticky=False).global_batches.meet_again is None


def test_some_steps_stand_for_all(monkeypatch):
    monkeypatch.setattr("feeder.shuffle_quality._ROWS", 2 * 20 * 600)
    monkeypatch.setattr("feeder.shuffle_quality._BLOCK", 600)
    quality = quality_of(labels_of(sorted_labels=False), window=2, lanes=1, batch=128)
    assert (quality.steps, quality.of_steps) == (20, 150)
    found = quality.global_batches
    assert abs(found.balance.z) < 3
    assert found.same_segment_pairs == pytest.approx(found.predicted.same_segment_pairs, rel=0.1)
    assert quality == quality_of(labels_of(sorted_labels=False), window=2, lanes=1, batch=128)


def test_permutations_have_the_expectation_and_the_errors_that_are_stated():
    random = np.random.default_rng(0)
    labels = random.choice(30, 3000, p=np.random.default_rng(1).dirichlet(np.full(30, 0.7)))
    sizes = np.full(30, 100)
    classes = Classes(labels)
    counter = BatchCounter(sizes, classes)
    for batch, parts in ((100, 1), (600, 4), (1500, 1)):
        scores, ratios = [], []
        for _ in range(300):
            sums, ids = Sums(), random.permutation(3000)
            for start in range(0, 3000, batch):
                counter.add(sums, ids[start : start + batch], parts)
            balance = counter.balance(sums, batch / parts, parts * 3000 // batch, 1)
            scores.append(balance.z)
            ratios.append(balance.ratio)
        assert np.mean(ratios) == pytest.approx(1, abs=4 * np.std(ratios) / 300**0.5)
        assert np.std(scores) == pytest.approx(1, rel=0.15)


def test_counts_are_those_of_plain_python():
    labels, ids = np.array([0, 0, 1, 2, 2, 2, -1, 0]), np.array([0, 3, 4, 5, 6, 7])
    sums = Sums()
    classes = Classes(labels)
    BatchCounter(np.array([3, 5]), classes).add(sums, ids, 2)
    assert sums.batches == 2
    assert sums.pairs == 1 + 3  # 3 and 4 of the second segment; 5, 6 and 7
    shares = {-1: 1 / 8, 0: 3 / 8, 1: 1 / 8, 2: 3 / 8}
    deviation = sum(
        (sum(labels[i] == c for i in part) - 3 * p) ** 2 for part in (ids[:3], ids[3:]) for c, p in shares.items()
    )
    assert sums.deviation == pytest.approx(deviation)
    assert sums.expected == pytest.approx(2 * sum(3 * p * (1 - p) * 5 / 7 for p in shares.values()))


def test_concordance_is_that_of_all_pairs():
    labels, sizes = np.array([0, 0, 1, 2, 2, 2, 1, 0]), np.array([3, 5])
    concordance = Classes(labels).concordance(sizes)
    same = [labels[i] == labels[j] for a, b in ((0, 3), (3, 8)) for i in range(a, b) for j in range(i + 1, b)]
    other = [labels[i] == labels[j] for i in range(3) for j in range(3, 8)]
    assert concordance.same_segment == pytest.approx(np.mean(same))
    assert concordance.other_segments == pytest.approx(np.mean(other))


def test_the_outlook_tells_of_every_window():
    quality = quality_of(labels_of(sorted_labels=True), window=8, lanes=2)
    assert tuple(one.window_shards for one in quality.outlook) == WINDOWS
    assert [one.buffered_segments for one in quality.outlook] == [8, 10, 14, 22, 38, 70, 128]
    assert quality.buffered_segments == 22
    (eight,) = (one for one in quality.outlook if one.window_shards == 8)
    assert eight.global_batches == quality.global_batches.predicted
    assert eight.rank_batches == quality.rank_batches.predicted
    balances = [one.global_batches.balance for one in quality.outlook]
    assert balances == sorted(balances, reverse=True)


def test_no_more_segments_are_buffered_than_there_are():
    model = ShuffleModel(segment_samples=np.full(6, 10), lanes=3, window=20, sticky=True, global_batch=3)
    assert buffered_segments(model) == 6


def test_one_class_is_always_balanced():
    assert quality_of(np.zeros(SEGMENTS * SAMPLES, np.int32)).global_batches.balance is None


@pytest.mark.parametrize(("batch", "ranks"), [(SEGMENTS * SAMPLES + 1, 1), (4, 5)])
def test_what_leaves_nothing_to_assess_is_refused(batch, ranks):
    with pytest.raises(ConfigError, match=f"a global batch of {batch} on {ranks} ranks over 2 epochs leaves nothing"):
        quality_of(None, batch=batch, ranks=ranks)


def test_an_order_that_is_not_shuffled_is_refused():
    sizes = np.full(4, 10)
    order = Order(sizes, OrderSettings(seed=0, shuffle=False, lanes=1, window=0, sticky=False))
    with pytest.raises(ConfigError, match="the quality of a shuffle is that of an order that is shuffled"):
        assess(order, sizes, global_batch=4)
