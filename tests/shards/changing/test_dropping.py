"""Removing samples from a dataset; what a purge takes away is tested with the generations."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.appending import append
from feeder.shards.changing.dropping import drop
from feeder.shards.dataset.loading import load_index
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import ShardError, ShardsError, SourceError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import open_source
from feeder.shards.storage import LocalFolder
from tests.images import encoded, write_image_folder

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
    manifest = load_manifest(dataset)
    number = min(manifest.shards.dropped)
    path = dataset / manifest.shards.names[number]
    offset = load_index(LocalFolder(str(dataset)), manifest, number).image.offsets[0]
    whole = path.read_bytes()
    for damaged, sentence in (
        (whole[: offset + 40] + b"?" + whole[offset + 41 :], f"^{path} was altered at offset {offset}: CRC-32C"),
        (whole[: offset + 40], f"^{path} changed while it was read"),
        (None, f"^{path} vanished while it was read"),
    ):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        before = {name: name.read_bytes() for name in dataset.rglob("*") if name.is_file()}
        with pytest.raises(ShardsError, match=sentence):
            drop(dataset, [], purge=True)
        assert {name: name.read_bytes() for name in dataset.rglob("*") if name.is_file()} == before


def test_a_shard_of_which_a_sample_cannot_be_read_is_not_rewritten(dataset: Path) -> None:
    """Else the old one, with the bytes that are to go, would stay."""
    drop(dataset, KEYS)
    shards = load_manifest(dataset).shards
    path = dataset / shards.names[min(shards.dropped)]
    path.unlink()
    path.mkdir()
    with pytest.raises(ShardError) as caught:
        drop(dataset, [], purge=True)
    assert str(caught.value).startswith(f"6 of 6 samples of {path} cannot be rewritten, such as ")
    assert str(caught.value).endswith(
        "it cannot be read: Is a directory; run 'feeder verify --level full' on the dataset"
    )
    assert load_manifest(dataset).generation == 1


def test_a_purge_takes_names_out_of_the_lists_of_a_build(tmp_path: Path) -> None:
    """Lists stand above the splits, and name samples of all of them."""
    for split in ("train", "val"):
        write_image_folder(tmp_path / "source" / split, per_class=4)
        (tmp_path / "source" / split / "ant" / "bad.jpg").write_bytes(b"bad " + split.encode())
        (tmp_path / "source" / split / "ant" / "other.jpg").write_bytes(b"another " + split.encode())
    write_image_folder(tmp_path / "source" / "val", per_class=4, first=30)
    write_image_folder(tmp_path / "source" / "val", classes=("cat",), per_class=2)
    for name in ("one", "two"):
        image = (tmp_path / "source" / "train" / "ant" / "ant-00.jpg").read_bytes()
        (tmp_path / "source" / "train" / "bee" / f"{name}.jpg").write_bytes(image)
    out = tmp_path / "out"
    build(tmp_path / "source", out, BuildOptions(shard_samples=4, duplicates="drop"))

    def lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (out / name).read_text().splitlines()]

    before = lines("duplicates.jsonl")
    assert {line["key"] for line in before if line["kept"] == "ant/ant-00"} >= {"bee/one", "bee/two"}
    # A bad image that was good later is a sample, and still on the list.
    (tmp_path / "source" / "train" / "ant" / "bad.jpg").write_bytes(encoded(77))
    (table, _) = open_source(tmp_path / "source")
    append(out / "train", table.take(np.array([list(table.names).index("ant/bad.jpg")])))
    drop(out / "train", ["ant/bad"])
    assert {line["source"] for line in lines("bad-images.jsonl")} >= {"train/ant/bad.jpg", "val/ant/bad.jpg"}
    drop(out / "train", ["ant/ant-00"], purge=True)
    assert {line["source"] for line in lines("bad-images.jsonl")} == {
        "train/ant/other.jpg",
        "val/ant/bad.jpg",
        "val/ant/other.jpg",
    }
    assert lines("duplicates.jsonl") == [
        line for line in before if line["kept"] != "ant/ant-00" or line["kept_split"] != "train"
    ]
    drop(out / "train", ["cat/cat-00"], purge=True)
    for path in [*(out / "train").rglob("*"), *out.iterdir()]:
        if path.is_file():
            data = path.read_bytes()
            for key in (b"train/ant/bad", b"ant/ant-00", b"bee/one"):
                assert key not in data or (path.name == "duplicates.jsonl" and b"val" in data)
    assert verify(out / "train", "full").problems == []
