"""Random jobs with decoded images: the batches of a job that changes on the way are those of an undisturbed one.

What `test_elasticity` shows for positions, shown here for whole batches, through datasets that are opened anew in each
phase of a job and know no more than the state as JSON. FEEDER_NIGHTLY=1 runs more, and other ones each time.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeder import ImageDataset, RandomHorizontalFlip, RandomResizedCrop, Shuffle, mix
from feeder.shards.building.writing import BuildOptions, build
from tests.images import write_image_folder

NIGHTLY = os.environ.get("FEEDER_NIGHTLY") == "1"
TRANSFORM = (RandomResizedCrop(16), RandomHorizontalFlip())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two datasets of the same classes: 36 samples in shards of 5, and 10 in shards of 3."""
    root = tmp_path_factory.mktemp("elastic")
    write_image_folder(root / "many-images")
    write_image_folder(root / "few-images", classes=("ant", "bee", "cat"), per_class=4, first=100)
    build(root / "many-images", root / "many", BuildOptions(shard_samples=5))
    build(root / "few-images", root / "few", BuildOptions(shard_samples=3))
    return root / "many", root / "few"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a job between two checkpoints."""

    steps: int
    data_ranks: int
    replicas: int
    workers: int
    batch_size: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job is told about its data, in every phase."""

    seed: int
    shuffle: Shuffle
    weights: tuple[int, int] | None  # None for the first dataset alone
    selection: dict

    def open(self, sources, global_batch, **changes):
        """Open the data of one rank."""
        chosen = {"transform": TRANSFORM, "shuffle": self.shuffle, "seed": self.seed, "arrays": "numpy"}
        chosen |= {**self.selection, **changes}
        opened = [ImageDataset(source, global_batch_size=global_batch, **chosen) for source in sources]
        if self.weights is None:
            return opened[0]
        return mix(list(zip(opened, self.weights, strict=True)), seed=self.seed)


plans = st.builds(
    Plan,
    seed=st.integers(0, 1000),
    shuffle=st.builds(
        Shuffle,
        lanes=st.integers(1, 4),
        window_shards=st.sampled_from(["all", 0, 2]),
        sticky_shards=st.booleans(),
    ),
    weights=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
    selection=st.sampled_from([{}, {"where": "label != 1"}, {"balance": "label"}, {"limit": 0.8, "exclude": [0, 7]}]),
)
jobs = st.lists(
    st.builds(
        Phase,
        steps=st.integers(0, 4),
        data_ranks=st.integers(1, 4),
        replicas=st.integers(1, 2),
        workers=st.integers(1, 3),
        batch_size=st.integers(1, 4),
        threads=st.integers(1, 2),
    ),
    min_size=2,
    max_size=3,
)


def rows(batch):
    """Return what must be equal of each valid row of a batch, pixels included."""
    sources = batch.get("source", np.zeros(len(batch["id"]), np.int64))
    return [
        (
            int(sources[row]),
            int(batch["id"][row]),
            batch["key"][row],
            int(batch["label"][row]),
            hashlib.blake2b(batch["image"][row].tobytes(), digest_size=8).hexdigest(),
            tuple(batch["crop"][row].tolist()),
            bool(batch["flip"][row]),
        )
        for row in np.flatnonzero(batch["valid"])
    ]


def run_rank(plan, sources, state, phase, rank):
    """Run one rank of a phase from a state; return its batches."""
    global_batch = phase.batch_size * phase.data_ranks
    placement = {"rank": rank, "world_size": phase.data_ranks * phase.replicas, "replicate": phase.replicas}
    dataset = plan.open(sources, global_batch, threads=phase.threads, **placement)
    if state is not None:
        dataset.load_state_dict(state)
    start = dataset.state_dict()
    streams = [
        dataset.stream(epoch=start["epoch"], position=start["position"], worker=worker, workers=phase.workers)
        for worker in range(phase.workers)
    ]
    if phase.workers == 1:
        streams = [iter(dataset)]
    turns = itertools.cycle(streams)
    batches = list(itertools.takewhile(bool, (next(next(turns), None) for _ in range(phase.steps))))
    dataset.close()
    return batches


def run_job(plan, sources, job):
    """Run all phases; return (epoch, position, global batch, rows of all ranks) of each step."""
    found, state = [], None
    for phase in job:
        ranks = [run_rank(plan, sources, state, phase, rank) for rank in range(phase.data_ranks * phase.replicas)]
        assert len({len(batches) for batches in ranks}) == 1
        for step in zip(*ranks, strict=True):
            assert len({(batch["epoch"], batch["position"], json.dumps(batch["state"])) for batch in step}) == 1
            assert {batch["image"].shape for batch in step} == {(phase.batch_size, 16, 16, 3)}
            for replica in range(phase.replicas):
                assert [rows(batch) for batch in step[replica :: phase.replicas]] == [
                    rows(batch) for batch in step[:: phase.replicas]
                ]
            whole = [row for batch in step[:: phase.replicas] for row in rows(batch)]
            found.append((step[0]["epoch"], step[0]["position"], phase.batch_size * phase.data_ranks, whole))
            state = json.loads(json.dumps(step[0]["state"]))
    return found


@settings(
    deadline=None,
    max_examples=150 if NIGHTLY else 10,
    derandomize=not NIGHTLY,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(plan=plans, job=jobs)
def test_batches_are_those_of_an_undisturbed_job(sources, plan, job):
    found = run_job(plan, sources, job)
    seen = {}
    for number, (epoch, position, global_batch, of_step) in enumerate(found):
        undisturbed = plan.open(sources, global_batch, rank=0, world_size=1)
        assert Counter(of_step) == Counter(rows(undisturbed.batch_at(epoch=epoch, position=position)))
        undisturbed.close()
        if number and found[number - 1][0] == epoch:
            assert position == sum(found[number - 1][1:3]), "nothing is repeated or left out"
        if plan.weights is None and "balance" not in plan.selection:
            for row in of_step:
                assert seen.setdefault((epoch, row[1]), number) == number, "a sample occurs once an epoch"
