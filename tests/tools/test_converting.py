"""``feeder convert``: other formats, orders and cuts of a dataset, and Parquet."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources.lists import scan_list
from feeder.shards.sources.options import SourceOptions
from feeder.shards.sources.splitting import balanced_order
from feeder.tools.main import main
from tests.images import encoded, write_image_folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A shuffled dataset with masks, captions and numbers, some absent, and bad images among the good."""
    files = tmp_path / "files"
    files.mkdir()
    lines = []
    for number in range(40):
        data = encoded(number, format="PNG" if number % 5 == 0 else "JPEG")
        (files / f"{number:02}.img").write_bytes(data[:200] if number in (11, 30) else data)
        line = {"path": f"{number:02}.img", "label": "abc"[number % 3 if number < 30 else 0], "score": number / 4}
        if number % 4:
            (files / f"{number:02}.png").write_bytes(encoded(number, mode="L", format="PNG"))
            line |= {"mask": f"{number:02}.png", "caption": f"№ {number}"}
        lines.append(json.dumps(line))
    (files / "list.jsonl").write_text("\n".join(lines))
    tables = scan_list(str(files / "list.jsonl"), SourceOptions(image_columns={"mask": "mask"}))
    build_tables(tables, tmp_path / "dataset", BuildOptions(seed=3, shard_samples=12, on_error="keep"))
    shutil.rmtree(files)
    return tmp_path / "dataset"


def content(*folders: Path) -> dict[str, tuple[Any, ...]]:
    """Return everything that the samples of datasets have, by key, in order."""
    samples: dict[str, tuple[Any, ...]] = {}
    for folder in folders:
        reader = open_dataset(folder)
        ids = np.arange(reader.manifest.num_samples)
        rows, images = reader.read(ids)
        masks, found = reader.read(ids, "mask")
        values = [reader.values(ids, name) for name in ("caption", "score")]
        labels = [reader.manifest.classes[label] for label in rows.labels]
        sizes = zip(rows.widths.tolist(), rows.heights.tolist(), rows.formats, masks.formats, strict=True)
        samples |= zip(rows.keys, zip(images, found, labels, sizes, *values, strict=True), strict=True)
    return samples


def convert(*arguments: object) -> None:
    assert main(["convert", *map(str, arguments), "--quiet"]) == 0


@pytest.mark.parametrize("there", ["tar", "arrow"])
def test_there_and_back_gives_the_same_dataset(dataset: Path, tmp_path: Path, there: str) -> None:
    convert(dataset, tmp_path / "there", "--format", there, "--shard-samples", 7, "--workers", 1)
    convert(tmp_path / "there", tmp_path / "back", "--shard-samples", 12, "--workers", 2)
    assert list(content(tmp_path / "there").items()) == list(content(dataset).items())
    for path in sorted(dataset.glob("shard-*")):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    before, after = (open_dataset(folder).manifest for folder in (dataset, tmp_path / "back"))
    assert (after.shuffled, after.shuffle_seed, after.classes) == (True, 3, before.classes)
    assert after.fields == before.fields
    assert not list(verify(tmp_path / "there", level="full").problems)


def test_a_new_seed_gives_another_order_of_the_same_samples(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, tmp_path / "a", "--shuffle-seed", 5, "--shard-samples", 12)
    convert(tmp_path / "a", tmp_path / "b", "--shuffle-seed", 5, "--shard-samples", 12)
    before, after = content(dataset), content(tmp_path / "a")
    assert after == before
    assert list(after) != list(before)
    assert list(content(tmp_path / "b")) != list(after)
    assert open_dataset(tmp_path / "a").manifest.shuffle_seed == 5


def test_classes_take_turns_in_balanced_order(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, tmp_path / "out", "--order", "balanced", "--shuffle-seed", 9)
    labels = open_dataset(tmp_path / "out").describe(np.arange(40)).labels.tolist()
    assert all(sorted(labels[start : start + 3]) == [0, 1, 2] for start in range(0, 30, 3))
    assert labels[30:] == [0] * 10
    source = open_dataset(dataset).describe(np.arange(40))
    expected = [source.keys[row] for row in balanced_order(source.labels, 9)]
    assert list(content(tmp_path / "out")) == expected


@pytest.mark.parametrize("count", [1, 3, 7, 40, 100])
def test_as_many_shards_as_were_asked_for(dataset: Path, tmp_path: Path, count: int) -> None:
    convert(dataset, tmp_path / "out", "--shards", count)
    samples = open_dataset(tmp_path / "out").manifest.shards.samples
    assert len(samples) == min(count, 40)
    assert samples.max() - samples.min() <= 1
    assert list(content(tmp_path / "out")) == list(content(dataset))


def test_splits_by_hash_share_classes_and_lose_nothing(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, tmp_path / "out", "--split-by-hash", "val=0.2,test=0.2")
    parts = [tmp_path / "out" / split for split in ("train", "val", "test")]
    assert content(*parts) == content(dataset)
    assert {open_dataset(part).manifest.classes for part in parts} == {("a", "b", "c")}


def test_splits_stay(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image_folder(tmp_path / "images" / split, per_class=4)
    build(tmp_path / "images", tmp_path / "dataset")
    convert(tmp_path / "dataset", tmp_path / "out", "--format", "arrow")
    for split in ("train", "val"):
        before, after = (open_dataset(tmp_path / name / split) for name in ("dataset", "out"))
        ids = np.arange(12)
        assert before.read(ids)[1] == after.read(ids)[1]
        assert before.describe(ids).keys == after.describe(ids).keys


def test_an_altered_image_is_not_carried_on(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image,) = open_dataset(dataset).read(np.array([15]))[1]
    shard = dataset / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    offset = data.index(image)
    data[offset + 20] ^= 4
    shard.write_bytes(data)
    assert main(["convert", str(dataset), str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"{shard} was altered at offset {offset}: CRC-32C " in said
    assert "run 'feeder verify --level full' on the dataset" in said
    assert not (tmp_path / "out").exists()


def test_adopted_archives_become_shards_with_the_same_samples(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for path in dataset.glob("*.tar"):
        shutil.copy(path, tmp_path / "tars")
    assert main(["index", str(tmp_path / "tars"), str(tmp_path / "adopted"), "--quiet"]) == 0
    convert(tmp_path / "adopted", tmp_path / "out", "--format", "arrow")
    before, after = (open_dataset(tmp_path / name) for name in ("adopted", "out"))
    ids = np.arange(40)
    assert after.describe(ids).keys == before.describe(ids).keys == list(content(dataset))
    assert after.describe(ids).labels.tolist() == before.describe(ids).labels.tolist()
    for name in ("image", "mask"):
        assert after.read(ids, name)[1] == before.read(ids, name)[1]


def test_parquet_holds_every_sample(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(dataset), str(tmp_path / "out"), "--to", "parquet", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == [f"{tmp_path}/out/train-00000-of-00001.parquet"]
    assert document["samples"] == 40
    rows = pq.read_table(document["files"][0]).to_pylist()
    expected = content(dataset)
    assert [row["key"] for row in rows] == list(expected)
    assert [row["image"]["bytes"] for row in rows] == [sample[0] for sample in expected.values()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--order", "keep", "--shuffle-seed", "1"],
            "--order keep and --shuffle-seed contradict each other; give one of them",
        ),
        (
            ["--to", "parquet", "--shards", "2"],
            "--shards does not go with --to parquet, which keeps order and splits; convert first, then export",
        ),
        (["--shards", "2", "--shard-samples", "3"], "shards is 2 and shard_samples 3; give one of the two"),
        (
            ["--split-by-hash", "val"],
            "argument --split-by-hash: 'val' is not of the form val=0.02,test=0.1 (see 'feeder convert --help')",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["convert", str(dataset), str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err == f"feeder: {sentence}\n"
    assert not (tmp_path / "out").exists()
