"""Exactly once, equal steps, the same sequence: whatever the world size, workers and batch, and wherever a job resumes.

A random job is a plan (an order or a mixture) and phases. A phase runs some steps on so many ranks and workers, with a
batch of its own, and is cut off anywhere; the next one has nothing but its state. FEEDER_NIGHTLY=1 runs 10,000 random
jobs, new ones each time, instead of the same 200.
"""

import itertools
import json
import os
import pickle
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeder.copies import copies_of
from feeder.mixture import Mixture, MixtureSettings, SourceSettings
from feeder.order import Order
from feeder.order_settings import Shuffle, resolve_settings
from feeder.placement import Placement, data_placement
from feeder.state import State

NIGHTLY = os.environ.get("FEEDER_NIGHTLY") == "1"
thorough = settings(
    deadline=None,
    max_examples=10_000 if NIGHTLY else 200,
    derandomize=not NIGHTLY,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What is known of a dataset without its shards."""

    segments: tuple[int, ...]
    quotas: tuple[int, ...] | None  # copies of each sample, in units of 1 / unit
    unit: int

    def table(self):
        """Return the table of copies, or None."""
        return None if self.quotas is None else copies_of(np.asarray(self.quotas, np.uint8), self.unit)

    def check_epoch(self, rows):
        """Hold the (id, copy) of a whole epoch against what they should be: with fractions, one of two numbers."""
        quotas = (1,) * sum(self.segments) if self.quotas is None else self.quotas
        found = Counter(sample for sample, _ in rows)
        assert sorted(rows) == [(sample, copy) for sample in sorted(found) for copy in range(found[sample])]
        for sample, quota in enumerate(quotas):
            assert quota // self.unit <= found[sample] <= -(-quota // self.unit)
        assert len(rows) == sum(quotas) // self.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a job between two checkpoints."""

    steps: int
    data_ranks: int
    replicas: int
    grouped: bool  # replicas are every so many ranks, not consecutive ones
    workers: int
    global_batch: int

    def placements(self):
        """Return the data placement of every rank."""
        world_size = self.data_ranks * self.replicas
        groups = [list(range(first, world_size, self.data_ranks)) for first in range(self.data_ranks)]
        return [
            data_placement(Placement(rank=rank, world_size=world_size), groups if self.grouped else self.replicas)
            for rank in range(world_size)
        ]


@st.composite
def datasets(draw_from):
    """Datasets with empty and tiny segments, some with samples that are left out, repeated, or in some epochs only."""
    segments = tuple(draw_from(st.lists(st.integers(0, 1) | st.integers(0, 25), min_size=1, max_size=8).filter(any)))
    samples = sum(segments)
    quotas = draw_from(st.none() | st.lists(st.integers(0, 7), min_size=samples, max_size=samples).filter(any))
    if quotas is None:
        return Dataset(segments=segments, quotas=None, unit=1)
    unit = draw_from(st.integers(1, 5))
    quotas[0] += -sum(quotas) % unit  # an epoch has a whole number of rows
    return Dataset(segments=segments, quotas=tuple(quotas), unit=unit)


@st.composite
def order_settings(draw_from, dataset):
    """What a user may ask of an order."""
    table = dataset.table()
    positions = sum(dataset.segments) if table is None else table.num_rows
    shuffle = draw_from(
        st.booleans()
        | st.builds(
            Shuffle,
            window_shards=st.sampled_from(["auto", "all", 0, 1, 3]),
            sticky_shards=st.booleans(),
            lanes=st.just("auto") | st.integers(1, positions),
        )
    )
    return resolve_settings(
        shuffle,
        seed=draw_from(st.integers(-3, 3) | st.integers(-(2**100), 2**100)),
        segment_samples=np.asarray(dataset.segments),
        shuffled_when_written=draw_from(st.booleans()),
        global_batch=draw_from(st.integers(1, 1000)),
        copies=table,
    )


@st.composite
def plans(draw_from):
    """Return the datasets of a plan, and its settings as they stand in a state."""
    sources = draw_from(st.lists(datasets(), min_size=1, max_size=3))
    orders = [draw_from(order_settings(dataset)) for dataset in sources]
    if len(sources) == 1 and draw_from(st.booleans()):
        return sources, orders[0]
    weights = [draw_from(st.integers(1, 5) | st.integers(1, 3000)) for _ in sources]
    mixed = tuple(
        SourceSettings(name=str(number), dataset=str(number), weight=weight, order=order)
        for number, (weight, order) in enumerate(zip(weights, orders, strict=True))
    )
    length = draw_from(st.integers(1, 120))
    return sources, MixtureSettings(seed=draw_from(st.integers(-3, 3)), length=length, sources=mixed)


def phases():
    """Return a strategy for jobs of one to four phases."""
    phase = st.builds(
        Phase,
        steps=st.integers(0, 7),
        data_ranks=st.integers(1, 6),
        replicas=st.integers(1, 3),
        grouped=st.booleans(),
        workers=st.integers(1, 3),
        global_batch=st.integers(1, 40),
    )
    return st.lists(phase, min_size=1, max_size=4)


def make_plan(sources, chosen):
    """Return a new plan, as a process that just started would make it from a state."""
    if isinstance(chosen, MixtureSettings):
        orders = [make_plan([dataset], of.order) for dataset, of in zip(sources, chosen.sources, strict=True)]
        return Mixture(orders, [of.weight for of in chosen.sources], chosen.seed, chosen.length)
    return Order(np.asarray(sources[0].segments), chosen, sources[0].table())


def rows(batch):
    """Return (source, own epoch, id, copy) of the valid rows of a rank's batch."""
    columns = (batch.sources, batch.epochs, batch.ids, batch.copies)
    return list(zip(*(column[batch.valid].tolist() for column in columns), strict=True))


def by_source(found):
    """Return rows source by source: the part of a step's sequence that ranks may not change."""
    return sorted(found, key=lambda row: row[0])


def run_rank(plan, epoch, position, phase, placement, steps):
    """Return a rank's batches, from workers that each have a plan of their own and take turns."""
    positions = [position + step * phase.global_batch for step in range(steps)]
    workers = [pickle.loads(pickle.dumps(plan)) for _ in range(phase.workers)]
    return [
        (
            at,
            workers[step % phase.workers].rank_batch(
                epoch, at, phase.global_batch, placement.rank, placement.world_size
            ),
        )
        for step, at in enumerate(positions)
    ]


def run_phase(plan, state, phase):
    """Run a phase within one epoch; return its steps as (epoch, position, rows), and the state behind them."""
    epoch, position = state.epoch, state.position
    steps = min(phase.steps, plan.steps(phase.global_batch, position))
    placements = phase.placements()
    ranks = [run_rank(plan, epoch, position, phase, placement, steps) for placement in placements]
    assert {len(batches) for batches in ranks} == {steps}
    found = []
    for step in range(steps):
        (at,) = {batches[step][0] for batches in ranks}
        by_rank = {}
        for placement, batches in zip(placements, ranks, strict=True):
            of_rank = by_rank.setdefault(placement.rank, rows(batches[step][1]))
            assert of_rank == rows(batches[step][1]), "the ranks of a group receive the same batches"
        assert {len(batches[step][1].ids) for batches in ranks} == {-(-phase.global_batch // phase.data_ranks)}
        assert sorted(by_rank) == list(range(phase.data_ranks))
        counts = [len(by_rank[rank]) for rank in sorted(by_rank)]
        assert max(counts) - min(counts) <= 1
        found.append((epoch, at, [row for rank in sorted(by_rank) for row in by_rank[rank]]))
    return found, replace(state, position=position + steps * phase.global_batch)


def run_job(sources, chosen, job):
    """Run all phases, each from the state of the one before as JSON; return the steps and the last state."""
    state = State(dataset="", order=chosen, epoch=0, position=0, engine="", pixels=1)
    found = []
    for phase in job:
        restored = State.from_json(json.loads(json.dumps(state.to_json())))
        plan = make_plan(sources, restored.order)
        fitting = replace(phase, global_batch=max(phase.data_ranks, min(phase.global_batch, plan.num_positions)))
        if plan.steps(fitting.global_batch, restored.position) == 0:
            restored = replace(restored, epoch=restored.epoch + 1, position=0)
        steps, state = run_phase(plan, restored, fitting)
        found += [(*step, fitting.global_batch) for step in steps]
    return found, state


@thorough
@given(plans(), phases())
def test_a_job_that_changes_on_the_way_sees_what_an_undisturbed_one_sees(parts, job):
    sources, chosen = parts
    found, state = run_job(sources, chosen, job)
    plan = make_plan(sources, chosen)
    sequences = {}
    for epoch in range(state.epoch + 1):
        batches = (plan.rank_batch(epoch, position, 1, 0, 1) for position in range(plan.num_positions))
        sequences[epoch] = [rows(batch)[0] for batch in batches]
    for epoch, position, of_step, global_batch in found:
        assert Counter(of_step) == Counter(sequences[epoch][position : position + global_batch])
        assert by_source(of_step) == by_source(rows(plan.rank_batch(epoch, position, global_batch, 0, 1)))
    for (epoch, position, _, global_batch), (next_epoch, next_position, *_) in itertools.pairwise(found):
        assert next_epoch >= epoch
        assert next_position == (position + global_batch if next_epoch == epoch else 0), "nothing repeated or left out"
    check_exactly_once(sources, chosen, sequences)


def check_exactly_once(sources, chosen, sequences):
    """Hold whole epochs against the datasets: of a mixture, those of each source."""
    own_epochs = defaultdict(list)
    for epoch in sorted(sequences):
        for source, own_epoch, sample, copy in sequences[epoch]:
            own_epochs[source, own_epoch].append((sample, copy))
    last = {source: max(epoch for of, epoch in own_epochs if of == source) for source, _ in own_epochs}
    for (source, epoch), own_rows in own_epochs.items():
        if not isinstance(chosen, MixtureSettings) or epoch < last[source]:
            sources[source].check_epoch(own_rows)
        else:
            assert len(set(own_rows)) == len(own_rows), "the own epoch that is under way repeats nothing"
    for source, epoch in last.items():
        assert {of_epoch for of, of_epoch in own_epochs if of == source} == set(range(epoch + 1))


def cluster_order(segments, samples, global_batch):
    """Return the default order of a large dataset whose shards vary in size."""
    sizes = np.full(segments, samples // segments)
    sizes[: samples % segments] += 1
    sizes[::2] += 9
    sizes[1::2] -= 9
    chosen = resolve_settings(
        True, seed=7, segment_samples=sizes, shuffled_when_written=True, global_batch=global_batch
    )
    return Order(sizes, chosen)


def step_of_all_ranks(order, epoch, position, global_batch, world_size):
    """Return the ids of a step, rank after rank; every rank has a batch of one length, filled up evenly."""
    parts = [order.rank_batch(epoch, position, global_batch, rank, world_size) for rank in range(world_size)]
    assert {len(part.ids) for part in parts} == {-(-global_batch // world_size)}
    counts = [int(part.valid.sum()) for part in parts]
    assert max(counts) - min(counts) <= 1
    return np.concatenate([part.ids[part.valid] for part in parts])


def test_125_then_124_then_63_nodes_on_paper():
    """45.5 M samples in 80,000 shards, 256 a GPU, 8 GPUs a node: whole steps around the changes."""
    samples = 45_500_000
    order = cluster_order(80_000, samples, 256_000)
    assert order.settings.lanes == 1024
    assert order.num_positions == samples
    seen = np.zeros(samples, bool)
    position = 0
    for nodes, steps in ((125, 60), (124, 60), (63, None)):
        world_size, global_batch = 8 * nodes, 256 * 8 * nodes
        run = order.steps(global_batch, position) if steps is None else steps
        looked_at = (0, run - 1) if NIGHTLY else (run - 1,) if nodes != 63 else (0,)
        for step in looked_at:
            at = position + step * global_batch
            ids = step_of_all_ranks(order, 3, at, global_batch, world_size)
            assert len(ids) == global_batch
            assert not seen[ids].any()
            seen[ids] = True
            assert np.count_nonzero(seen[ids]) == global_batch, "nothing occurs twice in a step"
            if NIGHTLY:
                assert ids.tolist() == order.rank_batch(3, at, global_batch, 0, 1).ids.tolist()
        position += run * global_batch
    assert 0 <= samples - position < 256 * 8 * 63


def test_125_then_124_then_63_nodes_in_small():
    """The same job with a hundredth of the shards and of the batch, every step of an epoch: 2.56 samples a rank."""
    order = cluster_order(800, 113_750, 2560)
    seen = np.zeros(113_750, np.uint8)
    position = 0
    for nodes, steps in ((125, 15), (124, 15), (63, None)):
        world_size, global_batch = 8 * nodes, 2560 * nodes // 125
        for _ in range(order.steps(global_batch, position) if steps is None else steps):
            np.add.at(seen, step_of_all_ranks(order, 0, position, global_batch, world_size), 1)
            position += global_batch
    left = order.rank_batch(0, position, 2560, 0, 1)
    assert int(left.valid.sum()) == 113_750 - position < 2560 * 63 // 125
    np.add.at(seen, left.ids[left.valid], 1)
    assert set(seen.tolist()) == {1}
