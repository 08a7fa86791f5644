"""Parquet as Hugging Face datasets writes and reads it."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feeder.errors import ConfigError
from feeder.shards.building import parquet_export
from feeder.shards.building.parquet_export import export_parquet
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.errors import DestinationError, ShardError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.names import PathTable
from feeder.shards.reading.opening import find_datasets, open_dataset
from feeder.shards.sources import open_source
from feeder.shards.sources.lists import scan_list
from feeder.shards.sources.options import SourceOptions
from feeder.shards.table import Places
from tests.images import encoded, write_image_folder
from tests.peers import peer


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with a field of every type, each absent somewhere."""
    files = tmp_path / "files"
    files.mkdir()
    for number in range(12):
        (files / f"{number}.jpg").write_bytes(encoded(number))
    (files / "mask.png").write_bytes(encoded(0, mode="L", format="PNG"))
    lines: list[dict[str, Any]] = [
        {"path": f"{number}.jpg", "label": "b" if number % 2 else "a", "caption": "Bär", "count": number, "p": 0.5}
        | {"flag": True, "mask": "mask.png"}
        for number in range(12)
    ]
    lines[7] = {"path": "7.jpg", "label": "b"}
    source = files / "list.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    (table,) = scan_list(str(source), SourceOptions(image_columns={"mask": "mask"}))
    boxes = files / "boxes.json"
    boxes.write_text("[[1, 2], [3, 4]]")
    places = Places(
        files=PathTable(["boxes.json"]),
        sizes=np.array([ABSENT if number == 7 else 16 for number in range(12)]),
        numbers=np.zeros(12, np.int64),
        offsets=np.zeros(12, np.int64),
    )
    fields = {"boxes": Field(type="json", extension="boxes.json"), "raw": Field(type="bytes", extension="raw")}
    table = dataclasses.replace(
        table, fields={**table.fields, **fields}, stored={**table.stored, "boxes": places, "raw": places}
    )
    build_tables([table], tmp_path / "shards", BuildOptions(shard_samples=5))
    return tmp_path / "shards"


def rows_of(files: list[str]) -> list[dict[str, Any]]:
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_every_field_is_a_column_with_its_values(dataset: Path, tmp_path: Path) -> None:
    report = export_parquet(dataset, tmp_path / "out")
    reader = open_dataset(dataset)
    ids = np.arange(12)
    rows = rows_of(report.files)
    found, images = reader.read(ids)
    assert report.num_samples == len(rows) == 12
    assert [row["key"] for row in rows] == found.keys
    assert [row["image"]["bytes"] for row in rows] == images
    assert [row["image"]["path"] for row in rows] == [f"{key}.jpg" for key in found.keys]
    assert [row["label"] for row in rows] == found.labels.tolist()
    assert [row["mask"] and row["mask"]["bytes"] for row in rows] == [x or None for x in reader.read(ids, "mask")[1]]
    for name in ("caption", "count", "p", "flag"):
        assert [row[name] for row in rows] == reader.values(ids, name)
    assert [row["boxes"] for row in rows].count("[[1, 2], [3, 4]]") == 11
    assert [row["raw"] for row in rows].count(b"[[1, 2], [3, 4]]") == 11
    assert [(row["boxes"], row["raw"]) for row in rows].count((None, None)) == 1


def test_both_keys_of_metadata_and_the_layout_are_those_of_datasets_own_writer(dataset: Path, tmp_path: Path) -> None:
    datasets = peer("datasets")
    (ours,) = export_parquet(dataset, tmp_path / "out").files
    found = datasets.load_dataset("parquet", data_files=ours, split="train", cache_dir=tmp_path / "cache")
    theirs = str(tmp_path / "theirs.parquet")
    found.cast_column("image", datasets.Image(decode=False)).to_parquet(theirs)
    one, other = pq.ParquetFile(ours), pq.ParquetFile(theirs)
    assert one.schema_arrow.equals(other.schema_arrow)
    assert one.metadata.metadata.keys() == other.metadata.metadata.keys()
    key = b"content_defined_chunking"
    assert one.metadata.metadata[key] == other.metadata.metadata[key]
    features = json.loads(one.metadata.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": ["a", "b"], "_type": "ClassLabel"}
    assert features["image"] == {"_type": "Image"}
    for number in range(one.metadata.num_columns):
        mine, its = (file.metadata.row_group(0).column(number) for file in (one, other))
        assert (mine.path_in_schema, mine.compression) == (its.path_in_schema, its.compression)
        assert mine.has_offset_index


def test_datasets_decodes_images_and_knows_the_classes(dataset: Path, tmp_path: Path) -> None:
    datasets = peer("datasets")
    report = export_parquet(dataset, tmp_path / "out")
    _, images = open_dataset(dataset).read(np.arange(12))
    found = datasets.load_dataset("parquet", data_files=report.files, split="train", cache_dir=tmp_path / "cache")
    assert found.features["label"].names == ["a", "b"]
    for sample, image in zip(found, images, strict=True):
        assert (np.asarray(sample["image"]) == np.asarray(Image.open(io.BytesIO(image)))).all()
    assert found[0]["mask"].mode == "L"


def test_a_build_from_an_export_gives_the_same_samples(dataset: Path, tmp_path: Path) -> None:
    export_parquet(dataset, tmp_path / "out", file_bytes=10_000)
    tables = open_source(str(tmp_path / "out"), SourceOptions(), spool=tmp_path / "spool")
    build_tables(tables, tmp_path / "back", BuildOptions(shuffle=False))
    (back,) = find_datasets(tmp_path / "back")
    before, after = open_dataset(dataset), open_dataset(back)
    ids = np.arange(12)
    assert after.manifest.classes == before.manifest.classes
    assert after.describe(ids).keys == before.describe(ids).keys
    assert after.describe(ids).labels.tolist() == before.describe(ids).labels.tolist()
    for name in ("image", "mask", "raw"):
        assert after.read(ids, name)[1] == before.read(ids, name)[1]
    for name in ("caption", "count", "p", "flag"):
        assert after.values(ids, name) == before.values(ids, name)


def test_splits_become_files_that_datasets_tells_apart(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image_folder(tmp_path / "images" / split, per_class=4 if split == "train" else 2)
    build(tmp_path / "images", tmp_path / "shards")
    report = export_parquet(tmp_path / "shards", tmp_path / "out", file_bytes=10_000)
    names = [Path(file).name for file in report.files]
    count = sum(name.startswith("train") for name in names)
    assert names == [f"train-{number:05}-of-{count:05}.parquet" for number in range(count)] + [
        f"val-{number:05}-of-{len(names) - count:05}.parquet" for number in range(len(names) - count)
    ]
    assert count > len(names) - count > 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    datasets = peer("datasets")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=tmp_path / "cache")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 12, "validation": 6}


def test_row_groups_end_at_a_hundred_samples_or_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "images", per_class=70)
    build(tmp_path / "images", tmp_path / "shards")
    (file,) = export_parquet(tmp_path / "shards", tmp_path / "a").files
    groups = pq.ParquetFile(file).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [100, 100, 10]
    monkeypatch.setattr(parquet_export, "ROW_GROUP_BYTES", 20_000)
    (file,) = export_parquet(tmp_path / "shards", tmp_path / "b").files
    groups = pq.ParquetFile(file).metadata
    sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
    assert sum(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) == 210
    assert len(sizes) > 10
    assert max(sizes) < 23_000


def test_a_damaged_image_stops_the_export_and_nothing_remains(dataset: Path, tmp_path: Path) -> None:
    _, (image,) = open_dataset(dataset).read(np.array([6]))
    shard = dataset / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(image) + 100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="was altered: CRC-32C"):
        export_parquet(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_not_empty_is_refused(dataset: Path, tmp_path: Path) -> None:
    export_parquet(dataset, tmp_path / "out")
    with pytest.raises(DestinationError) as error:
        export_parquet(dataset, tmp_path / "out")
    assert str(error.value) == (
        f"destination {tmp_path}/out is not empty: it holds train-00000-of-00001.parquet; choose another destination, "
        "or empty the folder yourself"
    )


def test_what_a_killed_export_left_is_written_anew(dataset: Path, tmp_path: Path) -> None:
    report = export_parquet(dataset, tmp_path / "out")
    whole = Path(report.files[0]).read_bytes()
    from feeder.shards.dataset.manifest import MARKER_NAME
    from feeder.shards.destinations.local import MARKER_TEXT

    (tmp_path / "out" / MARKER_NAME).write_bytes(MARKER_TEXT)
    (tmp_path / "out" / "train-00000-of-00002.parquet").write_bytes(whole[:1000])
    assert export_parquet(dataset, tmp_path / "out").files == report.files
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train-00000-of-00001.parquet"]
    assert Path(report.files[0]).read_bytes() == whole


def test_a_pyarrow_that_is_too_old_is_refused(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pa, "__version__", "20.0.0")
    with pytest.raises(ConfigError) as error:
        export_parquet(dataset, tmp_path / "out")
    assert str(error.value) == (
        "exporting to Parquet needs pyarrow 21 or later, and 20.0.0 is installed; run: pip install --upgrade "
        "'pyarrow>=21'"
    )
