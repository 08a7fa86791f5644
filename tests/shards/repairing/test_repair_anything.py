"""Whatever is damaged, in a local dataset or behind a URL: a repair loses no more than it must and makes nothing up."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.changing.dropping import drop
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import ShardError
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.repair import repair
from feeder.shards.repairing.verify import verify
from tests.images import write_image_folder
from tests.tables import write_table

Content = dict[str, Any]

UNKNOWABLE = (  # what a repair says where nothing tells it more
    "nothing is left to check",
    "the only record of which of its samples were dropped",
    "samples that were dropped are back",
    "how many samples were in",
)


def contents(dataset: str | Path) -> dict[str, Content]:
    """Every field of every sample, by key."""
    reader = open_dataset(dataset)
    ids = np.arange(reader.manifest.num_samples)
    columns: dict[str, list[Any]] = {}
    for name, field in reader.manifest.fields.items():
        columns[name] = reader.read(ids, name)[1] if field.stored else reader.values(ids, name)
    keys = reader.describe(ids).keys
    return {key: {name: column[row] for name, column in columns.items()} for row, key in enumerate(keys)}


@pytest.fixture(params=WRITTEN_FORMATS, scope="module")
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dataset with every type of field, and one that some samples were dropped from."""
    place = tmp_path_factory.mktemp("sources")
    rich, dropped = place / "rich", place / "dropped"
    options = BuildOptions(format=request.param, shard_samples=8, shuffle=False)
    build_tables([write_table(place / "table")], rich, options)
    build(write_image_folder(place / "images"), dropped, BuildOptions(format=request.param, shard_samples=9))
    drop(dropped, ["ant/ant-01", "bee/bee-02"])
    return [rich, dropped]


def damage(dataset: Path, chance: random.Random) -> list[str]:
    """Remove, cut, flip or wipe a few files; say what was done."""
    files = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
    done = []
    for path in chance.sample(files, chance.randint(1, 3)):
        size = path.stat().st_size
        kind = chance.choice(["remove", "cut", "flip", "wipe"])
        data = bytearray(path.read_bytes())
        if kind == "remove":
            path.unlink()
        elif kind == "cut":
            os.truncate(path, chance.randrange(size))
        else:
            start = chance.randrange(size)
            if kind == "flip":
                data[start] ^= 1 << chance.randrange(8)
            else:
                data[start : start + 512] = bytes(len(data[start : start + 512]))
            path.write_bytes(data)
        done.append(f"{kind} {path.name}")
    return done


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_damaged(sources: list[Path], tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    source = sources[seed % 2]
    dataset = tmp_path / "dataset"
    shutil.copytree(source, dataset)
    before = contents(source)
    done = damage(dataset, chance)
    report = repair(dataset, write=True, classes=load_manifest(source).classes)
    assert report.beyond == [], done
    assert verify(dataset, "full").problems == [], done
    assert repair(dataset, write=True).sentences == [], done
    after = contents(dataset)
    if any(words in sentence for words in UNKNOWABLE for sentence in report.sentences):
        return
    assert after == {key: before[key] for key in after}, done
    assert len(after) + sum(sample.samples for sample in report.lost) == len(before), done


def test_a_dataset_behind_a_url(sources: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    url = f"memory://repair-{os.getpid()}/set"
    memory.put(str(sources[0]), url.removeprefix("memory:/"), recursive=True)
    try:
        before = contents(url)
        manifest = load_manifest(url)
        name = f"{url}/{manifest.shards.names[0]}"
        memory.pipe(name, memory.cat(name)[:-4000])
        memory.rm(f"{url}/{manifest.shards.index(1)}")
        plan = repair(url)
        assert len(plan.sentences) == 2
        with pytest.raises(ShardError):
            contents(url)
        elsewhere = repair(url, out=tmp_path / "out")
        assert (elsewhere.sentences, elsewhere.written) == (plan.sentences, str(tmp_path / "out"))
        report = repair(url, write=True)
        assert report.manifest == elsewhere.manifest
        assert verify(url, "full").problems == []
        after = contents(url)
        assert after == {key: before[key] for key in after}
        assert len(after) + len(report.lost) == len(before)
        memory.rm(f"{url}/manifest.json")
        assert len(repair(url, write=True, classes=manifest.classes).sentences) == 1
        assert contents(url) == after
        assert repair(url).sentences == []
    finally:
        memory.rm(f"/repair-{os.getpid()}", recursive=True)
