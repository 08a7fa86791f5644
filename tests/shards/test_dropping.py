"""Removing samples from a dataset; what a purge takes away is tested with the generations."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feeder.errors import ConfigError
from feeder.shards.annotating import annotate
from feeder.shards.dropping import drop
from feeder.shards.errors import ShardError, SourceError
from feeder.shards.manifest import load_manifest
from feeder.shards.reading import open_dataset
from feeder.shards.verify import verify
from feeder.shards.writing import BuildOptions, build

KEYS = ["ant/ant-00", "bee/bee-03"]


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7))
    return tmp_path / "dataset"


def test_ids_are_positions_among_what_remains(dataset: Path) -> None:
    before = open_dataset(dataset).describe(np.arange(36))
    annotate(dataset, pa.table({"key": before.keys, "number": np.arange(36)}))
    report = drop(dataset, [*KEYS, KEYS[0]])
    assert (report.dropped, report.missing, report.shards, report.rewritten, report.gone) == (2, [], 2, 0, [])
    reader = open_dataset(dataset)
    rows = reader.describe(np.arange(34))
    assert rows.keys == [key for key in before.keys if key not in KEYS]
    assert [before.keys[number] for number in reader.values(np.arange(34), "number")] == rows.keys
    with pytest.raises(IndexError):
        reader.describe(np.array([34]))
    shards = load_manifest(dataset).shards
    assert sum(shards.dropped.values()) == 2
    assert shards.digests == load_manifest(dataset / "generations" / "000000.json").shards.digests
    assert verify(dataset, "full").problems == []


def test_keys_of_no_sample_are_refused_or_told(dataset: Path) -> None:
    with pytest.raises(SourceError) as caught:
        drop(dataset, [*KEYS, "no", "nil"])
    assert str(caught.value) == (
        f"2 of 4 keys are of no sample of {dataset}: 'no', 'nil'; correct them, or leave them out with "
        "--ignore-missing; the bytes of what was dropped before go with --purge"
    )
    assert load_manifest(dataset).generation == 0
    report = drop(dataset, [*KEYS, "no", "nil"], ignore_missing=True)
    assert (report.dropped, report.missing) == (2, ["no", "nil"])
    report = drop(dataset, ["no"], ignore_missing=True)
    assert (report.dropped, report.manifest.generation) == (0, 1)


def test_what_cannot_be_dropped(dataset: Path) -> None:
    with pytest.raises(SourceError, match="^no keys to drop; expected one a line$"):
        drop(dataset, [])
    with pytest.raises(ConfigError, match="^workers is 0, expected at least 1$"):
        drop(dataset, KEYS, workers=0)
    with pytest.raises(SourceError) as caught:
        drop(dataset, open_dataset(dataset).describe(np.arange(36)).keys)
    assert str(caught.value) == f"all 36 samples of {dataset} would be dropped; remove the dataset itself"
    assert {path.name for path in dataset.iterdir() if path.name[:6] != "shard-"} == {"columns", "manifest.json"}


@pytest.mark.parametrize("format", ["tar", "arrow"])
def test_a_purge_by_several_processes_is_the_same(image_folder: Path, tmp_path: Path, format: str) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        build(image_folder, out, BuildOptions(shard_samples=3, format=format))
        images = dict(
            zip(open_dataset(out).describe(np.arange(36)).keys, open_dataset(out).read(np.arange(36))[1], strict=True)
        )
        keys = [f"{name}/{name}-{number:02d}" for name in ("ant", "bee", "cat") for number in range(0, 12, 2)]
        report = drop(out, keys, purge=True, workers=workers)
        assert report.rewritten >= 6
        assert verify(out, "full").problems == []
        rows, kept = open_dataset(out).read(np.arange(18))
        assert dict(zip(rows.keys, kept, strict=True)) == {key: images[key] for key in images if key not in keys}
    assert load_manifest(tmp_path / "1") == load_manifest(tmp_path / "2")


def test_a_damaged_shard_is_not_rewritten(dataset: Path) -> None:
    drop(dataset, KEYS)
    shards = load_manifest(dataset).shards
    path = dataset / shards.names[min(shards.dropped)]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        ShardError, match=f"^shard {path} was cut or altered: digest .*; run 'feeder verify --level full'"
    ):
        drop(dataset, [], purge=True)
    assert load_manifest(dataset).generation == 1
    assert path.read_bytes() == bytes(data)
