"""Formulas of traffic and mixing, held against orders that are walked through step by step."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from feeder.lanes import (
    Job,
    class_spread,
    moved_bytes,
    node_bytes,
    node_shares,
    same_shard_probability,
)
from feeder.order import Order, Shuffle, resolve_settings

SIZE = 40  # samples of a shard


def a_job(shards: int = 640, nodes: int = 5, node_batch: int = 32, **changes: int) -> Job:
    job = Job(samples=shards * SIZE, shards=shards, shard_bytes=1.0, nodes=nodes, global_batch=node_batch * nodes)
    return dataclasses.replace(job, **changes)


def order_of(job: Job, lanes: int, window: int | None, seed: int = 0) -> Order:
    segments = np.full(job.shards, job.samples // job.shards)
    shuffle = Shuffle(lanes=lanes, window_shards="all" if window is None else window)
    settings = resolve_settings(
        shuffle, seed=seed, segment_samples=segments, shuffled_when_written=True, global_batch=job.global_batch
    )
    return Order(segments, settings)


def shards_of_nodes(job: Job, lanes: int, window: int | None = 4) -> NDArray[np.bool_]:
    """Return bool[nodes, shards]: which shards the ranks of each node read in an epoch."""
    order = order_of(job, lanes, window)
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


def pairs_of_one_shard(job: Job, lanes: int, window: int | None) -> float:
    """Return the part of the pairs of samples of a global batch that come from one shard, on average."""
    found = steps = 0
    for seed in range(3):
        order = order_of(job, lanes, window, seed)
        for epoch in range(2):
            for step in range(0, order.steps(job.global_batch), 2):
                ids = order.rank_batch(epoch, step * job.global_batch, job.global_batch, 0, 1).ids
                counts = np.bincount(ids // SIZE)
                found, steps = found + int((counts * (counts - 1)).sum()) // 2, steps + 1
    return found / steps / (job.global_batch * (job.global_batch - 1) / 2)


@pytest.mark.parametrize(
    ("lanes", "window"), [(40, 4), (40, 2), (40, None), (8, 8), (8, 1), (1, 16), (4, 0), (160, None)]
)
def test_how_often_a_batch_has_two_samples_of_a_shard(lanes: int, window: int | None) -> None:
    job = a_job(node_batch=66)  # of a few lanes it does not take whole shards, which would fall into step
    expected = same_shard_probability(job, lanes, window)
    assert expected == pytest.approx(pairs_of_one_shard(job, lanes, window), rel=0.1)


def test_the_whole_lane_is_as_good_as_a_full_shuffle() -> None:
    job = a_job(node_batch=64)
    full = (SIZE - 1) / (job.samples - 1)
    assert same_shard_probability(job, 8, None) == pytest.approx(full, rel=0.03)
    assert class_spread(job, full) == pytest.approx(1)
    large = Job(samples=45_500_000, shards=80_000, shard_bytes=1.0, nodes=125, global_batch=256_000)
    assert same_shard_probability(large, 1000, 8) == pytest.approx(1 / (8 * 1000), rel=0.1)


def test_how_far_classes_stray_where_each_shard_holds_one() -> None:
    job = a_job(node_batch=64)
    for lanes, window in ((8, 4), (32, 4), (8, None)):
        shares = []
        for seed in range(4):
            order = order_of(job, lanes, window, seed)
            for step in range(order.steps(job.global_batch)):
                ids = order.rank_batch(0, step * job.global_batch, job.global_batch, 0, 1).ids
                shares.append(np.bincount(ids // SIZE // 64, minlength=10))  # ten classes of 64 shards
        spread = np.array(shares).std() / np.sqrt(job.global_batch * 0.1 * 0.9)
        assert class_spread(job, same_shard_probability(job, lanes, window)) == pytest.approx(spread, rel=0.15)
