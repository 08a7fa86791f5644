"""The order: proven against a slow model written from its description, for random datasets and settings."""

import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.copies import copies_of
from feeder.errors import ConfigError
from feeder.keyed import derive_key, draw, permute
from feeder.order import Order, _stable_argsort
from feeder.order_settings import OrderSettings, Shuffle, resolve_settings

GOLDEN = Path(__file__).parent.parent / "golden" / "orders.json"


def make_order(segments, copies=None, unit=1, **changes):
    """Make an order with settings that suit most tests."""
    chosen = {"seed": 0, "shuffle": True, "lanes": 1, "window": None, "sticky": True, **changes}
    table = None if copies is None else copies_of(np.asarray(copies, dtype=np.uint8), unit)
    chosen["copies_digest"] = None if table is None else table.digest
    return Order(np.asarray(segments, dtype=np.int64), OrderSettings(**chosen), table)


def walk(order, epoch, global_batch=7, world_size=1, position=0):
    """Return (id, copy) of all positions from one on, step by step and rank by rank."""
    found = []
    while position < order.num_positions:
        for rank in range(world_size):
            part = order.rank_batch(epoch, position, global_batch, rank, world_size)
            found += zip(part.ids[part.valid].tolist(), part.copies[part.valid].tolist(), strict=True)
        position += global_batch
    return found


def model_epoch(segments, copies, settings, epoch):
    """Return (id, copy) at every position of an epoch, as the module's description says, with plain Python."""
    first_ids = np.concatenate(([0], np.cumsum(segments))).tolist()
    quotas = np.ones(first_ids[-1], int).tolist() if copies is None else copies.table.tolist()
    unit = 1 if copies is None else copies.unit
    laid = [list(range(a, b)) for a, b in itertools.pairwise(first_ids)]
    occupied = [s for s, samples in enumerate(laid) if sum(quotas[i] for i in samples)]
    seed, lanes = settings.seed, settings.lanes
    copies_key = derive_key("order.copies", seed, epoch)
    if settings.shuffle:
        key = derive_key("order.segments", seed) if settings.sticky else derive_key("order.segments", seed, epoch)
        occupied.sort(key=lambda s: int(draw(key, s)))
        if unit > 1:
            for s, samples in enumerate(laid):
                samples.sort(key=lambda i: int(draw(draw(copies_key, s + 1), i - first_ids[s])))
    units = [(s, i) for s in occupied for i in laid[s] for _ in range(quotas[i])]
    picked = units[int(draw(copies_key, 0)) % unit :: unit]
    rows = {s: [] for s in occupied}
    for s, i in picked:
        rows[s].append((i, sum(i == other for other, _ in rows[s])))
    stream = [(s, r) for s in occupied for r in range(len(rows[s]))]
    total = len(stream)
    lengths = [total // lanes + (lane < total % lanes) for lane in range(lanes)]
    longest = -(-total // lanes)
    dealt = []
    for lane, length in enumerate(lengths):
        content, stream = stream[:length], stream[length:]
        pieces = []
        for s, r in content:
            if not pieces or pieces[-1][0][0] != s:
                pieces.append([])
            pieces[-1].append((s, r))
        if settings.shuffle and settings.sticky:
            key = derive_key("order.pieces", seed, epoch, lane)
            pieces = [pieces[i] for i in sorted(range(len(pieces)), key=lambda i: int(draw(key, i)))]
        content = [row for piece in pieces for row in piece]
        if not settings.shuffle:
            places = list(range(length))
        elif settings.window is None or settings.window >= longest:
            places = permute(derive_key("order.lane", seed, epoch, lane), length, np.arange(length)).tolist()
        else:
            places = model_window(derive_key("order.window", seed, epoch, lane), length, settings.window)
        dealt.append([content[place] for place in places])
    order = [dealt[g % lanes][g // lanes] for g in range(total)]
    return [rows[s][r] for s, r in order]


def model_window(key, length, window):
    """Return the rows of a lane in order: the stable argsort of reflect(i + 1/2 + u B), in units of 2**-16."""
    keys = []
    for i in range(length):
        u = int(draw(key, i)) >> 32
        place = (i << 16) + (1 << 15) + ((u * window) >> 16) - (window << 15)
        if place < 0:
            place = -1 - place
        if place >= length << 16:
            place = 2 * (length << 16) - 1 - place
        keys.append(place)
    return sorted(range(length), key=lambda i: keys[i])


@st.composite
def orders(draw_from):
    """Small datasets with any settings, empty segments and left-out samples among them."""
    segments = draw_from(st.lists(st.integers(0, 30), min_size=1, max_size=10))
    samples = sum(segments)
    unit = draw_from(st.integers(1, 5))
    copies = draw_from(st.none() | st.lists(st.integers(0, 3 * unit), min_size=samples, max_size=samples))
    if copies is None:
        unit, positions = 1, samples
    else:
        for i in range(samples):  # the sum must be a multiple of the unit
            taken = min(copies[i], sum(copies) % unit)
            copies[i] -= taken
        positions = sum(copies) // unit
    return make_order(
        segments,
        copies,
        unit,
        seed=draw_from(st.integers(-(2**63), 2**63)),
        lanes=draw_from(st.integers(1, max(1, positions))),
        window=draw_from(st.none() | st.integers(0, 40)),
        sticky=draw_from(st.booleans()),
        shuffle=draw_from(st.booleans()),
    )


@settings(deadline=None, max_examples=150)
@given(orders(), st.integers(0, 5))
def test_order_is_its_description(order, epoch):
    expected = model_epoch(order._segment_samples, order._copies, order.settings, epoch)
    by_lane = order.settings.lanes
    for position in range(0, max(1, len(expected)), 5):
        part = order.rank_batch(epoch, position, 5, 0, 1)
        places = sorted(range(position, min(position + 5, len(expected))), key=lambda g: (g % by_lane, g))
        assert list(zip(part.ids[part.valid], part.copies[part.valid], strict=True)) == [expected[g] for g in places]


@settings(deadline=None, max_examples=150)
@given(orders(), st.integers(0, 3), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1))
def test_every_row_once_while_batch_and_world_size_change_on_the_way(order, epoch, changes):
    found, position, step = [], 0, 0
    while position < order.num_positions:
        global_batch, world_size = changes[step % len(changes)]
        parts = [order.rank_batch(epoch, position, global_batch, rank, world_size) for rank in range(world_size)]
        assert {len(part.ids) for part in parts} == {-(-global_batch // world_size)}
        assert all((part.ids[~part.valid] == -1).all() for part in parts)
        found += [row for part in parts for row in zip(part.ids[part.valid], part.copies[part.valid], strict=True)]
        position, step = position + global_batch, step + 1
    table = order._copies
    quotas = np.ones(order._segment_samples.sum(), int) if table is None else table.table.astype(int)
    unit = 1 if table is None else table.unit
    counts = np.bincount([i for i, _ in found], minlength=len(quotas))
    assert sorted(found) == [(i, c) for i, count in enumerate(counts.tolist()) for c in range(count)]
    assert ((counts == quotas // unit) | (counts == -(-quotas // unit))).all()
    assert len(found) == order.num_positions == quotas.sum() // unit


@settings(deadline=None, max_examples=50)
@given(orders(), st.integers(0, 3), st.integers(1, 20), st.integers(1, 8))
def test_ranks_share_the_global_batch(order, epoch, global_batch, world_size):
    for position in range(0, order.num_positions, global_batch):
        whole = order.rank_batch(epoch, position, global_batch, 0, 1)
        parts = [order.rank_batch(epoch, position, global_batch, rank, world_size) for rank in range(world_size)]
        assert np.concatenate([part.ids[part.valid] for part in parts]).tolist() == whole.ids[whole.valid].tolist()


def test_seek_gives_what_walking_gives():
    order = make_order([1000] * 37, lanes=4, window=3000)
    walked = walk(order, epoch=2, global_batch=64)
    for position in (0, 64, 640, 12_800, 36_992):
        fresh = pickle.loads(pickle.dumps(order))
        part = fresh.rank_batch(2, position, 64, 0, 1)
        count = int(part.valid.sum())
        assert part.ids[part.valid].tolist() == [sample for sample, _ in walked[position : position + count]]


def test_a_window_bounds_how_far_a_sample_moves():
    order = make_order([100] * 50, window=300, sticky=False)
    stream = [sample for sample, _ in walk(make_order([100] * 50, window=0, sticky=False), epoch=0)]
    place = {sample: position for position, sample in enumerate(stream)}
    moved = [abs(position - place[sample]) for position, (sample, _) in enumerate(walk(order, epoch=0))]
    assert 150 < max(moved) <= 301


def test_a_window_mixes_the_borders_of_a_lane_as_well_as_its_middle():
    moves = np.zeros(2000)
    for seed in range(40):
        order = make_order([2000], window=400, seed=seed)
        ids = np.array([sample for sample, _ in walk(order, epoch=0, global_batch=500)])
        moves += np.abs(ids - np.arange(2000))
    means = moves.reshape(20, 100).mean(axis=1) / 40
    assert means.min() > 0.5 * means.max()


def test_sticky_lanes_read_the_same_segments_in_every_epoch():
    order = make_order([10] * 64, lanes=8, window=20)

    def lane_segments(epoch, lane):
        ids, _ = order._lane_range(epoch, lane, 0, order.lane_length(lane))
        return sorted(set((ids // 10).tolist())), ids.tolist()

    for lane in range(8):
        first, second = lane_segments(0, lane), lane_segments(1, lane)
        assert first[0] == second[0]
        assert first[1] != second[1]
    assert sorted(s for lane in range(8) for s in lane_segments(0, lane)[0]) == list(range(64))


def test_a_rank_touches_few_lanes():
    order = make_order([100] * 256, lanes=64, window=100)
    lanes_of = {}
    for lane in range(64):
        ids, _ = order._lane_range(0, lane, 0, order.lane_length(lane))
        lanes_of.update(dict.fromkeys(ids.tolist(), lane))
    for rank in range(16):
        part = order.rank_batch(0, 512 * 3, 512, rank, 16)
        assert len({lanes_of[sample] for sample in part.ids.tolist()}) <= 5


def test_epochs_and_seeds_differ():
    def ids(seed, epoch):
        return [sample for sample, _ in walk(make_order([50] * 4, seed=seed), epoch)]

    assert ids(42, 1) != ids(43, 0)
    assert ids(42, 0) != ids(42, 1)
    assert ids(42, 1) == ids(42, 1)


def test_training_drops_the_last_part_of_an_epoch_and_evaluation_pads_it():
    training, evaluation = make_order([10]), make_order([10], shuffle=False, window=0)
    assert (training.steps(4), evaluation.steps(4)) == (2, 3)
    assert (training.steps(11), evaluation.steps(11)) == (0, 1)
    assert (training.steps(4, position=5), evaluation.steps(4, position=12)) == (1, 0)
    last = evaluation.rank_batch(0, 8, 4, 1, 2)
    assert (last.ids.tolist(), last.valid.tolist()) == ([9, -1], [True, False])
    assert evaluation.rank_batch(7, 0, 10, 0, 1).ids.tolist() == list(range(10))


@pytest.mark.parametrize("segments", [[], [0], [0, 0], [1], [0, 1, 0]])
def test_tiny_datasets(segments):
    order = make_order(segments)
    assert order.num_positions == sum(segments)
    assert walk(order, epoch=0) == [(0, 0)] * sum(segments)
    assert order.rank_batch(0, 0, 4, 1, 3).ids.tolist() == [-1, -1]


def test_copies_leave_samples_out_and_repeat_them():
    order = make_order([3, 3], copies=[0, 1, 2, 0, 0, 3], lanes=2, window=3)
    assert sorted(walk(order, epoch=1)) == [(1, 0), (2, 0), (2, 1), (5, 0), (5, 1), (5, 2)]


def test_fractional_copies_average_to_the_quotas():
    quotas = np.array([4, 0, 1, 3, 10, 2, 6, 6, 7, 1, 2, 2, 4, 4, 4, 4])
    order = make_order([6, 0, 7, 3], copies=quotas, unit=4, lanes=3, window=4)
    epochs = 4000
    counts = np.array([np.bincount([i for i, _ in walk(order, e, 15)], minlength=16) for e in range(epochs)])
    assert (counts[:, [0, 12, 13, 14, 15]] == 1).all()
    spread = np.sqrt((quotas % 4 / 4) * (1 - quotas % 4 / 4) / epochs)
    assert (np.abs(counts.mean(axis=0) - quotas / 4) <= 4 * spread).all()
    assert len({tuple(row) for row in counts.tolist()}) > 100  # any of them may occur together


def test_fractional_copies_are_exact_over_all_first_rows(monkeypatch):
    """Each of the K places of the first row gives a sample floor(q / K) or ceil(q / K) rows, and q in all together."""
    quotas = np.array([5, 0, 2, 9, 1, 1, 3, 7, 4, 3])
    totals = np.zeros(10, int)
    for first in range(5):
        monkeypatch.setattr("feeder.order.draw", lambda key, counters, first=first: np.uint64(first) + counters * 0)
        order = make_order([4, 3, 3], copies=quotas, unit=5, shuffle=False)
        totals += np.bincount([i for i, _ in walk(order, 0)], minlength=10)
    assert totals.tolist() == quotas.tolist()


def test_the_rows_of_a_segment_differ_by_at_most_one_between_epochs():
    random = np.random.default_rng(0)
    quotas = random.integers(0, 200, 800)
    quotas[0] += -quotas.sum() % 64
    order = make_order([100] * 8, copies=quotas.clip(0, 255), unit=64, lanes=3)
    counts = [np.bincount([i // 100 for i, _ in walk(order, epoch, 50)], minlength=8) for epoch in range(30)]
    assert np.ptp(counts, axis=0).max() == 1


def test_stand_ins_come_from_the_same_segment_and_are_never_left_out():
    order = make_order([3, 3], copies=[0, 1, 2, 0, 0, 3])
    numbers = [int(number) for number in draw(1, np.arange(50))]
    assert {order.stand_in(0, 1, number) for number in numbers} == {1, 2}
    assert {order.stand_in(0, 5, number) for number in numbers} == {5}
    fractional = make_order([3, 3], copies=[0, 1, 5, 0, 0, 6], unit=4)
    assert {fractional.stand_in(0, 1, number) for number in numbers} == {1, 2}
    assert {make_order([3, 3]).stand_in(0, 4, number) for number in numbers} == {3, 4, 5}


def test_more_lanes_than_samples_are_refused():
    with pytest.raises(ConfigError) as caught:
        make_order([3], lanes=4)
    assert str(caught.value) == (
        "the order has 4 lanes and 3 samples an epoch; "
        "lanes must be from 1 to the number of samples: lower Shuffle(lanes=)"
    )


def test_bad_windows_and_copies_are_refused():
    with pytest.raises(ConfigError, match="the window is -1 samples; it must be from 0 to 1073741824"):
        make_order([3], window=-1)
    with pytest.raises(ConfigError, match="the table of copies has 2 entries and the dataset 3 samples"):
        make_order([3], copies=[1, 1])
    with pytest.raises(ConfigError, match="not the one whose digest stands in the order's settings"):
        Order(np.array([2]), make_order([2]).settings, copies_of(np.array([1, 1], np.uint8)))


@pytest.mark.parametrize(
    ("argument", "value"), [("window_shards", "some"), ("window_shards", -1), ("lanes", 0), ("lanes", "x")]
)
def test_bad_shuffles_are_refused(argument, value):
    with pytest.raises(ConfigError, match=f"Shuffle.{argument} is {value!r}; it must be"):
        Shuffle(**{argument: value})


def test_defaults_follow_the_size_of_the_job():
    def resolve(segments, global_batch, shuffled=True, shuffle=True):
        sizes = np.full(segments, 570)
        return resolve_settings(
            shuffle, seed=0, segment_samples=sizes, shuffled_when_written=shuffled, global_batch=global_batch
        )

    assert resolve(1, 1).lanes == 1
    assert resolve(80_000, 256).lanes == 4
    assert resolve(80_000, 2048).lanes == 32
    assert resolve(80_000, 256_000).lanes == 1024
    assert resolve(40, 2048).lanes == 2
    assert resolve(80_000, 256).window == 8 * 570
    assert resolve(80_000, 256, shuffled=False).window is None
    assert resolve(80_000, 256, shuffle=Shuffle(window_shards=2, lanes=3, sticky_shards=False)) == OrderSettings(
        seed=0, shuffle=True, lanes=3, window=1140, sticky=False
    )
    assert resolve(80_000, 256, shuffle=False) == OrderSettings(seed=0, shuffle=False, lanes=1, window=0, sticky=False)


def test_both_sorts_agree():
    keys = np.asarray(draw(3, np.arange(5000)) >> np.uint64(52)).astype(np.int64)  # many ties
    packed, stable = _stable_argsort(keys, 1 << 12), _stable_argsort(keys, 1 << 62)
    assert packed.tolist() == stable.tolist() == np.argsort(keys, kind="stable").tolist()


GOLDEN_CASES = {
    "one lane, whole": ([40, 40, 17], None, {}),
    "window": ([500] * 8, None, {"window": 700, "lanes": 3, "seed": 42}),
    "window, next seed": ([500] * 8, None, {"window": 700, "lanes": 3, "seed": 43}),
    "roaming": ([500] * 8, None, {"window": 700, "lanes": 3, "sticky": False}),
    "copies": ([5, 0, 9], [1, 0, 2, 3, 1, 1, 1, 0, 0, 4, 1, 1, 2, 1], {"lanes": 2, "window": 6, "seed": -1}),
    "manifest order": ([5, 9], None, {"shuffle": False, "window": 0, "sticky": False}),
}


def test_orders_are_pinned():
    """Run with FEEDER_UPDATE_GOLDEN=1 to write the file anew; raise `feeder.order.ALGORITHM` when it changes."""
    found = {}
    for name, (segments, copies, changes) in GOLDEN_CASES.items():
        order = make_order(segments, copies, **changes)
        found[name] = {
            f"epoch {epoch}": [sample for sample, _ in walk(order, epoch, global_batch=16)][:48] for epoch in (0, 1)
        }
    if os.environ.get("FEEDER_UPDATE_GOLDEN"):
        lines = [f"{json.dumps(name)}: {json.dumps(epochs)}" for name, epochs in found.items()]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert json.loads(GOLDEN.read_text()) == found


def test_settings_say_what_they_are_in_json():
    order = make_order([5], copies=[1] * 5, seed=3, lanes=2)
    assert order.settings.to_json() == {
        "algorithm": 1,
        "seed": 3,
        "shuffle": True,
        "lanes": 2,
        "window": None,
        "sticky": True,
        "copies": copies_of(np.ones(5, np.uint8)).digest,
    }
