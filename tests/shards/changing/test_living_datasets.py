"""Any sequence of changes gives what a dictionary would: samples with every type of field, in both formats."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.building.writing import BuildOptions, build_tables
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.appending import append
from feeder.shards.changing.dropping import drop
from feeder.shards.columns.selections import dataset_columns, select
from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.names import PathTable
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.table import Places, SampleTable

FIELDS = {
    "image": Field(type="image"),
    "label": Field(type="int64"),
    "mask": Field(type="image"),
    "notes": Field(type="json", extension="notes"),
    "caption": Field(type="string", extension="txt"),
    "weight": Field(type="float64"),
}
Sample = dict[str, Any]


def made(key: str) -> Sample:
    """Return a sample whose every field follows from its key; each third has no mask, and so on."""
    number = int(key[1:])
    return {
        "image": b"P6 2 1 255\n" + bytes([number % 256] * 6),
        "label": number % 3,
        "mask": b"P5 2 1 255\n" + bytes([number % 256] * 2) if number % 3 else None,
        "notes": b'{"of":"%s"}' % key.encode() if number % 4 else None,
        "caption": f"caption of {key}" if number % 5 else None,
        "weight": number / 2 if number % 2 else None,
    }


def table(folder: Path, keys: list[str]) -> SampleTable:
    """Return the samples of some keys, whose bytes lie side by side in one file for each field."""
    samples = [made(key) for key in keys]
    stored = {}
    for name, field in FIELDS.items():
        if field.stored:
            data = [sample[name] for sample in samples]
            sizes = np.array([ABSENT if one is None else len(one) for one in data], np.int64)
            path = Path(tempfile.mkstemp(dir=folder)[1])
            path.write_bytes(b"".join(one or b"" for one in data))
            ends = np.cumsum(np.maximum(sizes, 0))
            stored[name] = Places(
                files=PathTable([str(path)]),
                numbers=np.zeros(len(keys), np.int64),
                offsets=ends - np.maximum(sizes, 0),
                sizes=sizes,
            )
    return SampleTable(
        root=str(folder),
        names=PathTable([f"{key}.ppm" for key in keys]),
        labels=np.array([sample["label"] for sample in samples], np.int64),
        classes=("x", "y", "z"),
        fields=FIELDS,
        stored=stored,
        values={
            "caption": pa.array([sample["caption"] for sample in samples], pa.string()),
            "weight": pa.array([sample["weight"] for sample in samples], pa.float64()),
        },
    )


def held(dataset: Path) -> dict[str, Sample]:
    """Return all that a dataset holds, by key, with None for what is absent."""
    reader = open_dataset(dataset)
    ids = np.arange(reader.manifest.num_samples)
    rows = reader.describe(ids)
    columns: dict[str, list[Any]] = {"label": rows.labels.tolist()}
    for name, field in reader.manifest.fields.items():
        if field.stored:
            columns[name] = [data or None for data in reader.read(ids, name)[1]]
        elif name != "label":
            columns[name] = reader.values(ids, name)
    reader.close()
    return {key: {name: column[i] for name, column in columns.items()} for i, key in enumerate(rows.keys)}


keys = st.lists(st.integers(0, 30).map(lambda number: f"k{number:02d}"), min_size=1, max_size=9, unique=True)
changes = st.one_of(
    st.tuples(st.just("append"), keys),
    st.tuples(st.just("drop"), keys),
    st.tuples(st.just("purge"), keys),
    st.tuples(st.sampled_from(["annotate score", "annotate note", "annotate caption"]), keys),
)


@pytest.mark.parametrize("format", ["tar", "arrow"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(start=keys, sequence=st.lists(changes, min_size=1, max_size=5))
def test_any_sequence_of_changes(format: str, start: list[str], sequence: list[tuple[str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, dataset = Path(place, "source"), Path(place, "dataset")
        folder.mkdir()
        build_tables([table(folder, start)], dataset, BuildOptions(format=format, shard_samples=3, shuffle=False))
        model = {key: made(key) for key in start}
        fields = set(FIELDS)
        ever = set(start)
        for change, some in sequence:
            if change == "append":
                append(dataset, table(folder, some), skip_existing=True)
                added = [key for key in some if key not in model]
                model |= {key: dict.fromkeys(fields) | made(key) for key in added}
                ever |= set(some)
            elif change in ("drop", "purge"):
                left = {key: sample for key, sample in model.items() if key not in some}
                if not left:
                    with pytest.raises(SourceError, match="would be dropped"):
                        drop(dataset, some, ignore_missing=True, purge=change == "purge")
                    continue
                drop(dataset, some, ignore_missing=True, purge=change == "purge")
                model = left
            else:
                name = change.split()[1]
                values = {key: f"{name} of {key}" for key in some}
                annotate(dataset, pa.table({"key": list(values), name: list(values.values())}), replace=True)
                fields.add(name)
                for key, sample in model.items():
                    sample[name] = values.get(key)
            assert held(dataset) == model
            assert list(held(dataset)) == list(model)
            assert verify(dataset, "full").problems == []
        drop(dataset, [], purge=True)
        assert held(dataset) == model
        assert verify(dataset, "full").problems == []
        data = b"".join(path.read_bytes() for path in dataset.rglob("*") if path.is_file())
        assert [key for key in ever if key.encode() in data] == [key for key in ever if key in model]
        columns = dataset_columns(dataset, Path(place, "cache"))
        rows = [sample for sample in model.values() if sample["caption"] is not None and sample["label"] != 1]
        assert select(columns, "caption is not None and label != 1").num_selected == len(rows)
