"""Formulas of traffic, held against orders that are walked through step by step."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from feeder.lanes import Job, moved_bytes, node_bytes, node_shares
from feeder.order import Order
from feeder.order_settings import Shuffle, resolve_settings

SIZE = 40  # samples of a shard


def a_job(shards: int = 640, nodes: int = 5, node_batch: int = 32, **changes: int) -> Job:
    job = Job(samples=shards * SIZE, shards=shards, shard_bytes=1.0, nodes=nodes, global_batch=node_batch * nodes)
    return dataclasses.replace(job, **changes)


def shards_of_nodes(job: Job, lanes: int) -> NDArray[np.bool_]:
    """Return bool[nodes, shards]: which shards the ranks of each node read in an epoch."""
    segments = np.full(job.shards, SIZE)
    settings = resolve_settings(
        Shuffle(lanes=lanes, window_shards=4),
        seed=0,
        segment_samples=segments,
        shuffled_when_written=True,
        global_batch=job.global_batch,
    )
    order = Order(segments, settings)
    reads = np.zeros((job.nodes, job.shards), np.bool_)
    for step in range(order.steps(job.global_batch)):
        for node in range(job.nodes):
            part = order.rank_batch(0, step * job.global_batch, job.global_batch, node, job.nodes)
            reads[node, part.ids[part.valid] // SIZE] = True
    return reads


@pytest.mark.parametrize(
    ("job", "lanes"),
    [
        (a_job(), 40),  # eight lanes a node
        (a_job(), 32),  # nodes share lanes
        (a_job(nodes=4), 40),
        (a_job(nodes=3, node_batch=30), 32),  # the lanes do not divide the global batch: the cuts wander
        (a_job(shards=300, nodes=7, node_batch=20), 16),
        (a_job(shards=128, nodes=8), 4),  # two nodes a lane
        (a_job(nodes=1), 8),
    ],
)
def test_what_nodes_read(job: Job, lanes: int) -> None:
    read = shards_of_nodes(job, lanes).sum(axis=1)
    expected = node_bytes(job, node_shares(job, lanes))
    assert expected == pytest.approx(read, rel=0.08)
    assert expected.sum() == pytest.approx(read.sum(), rel=0.03)


@pytest.mark.parametrize(("nodes", "lanes"), [(5, 40), (5, 32), (8, 64), (2, 16)])
def test_what_losing_a_node_moves(nodes: int, lanes: int) -> None:
    job, left = a_job(nodes=nodes), a_job(nodes=nodes - 1)
    before, after = shards_of_nodes(job, lanes), shards_of_nodes(left, lanes)
    moved = [int((after & ~np.delete(before, lost, axis=0)).sum()) for lost in range(nodes)]
    mean, worst = moved_bytes(job, node_shares(job, lanes), node_shares(left, lanes))
    assert mean == pytest.approx(np.mean(moved), rel=0.08)
    assert worst == pytest.approx(max(moved), rel=0.1)


def test_one_node_has_nobody_to_lose() -> None:
    job = a_job(nodes=1)
    assert moved_bytes(job, node_shares(job, 8), node_shares(job, 8)) == (0.0, 0.0)


def test_every_sample_of_a_lane_goes_to_some_node() -> None:
    shares = node_shares(a_job(nodes=7, node_batch=19), 30)
    assert shares.sum(axis=0) == pytest.approx(1)
    assert shares.sum(axis=1) == pytest.approx(30 / 7, rel=0.01)
