"""Suggestions for a cluster: what is chosen, what is said of it, and that it is what orders do."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import feeder
from feeder.errors import ConfigError
from feeder.order import Order
from feeder.order_settings import Shuffle, resolve_settings
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import load_manifest
from feeder.shuffle_advice import suggest_shuffle

REFERENCE = {"samples": 45_500_000, "shards": 80_000, "nodes": 125, "global_batch": 256_000}


def test_the_reference_job() -> None:
    advice = suggest_shuffle(**REFERENCE)
    assert advice.shuffle == Shuffle(window_shards=8, sticky_shards=True, lanes=1000)
    assert (advice.steps, advice.samples_per_epoch) == (177, 45_312_000)
    suggested = advice.suggested
    assert suggested.transit_bytes == 8 * (8 + 3) << 26
    assert suggested.node_bytes == 641 << 26  # of 640 whole shards, one is cut at either end
    assert suggested.cluster_bytes == pytest.approx(80_000 << 26, rel=0.01)
    assert 0 < suggested.lost_node_bytes < suggested.lost_node_worst_bytes < 80_000 << 26
    assert suggested.same_shard_pairs == pytest.approx(256_000**2 / 2 / (8 * 1000), rel=0.05)
    power = next(way for way in advice.alternatives if way.shuffle.lanes == 1024)
    assert power.node_bytes > 1.15 * suggested.node_bytes  # nodes share lanes
    assert power.cluster_bytes > 1.1 * suggested.cluster_bytes


@pytest.mark.parametrize(
    ("changes", "lanes"),
    [
        ({"nodes": 128, "global_batch": 128 * 2048}, 1024),
        ({"nodes": 1, "global_batch": 2048}, 8),
        ({"nodes": 3, "global_batch": 3 * 2048}, 24),
        ({"shards": 32, "samples": 18_000, "nodes": 1, "global_batch": 2048}, 2),
        ({"shards": 1000, "nodes": 125, "global_batch": 256_000}, 25),  # two and a half nodes a lane, whole ones
        ({"shards": 1, "samples": 500, "nodes": 1, "global_batch": 8}, 1),
    ],
)
def test_lanes_are_about_eight_a_node_and_shared_alike(changes: dict[str, int], lanes: int) -> None:
    assert suggest_shuffle(**{**REFERENCE, **changes}).shuffle.lanes == lanes


def test_the_window_fits_the_cache_and_follows_the_manifest() -> None:
    assert suggest_shuffle(**REFERENCE, shuffled_when_written=False).shuffle.window_shards == "all"
    smaller = suggest_shuffle(**REFERENCE, cache_bytes=4 * 10**9)
    assert smaller.shuffle.window_shards == 4
    assert smaller.suggested.transit_bytes <= 4 * 10**9
    assert smaller.notes == (
        "the window is 4 shards rather than 8, so that what is on its way fits into 4.0 GB of cache",
        "a node's cache holds 1% of the shards that it needs in every epoch; it reads the others again each time",
    )
    none = suggest_shuffle(**REFERENCE, cache_bytes=10**8)
    assert none.notes[0] == (
        "even with a window of 1 shard 2.1 GB are on their way on a node, more than its 0.1 GB of cache: give it more,"
        " or write smaller shards"
    )
    assert suggest_shuffle(**REFERENCE, cache_bytes=60 * 10**9).notes == ()
    assert suggest_shuffle(**{**REFERENCE, "shards": 1000}).notes == (
        "1000 shards make 25 lanes for 125 nodes, so that nodes need the same shards; smaller shards would help",
    )


def test_pairs_and_spread_are_those_of_orders() -> None:
    advice = suggest_shuffle(samples=25_600, shards=640, nodes=5, gpus_per_node=2, global_batch=330, shard_bytes=1000)
    segments = np.full(640, 40)
    for way in (advice.suggested, *advice.alternatives):
        pairs, counts = [], []
        for seed in range(3):
            settings = resolve_settings(
                way.shuffle, seed=seed, segment_samples=segments, shuffled_when_written=True, global_batch=330
            )
            order = Order(segments, settings)
            for step in range(order.steps(330)):
                of_shards = np.bincount(order.rank_batch(0, step * 330, 330, 0, 1).ids // 40, minlength=640)
                pairs.append(int((of_shards * (of_shards - 1)).sum()) / 2)
                counts.append(of_shards)
        assert way.same_shard_pairs == pytest.approx(np.mean(pairs), rel=0.1)
        spread = np.sqrt(np.mean((np.array(counts) - 330 / 640) ** 2) / (330 * (1 - 1 / 640) / 640))
        assert way.class_spread == pytest.approx(spread, rel=0.1)


def test_the_text_is_a_table() -> None:
    advice = suggest_shuffle(**REFERENCE, cache_bytes=20 * 10**9)
    lines = str(advice).splitlines()
    assert lines[0] == "45,500,000 samples in 80,000 shards of 67.1 MB"
    assert lines[1] == "125 x 8 GPUs (nodes x GPUs of one), global batch 256,000"
    assert lines[3] == "suggested: feeder.Shuffle(window_shards=8, lanes=1000)"
    table = lines[5 : 7 + len(advice.alternatives)]
    assert len({len(line) for line in table}) == 1
    assert table[1].split()[:4] == ["1,000", "8.00", "8", "5.9"]
    assert all(len(line) <= 120 for line in lines[:-1])
    assert lines[-1].startswith("note: a node's cache holds 33% of the shards")
    assert json.loads(json.dumps(advice.to_json()))["suggested"]["shuffle"]["lanes"] == 1000


def test_datasets_manifests_and_paths_say_the_same(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=2))
    manifest = load_manifest(tmp_path / "dataset")
    dataset = feeder.ImageDataset(tmp_path / "dataset", batch_size=4, transform=feeder.presets.imagenet_eval(32))
    found = [
        feeder.suggest_shuffle(given, nodes=1, gpus_per_node=1, global_batch=4)
        for given in (tmp_path / "dataset", str(tmp_path / "dataset"), manifest, dataset)
    ]
    assert all(advice == found[0] for advice in found)
    assert (found[0].job.samples, found[0].job.shards) == (36, 18)
    folder = feeder.suggest_shuffle(image_folder, nodes=1, gpus_per_node=1, global_batch=4)
    assert (folder.job.shards, folder.shuffle.window_shards, folder.shuffle.lanes) == (1, "all", 1)


def test_arguments_that_cannot_be() -> None:
    for changes, sentence in (
        ({"nodes": 0}, "nodes is 0; it must be an integer of at least 1"),
        ({"global_batch": 999}, "global_batch is 999; it must be an integer of at least 1000"),
        ({"samples": 100}, "samples is 100; it must be an integer of at least 80000"),
        ({"shards": None}, "neither a dataset nor its samples and shards are given; give one or the other"),
        (
            {"samples": 200_000},
            (
                "the global batch is 256000 and there are 200000 samples, so that an epoch would have no step; lower"
                " the global batch"
            ),
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            suggest_shuffle(**{**REFERENCE, **changes})  # type: ignore[arg-type]
        assert str(caught.value) == sentence


def test_advice_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        suggest_shuffle(**REFERENCE).steps = 3  # type: ignore[misc]
