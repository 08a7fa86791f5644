"""The index of a shard is made again from the shard, byte for byte where the shard holds all of it."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from feeder.shards.building.writing import BuildOptions, build_tables
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.formats.index import encode_index, index_columns
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.reading.opening import load_index
from feeder.shards.repairing.index_rebuilding import rebuild_index
from feeder.shards.storage import LocalFolder
from tests.tables import write_table


@pytest.fixture(params=WRITTEN_FORMATS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    options = BuildOptions(format=request.param, shard_samples=20, shuffle=False)
    build_tables([write_table(tmp_path / "source")], tmp_path / "dataset", options)
    return tmp_path / "dataset"


def test_an_index_comes_back(dataset: Path) -> None:
    folder, manifest = LocalFolder(str(dataset)), load_manifest(dataset)
    for number, name in enumerate(manifest.shards.names):
        rebuilt = rebuild_index(SequentialShard(folder, name), manifest.format, manifest.fields)
        assert (rebuilt.damage, len(rebuilt)) == ("", manifest.shards.samples[number])
        sources = load_index(folder, manifest, number).column("source")  # which a tar does not hold
        columns = index_columns(manifest.fields, {"source": sources} | rebuilt.columns)
        index = encode_index(columns, manifest.shards.digests[number])
        assert index == (dataset / manifest.shards.index(number)).read_bytes()


def test_of_a_cut_shard_come_the_samples_before_the_cut(dataset: Path) -> None:
    folder, manifest = LocalFolder(str(dataset)), load_manifest(dataset)
    name = manifest.shards.names[0]
    index = load_index(folder, manifest, 0)
    ends = pa.array(
        [
            max(
                index.stored(field).offsets[row] + max(index.stored(field).sizes[row], 0)
                for field in index.stored_fields
            )
            for row in range(20)
        ]
    ).to_pylist()
    size = (dataset / name).stat().st_size
    for length in range(size - 1, -1, -701):
        os.truncate(dataset / name, length)
        rebuilt = rebuild_index(SequentialShard(folder, name), manifest.format, manifest.fields)
        assert rebuilt.damage.startswith(f"{dataset}/{name} is not a whole "), rebuilt.damage
        whole = sum(end <= length for end in ends)
        if manifest.format == "tar":
            assert whole - 2 <= len(rebuilt) <= whole  # the last one may lack members
        else:
            assert len(rebuilt) in ({20} if whole == 20 else {whole - whole % 16})
        if rebuilt.columns:
            assert rebuilt.columns["key"].to_pylist() == index.values("key")[: len(rebuilt)]
