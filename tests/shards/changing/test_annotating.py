"""Adding columns to a dataset."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.changing import annotating
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.dropping import drop
from feeder.shards.columns import consolidated as columns
from feeder.shards.dataset.loading import load_column
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import scan_source
from feeder.shards.storage import LocalFolder


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7))
    return tmp_path / "dataset"


def values(dataset: Path, field: str) -> dict[str, Any]:
    reader = open_dataset(dataset)
    ids = np.arange(reader.manifest.num_samples)
    return dict(zip(reader.describe(ids).keys, reader.values(ids, field), strict=True))


ROWS = [
    {"key": "cat/cat-03", "score": 0.5, "count": 3, "caption": "a cat", "good": True},
    {"key": "ant/ant-00", "score": 1.25, "count": -1, "caption": "ä, \"b\"", "good": False},
    {"key": "nobody", "score": 9.0, "count": 9, "caption": "x", "good": True},
]  # fmt: skip


def write_table(path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table.set_column(3, "caption", table["caption"].dictionary_encode()), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter="," if path.suffix == ".csv" else "\t"))
    return path


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_of_any_kind_of_table(dataset: Path, tmp_path: Path, extension: str) -> None:
    report = annotate(dataset, write_table(tmp_path / f"table.{extension}"))
    assert (report.matched, report.missing, report.unknown) == (2, 34, 1)
    assert report.columns == {"score": "float64", "count": "int64", "caption": "string", "good": "bool"}
    assert report.manifest == load_manifest(dataset)
    for name in report.columns:
        found = values(dataset, name)
        assert {key: value for key, value in found.items() if value is not None} == {
            row["key"]: row[name] for row in ROWS[:2]
        }
        assert len(found) == 36
    assert verify(dataset, "full").problems == []


@pytest.mark.parametrize("format", ["tar", "arrow"])
def test_shards_and_indexes_stay_as_they_are(image_folder: Path, tmp_path: Path, format: str) -> None:
    dataset = tmp_path / format
    manifest = build(image_folder, dataset, BuildOptions(format=format)).datasets[0].manifest
    report = annotate(dataset, pa.table({"key": ["ant/ant-00"], "score": [1.0]}))
    assert report.manifest.shards.index_digests == manifest.shards.index_digests
    assert verify(dataset, "full").problems == []


def test_a_column_of_classes(dataset: Path) -> None:
    report = annotate(dataset, pa.table({"label": [0, 2, 7], "group": ["insect", "mammal", "x"]}), on="label")
    assert (report.matched, report.missing, report.unknown) == (24, 12, 1)
    found = values(dataset, "group")
    assert found["ant/ant-03"] == "insect"
    assert found["cat/cat-03"] == "mammal"
    assert found["bee/bee-03"] is None


def test_keys_of_numbers_alone_are_text(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "007.jpg").write_bytes((image_folder / "ant" / "ant-00.jpg").read_bytes())
    build(tmp_path / "flat", tmp_path / "numbers")
    (tmp_path / "table.csv").write_text("key,x\n007,1\n")
    assert annotate(tmp_path / "numbers", tmp_path / "table.csv").matched == 1


def test_text_that_fills_more_than_a_batch(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions in an array of strings have 32 bits: texts are taken, put together and written in parts."""
    monkeypatch.setattr(annotating, "BATCH_BYTES", 100)
    monkeypatch.setattr(columns, "BATCH_BYTES", 100)
    before = open_dataset(dataset).describe(np.arange(36))
    texts = [f"text {i} " * (i % 9) for i in range(36)]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table(
            {"key": pa.array(before.keys, pa.large_string()), "x": pa.array(texts, pa.string()).cast(kind)}
        )
        annotate(dataset, table, replace=True)
        assert list(values(dataset, "x").values()) == texts
    column = load_column(LocalFolder(str(dataset)), load_manifest(dataset), "x")
    assert column.type == pa.string()
    assert max(columns.text_bytes(chunk) for chunk in column.chunks) <= 100
    assert len(column.chunks) > 10
    drop(dataset, before.keys[:1])
    assert list(values(dataset, "x").values()) == texts[1:]
    assert verify(dataset, "full").problems == []


def test_only_some_columns(dataset: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    assert set(annotate(dataset, table, columns=["score"]).columns) == {"score"}
    assert set(load_manifest(dataset).fields) == {"image", "label", "score"}


def test_overwriting_needs_to_be_asked_for(dataset: Path) -> None:
    annotate(dataset, pa.table({"key": ["ant/ant-00", "ant/ant-01"], "score": [1.0, 2.0]}))
    table = pa.table({"key": ["ant/ant-00"], "score": ["high"]})
    with pytest.raises(SourceError) as caught:
        annotate(dataset, table)
    assert str(caught.value) == (
        f"{dataset} has a column 'score' already; give --replace to overwrite it, or rename the column of the table"
    )
    assert annotate(dataset, table, replace=True).manifest.fields["score"].type == "string"
    assert {key: value for key, value in values(dataset, "score").items() if value} == {"ant/ant-00": "high"}
    reader = open_dataset(dataset / "generations" / "000001.json")
    assert sorted(filter(None, reader.values(np.arange(36), "score"))) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"key": ["ant/ant-00", "no", "nil"], "x": [1, 2, 3]}, {"strict": True},
         "2 of the 3 keys of the table are of no sample of {}: 'no', 'nil'; correct them, or omit --strict"),
        ({"key": ["a", "b", "a"], "x": [1, 2, 3]}, {}, "the table has key 'a' more than once; keep one row of each"),
        ({"key": ["a", None], "x": [1, 2]}, {}, "column 'key' of the table lacks 1 values; every row needs one"),
        ({"name": ["a"], "x": [1]}, {}, "the table has no column 'key'; it has name, x; name one with --on"),
        ({"key": [[1]], "x": [1]}, {}, "column 'key' of the table has the type list<item: int64>, expected string: "),
        ({"zzz": ["a"], "x": [1]}, {"on": "zzz"},
         "{} has no column 'zzz' of text or whole numbers to join on; expected key or another"),
        ({"key": ["a"]}, {}, "the table has no column but 'key'; expected at least one to add"),
        ({"key": ["a"], "x": [1]}, {"columns": ["y"]}, "the table has no column 'y'; it has key, x"),
        ({"key": ["a"], "my score": [1]}, {}, "column 'my score' of the table cannot be a field: expected letters, "),
        ({"key": ["a"], "source": ["x"]}, {}, "column 'source' of the table cannot be a field: expected letters, "),
        ({"key": ["a"], "x": [[1]]}, {}, "the column 'x' of the table holds list<item: int64>, which no field can "),
        ({"key": ["a"], "x": pa.array([2**63], pa.uint64())}, {}, "the column 'x' of the table has a number beyond "),
        ({"key": ["a"], "label": [1]}, {"replace": True},
         "'label' of {} is part of its shards and cannot be replaced by an annotation; rename the column, or choose"),
        ({"key": ["a"], "image": [1]}, {"replace": True}, "'image' of {} is part of its shards and cannot be replaced"),
        ({"key": ["a"], "image.width": [1]}, {}, "'image.width' of {} is part of its shards and cannot be replaced"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(dataset: Path, columns: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    with pytest.raises(SourceError) as caught:
        annotate(dataset, pa.table(columns), **options)
    assert str(caught.value).startswith(sentence.format(dataset))
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


def test_keys_of_a_csv_file_stay_as_they_are_written(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for name in ("1", "1e5", "true"):
        (tmp_path / "flat" / f"{name}.jpg").write_bytes((image_folder / "ant" / "ant-00.jpg").read_bytes())
    build(tmp_path / "flat", tmp_path / "out")
    for keys in (["1"], ["1e5"], ["true"], ["1", "1e5", "true"]):
        (tmp_path / "table.csv").write_text("key,x\n" + "".join(f"{key},7\n" for key in keys))
        assert annotate(tmp_path / "out", tmp_path / "table.csv", replace=True, strict=True).matched == len(keys)


def test_tables_that_cannot_be_read(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("no")
    (tmp_path / "broken.csv").write_text("key,x\n1,2,3\n")
    for name, sentence in {
        "absent.csv": f"no such source: {tmp_path}/absent.csv; check the path",
        "table.xlsx": f"{tmp_path}/table.xlsx is no table by its name; expected one that ends in .csv, .tsv, .jsonl, "
        ".ndjson, .parquet",
        "broken.parquet": f"{tmp_path}/broken.parquet is no whole Parquet file (",
        "broken.csv": f"{tmp_path}/broken.csv cannot be read in row 2: Expected 2 columns, got 3: 1,2,3; ",
    }.items():
        with pytest.raises(SourceError) as caught:
            annotate(dataset, tmp_path / name)
        assert str(caught.value).startswith(sentence)


def test_a_column_that_shards_hold_keeps_its_type(tmp_path: Path, image_folder: Path) -> None:
    """Tar shards have members for it, whose names follow from the field."""
    (source,) = scan_source(image_folder / "ant")
    fields = {**source.fields, "caption": Field(type="string", extension="txt")}
    table = dataclasses.replace(source, fields=fields, values={"caption": pa.array([f"text {i}" for i in range(12)])})
    build_tables([table], tmp_path / "out")
    with pytest.raises(SourceError) as caught:
        annotate(tmp_path / "out", pa.table({"key": ["ant-00"], "caption": [1]}), replace=True)
    assert str(caught.value) == (
        f"column 'caption' of the table is int64, but string in the shards of {tmp_path}/out; convert it, or rename it"
    )
    annotate(tmp_path / "out", pa.table({"key": ["ant-00"], "caption": ["new"]}), replace=True)
    assert values(tmp_path / "out", "caption")["ant-00"] == "new"
    assert verify(tmp_path / "out", "full").problems == []
