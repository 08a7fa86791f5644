"""The mixture: proven against a slow model written from its description, for random sources and weights."""

import itertools
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.copies import copies_of
from feeder.errors import ConfigError
from feeder.keyed import derive_key, permute
from feeder.mixture import MAX_TOTAL_WEIGHT, Mixture, MixtureSettings, SourceSettings, _share, integer_weights
from feeder.order import Order
from feeder.order_settings import OrderSettings

GOLDEN = Path(__file__).parent.parent / "golden" / "mixtures.json"


def make_order(segments, copies=None, **changes):
    chosen = {"seed": 0, "shuffle": True, "lanes": 1, "window": None, "sticky": True, **changes}
    table = None if copies is None else copies_of(np.asarray(copies, dtype=np.uint8))
    chosen["copies_digest"] = None if table is None else table.digest
    return Order(np.asarray(segments, dtype=np.int64), OrderSettings(**chosen), table)


def rows(batch):
    """Return (source, own epoch, id, copy) of the valid rows of a rank's batch."""
    columns = (batch.sources, batch.epochs, batch.ids, batch.copies)
    return list(zip(*(column[batch.valid].tolist() for column in columns), strict=True))


def step_rows(plan, epoch, position, global_batch, world_size=1):
    """Return the rows of all ranks of a step."""
    return [
        row
        for rank in range(world_size)
        for row in rows(plan.rank_batch(epoch, position, global_batch, rank, world_size))
    ]


def own_epoch(order, epoch):
    """Return (id, copy) of an epoch of an order, position by position."""
    batches = (order.rank_batch(epoch, position, 1, 0, 1) for position in range(order.num_positions))
    return [(int(batch.ids[0]), int(batch.copies[0])) for batch in batches]


def model(orders, weights, seed, positions):
    """Yield (source, own epoch, id, copy) at each of so many positions, as the module's description says."""
    total = sum(weights)
    numbers = [source for source, weight in enumerate(weights) for _ in range(weight)]
    taken = [0] * len(orders)
    epochs = {}
    for block in range(-(-positions // total)):
        places = permute(derive_key("mixture.block", seed, block), total, np.arange(total))
        for place in places[: positions - block * total]:
            source = numbers[place]
            epoch, position = divmod(taken[source], orders[source].num_positions)
            taken[source] += 1
            if (source, epoch) not in epochs:
                epochs[source, epoch] = own_epoch(orders[source], epoch)
            yield source, epoch, *epochs[source, epoch][position]


@st.composite
def mixtures(draw_from):
    """Up to four small sources with any weights; returns what a Mixture is made of."""
    orders = []
    for _ in range(draw_from(st.integers(1, 4))):
        segments = draw_from(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any))
        copies = draw_from(st.none() | st.lists(st.integers(0, 2), min_size=sum(segments), max_size=sum(segments)))
        if copies is not None and not any(copies):
            copies = None
        positions = sum(segments if copies is None else copies)
        orders.append(
            make_order(
                segments,
                copies,
                seed=draw_from(st.integers(0, 3)),
                lanes=draw_from(st.integers(1, positions)),
                window=draw_from(st.none() | st.integers(0, 10)),
                sticky=draw_from(st.booleans()),
                shuffle=draw_from(st.booleans()),
            )
        )
    weights = [draw_from(st.integers(1, 9)) for _ in orders]
    return orders, weights, draw_from(st.integers(-5, 5)), draw_from(st.none() | st.integers(1, 60))


@settings(deadline=None, max_examples=100)
@given(mixtures(), st.integers(1, 20), st.integers(1, 5))
def test_a_mixture_is_its_description(parts, global_batch, world_size):
    mixture = Mixture(*parts)
    length, epochs = mixture.num_positions, 3
    expected = list(model(*parts[:3], positions=epochs * length))
    for epoch, position in itertools.product(range(epochs), range(0, length, global_batch)):
        stop = min(position + global_batch, length)
        step = expected[epoch * length + position : epoch * length + stop]
        assert Counter(step_rows(mixture, epoch, position, global_batch, world_size)) == Counter(step)
        seen = Counter(source for source, *_ in expected[: epoch * length + position])
        assert mixture.counts(epoch, position) == tuple(seen[source] for source in range(len(parts[0])))


@settings(deadline=None, max_examples=100)
@given(mixtures(), st.integers(1, 40), st.integers(1, 7), st.integers(0, 3))
def test_ranks_share_every_source_and_are_padded_alike(parts, global_batch, world_size, epoch):
    mixture = Mixture(*parts)
    for position in range(0, mixture.num_positions, global_batch):
        batches = [mixture.rank_batch(epoch, position, global_batch, rank, world_size) for rank in range(world_size)]
        assert {len(batch.ids) for batch in batches} == {-(-global_batch // world_size)}
        counts = [int(batch.valid.sum()) for batch in batches]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[-1] <= 1
        for batch, count in zip(batches, counts, strict=True):
            assert batch.valid.tolist() == [True] * count + [False] * (len(batch.ids) - count)
            assert set(batch.ids[count:].tolist()) <= {-1}
        for source in range(len(parts[0])):
            of_source = [int((batch.sources[batch.valid] == source).sum()) for batch in batches]
            assert max(of_source) - min(of_source) <= 1
            whole = [row for row in step_rows(mixture, epoch, position, global_batch) if row[0] == source]
            shared = [row for batch in batches for row in rows(batch) if row[0] == source]
            assert shared == whole


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shares_are_the_cyclic_deal(world_size):
    for samples, dealt in itertools.product(range(20), range(10)):
        counts = [samples // world_size] * world_size
        for turn in range(samples % world_size):
            counts[(dealt + turn) % world_size] += 1
        firsts = [sum(counts[:rank]) for rank in range(world_size)]
        found = [_share(samples, dealt, rank, world_size) for rank in range(world_size)]
        assert found == list(zip(firsts, counts, strict=True))


def test_each_source_runs_through_its_own_epochs():
    orders = [make_order([30, 30], seed=1), make_order([5], seed=2)]
    mixture = Mixture(orders, [3, 1], seed=0, length=80)
    found = [row for epoch in range(3) for row in step_rows(mixture, epoch, 0, 80)]
    for source, size in ((0, 60), (1, 5)):
        own = Counter((epoch, sample) for of, epoch, sample, _ in found if of == source)
        assert set(own) == {(epoch, sample) for epoch in range(len(own) // size) for sample in range(size)}
        assert set(own.values()) == {1}


def test_any_stretch_of_blocks_holds_the_weights_exactly():
    mixture = Mixture([make_order([100]), make_order([50])], [5, 2], seed=9, length=1000)
    for block in range(140):
        before, after = mixture.counts(0, 7 * block), mixture.counts(0, 7 * block + 7)
        assert np.subtract(after, before).tolist() == [5, 2]


def test_blocks_go_on_over_the_borders_of_epochs():
    mixture = Mixture([make_order([100]), make_order([50])], [5, 2], seed=9, length=10)
    assert mixture.counts(7, 0) == (50, 20)
    assert mixture.counts(6, 10) == mixture.counts(7, 0)
    assert mixture.counts(7 << 40, 0) == (50 << 40, 20 << 40)


def test_large_weights_and_late_epochs_cost_what_small_ones_do():
    sources = [make_order([1000] * 100, lanes=4, window=500), make_order([1])]
    mixture = Mixture(sources, [65_535, 1], seed=1)
    found = step_rows(mixture, 123_456_789, 4096, 65_536)
    assert sorted({source for source, *_ in found}) in ([0], [0, 1])
    assert len(found) == 65_536
    before, after = mixture.counts(123_456_789, 4096), mixture.counts(123_456_789, 4096 + 65_536)
    assert sum(after) - sum(before) == 65_536


def test_a_mixture_of_shuffled_sources_drops_the_last_part_of_an_epoch():
    evaluation = make_order([10], shuffle=False, window=0)
    assert Mixture([evaluation, make_order([4])], [1, 1], seed=0).steps(4) == 3
    assert Mixture([evaluation, evaluation], [1, 1], seed=0).steps(8) == 3
    assert Mixture([evaluation, evaluation], [1, 1], seed=0).steps(8, position=25) == 0


def test_stand_ins_come_from_the_source_of_the_bad_sample():
    mixture = Mixture([make_order([3, 3]), make_order([2, 2])], [1, 1], seed=0)
    assert {mixture.stand_in(0, 4, number) for number in range(20)} == {3, 4, 5}
    assert {mixture.stand_in(1, 3, number) for number in range(20)} == {2, 3}


def test_a_mixture_pickles_lightly():
    mixture = Mixture([make_order([1000] * 80), make_order([70])], [3, 65_000], seed=5)
    expected = step_rows(mixture, 2, 100, 64)
    pickled = pickle.dumps(mixture)
    assert len(pickled) < 4000
    assert step_rows(pickle.loads(pickled), 2, 100, 64) == expected


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1], "the mixture has 2 sources and 1 weights; give each source one"),
        (
            [1, 0],
            "the weights of the mixture are [1, 0]; they must be integers of at least 1, and of 65536 together at most",
        ),
        ([1, 0.5], "the weights of the mixture are [1, 0.5]; they must be integers of at least 1, and of 65536"),
        ([65_536, 1], "the weights of the mixture are [65536, 1]; they must be integers of at least 1, and of 65536"),
    ],
)
def test_bad_weights_are_refused(weights, sentence):
    with pytest.raises(ConfigError) as caught:
        Mixture([make_order([3]), make_order([3])], weights, seed=0)
    assert str(caught.value).startswith(sentence)


def test_empty_sources_and_bad_lengths_are_refused():
    with pytest.raises(ConfigError, match="source 1 of the mixture has no samples; leave it out"):
        Mixture([make_order([3]), make_order([0])], [1, 1], seed=0)
    with pytest.raises(ConfigError, match="the length of the mixture is 0; it must be an integer from 1 to"):
        Mixture([make_order([3])], [1], seed=0, length=0)
    with pytest.raises(ConfigError, match="the mixture has 0 sources and 0 weights"):
        Mixture([], [], seed=0)


def test_a_source_whose_own_epoch_is_beyond_all_bounds_is_refused():
    mixture = Mixture([make_order([1])], [1], seed=0, length=8)
    assert rows(mixture.rank_batch((1 << 59) - 1, 0, 8, 0, 1))[-1][1] == (1 << 62) - 1
    with pytest.raises(ConfigError, match=f"source 0 of the mixture would be in epoch {1 << 62} of its own; epochs"):
        mixture.rank_batch(1 << 59, 0, 8, 0, 1)


def test_settings_say_what_they_are_in_json():
    order = make_order([5], seed=3).settings
    source = SourceSettings(name="a", dataset="ab", weight=2, order=order)
    assert MixtureSettings(seed=1, length=9, sources=(source,)).to_json() == {
        "algorithm": 1,
        "seed": 1,
        "length": 9,
        "sources": [{"name": "a", "dataset": "ab", "weight": 2, "order": order.to_json()}],
    }


@pytest.mark.parametrize(
    ("weights", "integers"),
    [
        ([1, 1], (1, 1)),
        ([4, 2], (2, 1)),
        ([0.7, 0.3], (7, 3)),
        ([0.333, 0.667], (333, 667)),
        ([1 / 3, 2 / 3], (1, 2)),
        ([2, 0.5], (4, 1)),
        ([np.float32(0.25), np.int64(1)], (1, 4)),
        ([5], (1,)),
        ([1_281_167, 1_281_167 * 2], (1, 2)),
    ],
)
def test_weights_in_proportion_become_integers(weights, integers):
    assert integer_weights(weights) == integers


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.001, 1000) | st.integers(1, 10**9), min_size=1, max_size=20))
def test_other_weights_are_met_closely(weights):
    try:
        integers = integer_weights(weights)
    except ConfigError:
        assert min(weights) / sum(weights) < 1.01 / MAX_TOTAL_WEIGHT
        return
    assert sum(integers) <= MAX_TOTAL_WEIGHT
    shares = np.array(weights) / sum(weights)
    assert np.abs(np.array(integers) / sum(integers) - shares).max() < 2 / MAX_TOTAL_WEIGHT
    assert min(integers) >= 1


@pytest.mark.parametrize("weight", [0, -1, 0.0, float("nan"), float("inf"), "1", None, True])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(ConfigError) as caught:
        integer_weights([1, weight])
    assert str(caught.value) == (
        f"the weight {weight!r} is not a positive number; give integers or fractions, such as 3 or 0.7"
    )


def test_a_weight_that_is_next_to_nothing_is_refused():
    with pytest.raises(ConfigError) as caught:
        integer_weights([1.0, 1e-7])
    assert str(caught.value) == (
        "the weight 1e-07 is less than 1 / 65536 of all weights, [1.0, 1e-07]; raise it, or leave that dataset out"
    )


GOLDEN_CASES = {
    "two sources": ([[40, 40, 17], [9]], [3, 1], 0),
    "next seed": ([[40, 40, 17], [9]], [3, 1], 1),
    "three sources, large weights": ([[500], [30, 40], [3]], [5000, 700, 33], -7),
}


def test_mixtures_are_pinned():
    """Run with FEEDER_UPDATE_GOLDEN=1 to write the file anew; raise `feeder.mixture.ALGORITHM` when it changes."""
    found = {}
    for name, (segments, weights, seed) in GOLDEN_CASES.items():
        mixture = Mixture([make_order(of_source) for of_source in segments], weights, seed)
        found[name] = {
            f"epoch {epoch}": [[list(row) for row in step_rows(mixture, epoch, at, 7)] for at in (0, 7, 14)]
            for epoch in (0, 1)
        }
    if os.environ.get("FEEDER_UPDATE_GOLDEN"):
        lines = [f"{json.dumps(name)}: {json.dumps(epochs)}" for name, epochs in found.items()]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert json.loads(GOLDEN.read_text()) == found
