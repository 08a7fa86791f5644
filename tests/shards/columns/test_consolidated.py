"""Consolidated columns: what is written, what is read back, and what damage does."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.columns.cached_files import cache_folder
from feeder.shards.columns.consolidated import (
    ROWS_A_BATCH,
    Column,
    ColumnWriter,
    all_indexes,
    column_runs,
    consolidate,
    consolidated_types,
    format_names,
    rewrite_columns,
)
from feeder.shards.columns.dataset_columns import DatasetColumns
from feeder.shards.dataset.manifest import ColumnFile, Manifest, load_manifest
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.errors import ShardError, StorageError
from feeder.shards.fields import Field
from feeder.shards.reading.opening import load_column, open_dataset
from feeder.shards.storage import LocalFolder, open_folder
from tests.servers.s3_server import S3Bucket


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7))
    return tmp_path / "dataset"


def without_columns(dataset: Path) -> Manifest:
    """Return the manifest of a dataset as if it had no columns."""
    return dataclasses.replace(load_manifest(dataset), columns={})


def with_columns(dataset: Path) -> Manifest:
    """Write the columns of a dataset once more; return the manifest that names them, which is not saved."""
    manifest = load_manifest(dataset)
    return dataclasses.replace(manifest, columns=consolidate(manifest, open_folder(dataset), LocalDestination(dataset)))


def test_every_column_but_places_and_checksums_is_written(dataset: Path) -> None:
    manifest = with_columns(dataset)
    names = {"key", "source", "label", "image.width", "image.height", "image.format"}
    assert set(manifest.columns) == set(consolidated_types(manifest.fields)) == names
    for name, record in manifest.columns.items():
        assert record.file == f"columns/{name}.{record.digest[:8]}.arrow"
    assert sorted(path.name for path in (dataset / "columns").iterdir()) == sorted(
        record.file.removeprefix("columns/") for record in manifest.columns.values()
    )
    rows = open_dataset(dataset).describe(np.arange(36))
    values = {name: load_column(LocalFolder(str(dataset)), manifest, name).to_pylist() for name in names}
    assert values["key"] == rows.keys
    assert values["label"] == rows.labels.tolist()
    assert values["image.width"] == rows.widths.tolist()
    assert values["image.height"] == rows.heights.tolist()
    assert set(values["image.format"]) == {0}


def test_a_build_writes_them_and_the_same_dataset_gives_the_same_files(dataset: Path) -> None:
    assert load_manifest(dataset).columns == with_columns(dataset).columns


@pytest.mark.parametrize(
    "sizes", [[ROWS_A_BATCH - 1], [ROWS_A_BATCH], [1, ROWS_A_BATCH], [3 * ROWS_A_BATCH + 5], [7] * 99]
)
def test_batches_are_full_whatever_comes_at_a_time(tmp_path: Path, sizes: list[int]) -> None:
    total = sum(sizes)
    for kind in (pa.int64(), pa.bool_(), pa.string()):
        numbers = np.arange(total)
        plain = (
            pa.array(numbers).cast(pa.string())
            if kind == pa.string()
            else pa.array(numbers % 2 if kind == pa.bool_() else numbers)
        )
        values = pa.array(plain.cast(kind).to_pylist(), kind)
        with ColumnWriter("x", kind, tmp_path) as writer:
            start = 0
            for size in sizes:
                writer.append(values.slice(start, size))
                start += size
            record = writer.finish()
        with pa.ipc.open_file(tmp_path / record.file) as reader:
            chunks = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
        assert [len(chunk) for chunk in chunks[:-1]] == [ROWS_A_BATCH] * (len(chunks) - 1)
        assert pa.chunked_array(chunks).combine_chunks().equals(values)
        whole = ColumnWriter("x", kind, tmp_path)
        whole.append(values)
        assert whole.finish() == record


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    with ColumnWriter("x", pa.float64(), tmp_path) as writer:
        writer.append(pa.array([1.5, None]))
        writer.append(pa.nulls(2, pa.float64()))
        record = writer.finish()
    with pa.ipc.open_file(tmp_path / record.file) as reader:
        assert reader.read_all().column(0).to_pylist() == [1.5, None, None, None]


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with ColumnWriter("x", pa.int64(), tmp_path) as writer:
        writer.append(pa.array([1]))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_column_cross_its_batches() -> None:
    column = Column("x", [pa.array([0, 1, 2]), pa.array([3]), pa.array([4, 5])])
    assert len(column) == 6
    for start in range(7):
        for stop in range(start, 7):
            assert column.rows(start, stop).to_pylist() == list(range(start, stop))


def test_an_unknown_format_is_an_empty_name() -> None:
    assert format_names(pa.array([0, 1, 255, 6], pa.uint8())).to_pylist() == ["jpeg", "png", "", "ppm"]


def test_runs_of_a_column_are_the_same_from_files_and_from_indexes(dataset: Path) -> None:
    folder = open_folder(dataset)
    manifest = with_columns(dataset)
    from_files = [key for run in column_runs(manifest, folder, "key", 10) for key in run.to_pylist()]
    assert from_files == [
        key for run in column_runs(without_columns(dataset), folder, "key") for key in run.to_pylist()
    ]
    assert len(from_files) == 36


def test_columns_without_some_samples_and_with_others_behind(dataset: Path) -> None:
    manifest, folder, out = with_columns(dataset), open_folder(dataset), LocalDestination(dataset)
    with ColumnWriter("score", pa.float64(), dataset / "columns") as writer:
        writer.append(pa.array(np.arange(36.0)))
        record = writer.finish()
    extra = {"score": ColumnFile(file=f"columns/{record.file}", digest=record.digest)}
    manifest = dataclasses.replace(
        manifest, columns={**manifest.columns, **extra}, fields={**manifest.fields, "score": Field(type="float64")}
    )
    kept = np.arange(36) % 3 > 0
    columns = rewrite_columns(manifest, folder, out, kept=kept, added=lambda: all_indexes(manifest, folder))
    rewritten = dataclasses.replace(manifest, columns=columns)
    for name in columns:
        before = load_column(folder, manifest, name).to_pylist()
        with pa.ipc.open_file(dataset / rewritten.columns[name].file) as reader:
            after = reader.read_all().column(0).to_pylist()
        behind = [None] * 36 if name == "score" else before
        assert after == [value for value, keep in zip(before, kept, strict=True) if keep] + behind


def test_a_damaged_column_is_told(dataset: Path, tmp_path: Path) -> None:
    manifest = with_columns(dataset)
    columns = DatasetColumns(folder=open_folder(dataset), manifest=manifest, cache=tmp_path / "cache")
    assert len(columns.open(["label"])["label"]) == 36
    path = dataset / manifest.columns["label"].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match=f"^column {path} was cut or altered: its {len(data)} bytes do not have"):
        columns.open(["label"])
    path.unlink()
    with pytest.raises(ShardError, match=f"^column {path} is missing, but the manifest lists it"):
        columns.open(["label"])


def test_a_dataset_without_columns_gets_them_in_the_cache_and_damaged_ones_again(dataset: Path, tmp_path: Path) -> None:
    manifest = without_columns(dataset)
    columns = DatasetColumns(folder=open_folder(dataset), manifest=manifest, cache=tmp_path / "cache")
    before = columns.open(["key", "label"])["key"].rows(0, 36)
    place = tmp_path / "cache" / "columns" / manifest.digest
    (path,) = place.glob("key.*.arrow")
    assert columns.open(["key"])["key"].rows(0, 36).equals(before)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"x")
    assert columns.open(["key"])["key"].rows(0, 36).equals(before)
    assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_told(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    columns = DatasetColumns(folder=open_folder(dataset), manifest=without_columns(dataset), cache=tmp_path / "cache")
    with pytest.raises(
        StorageError, match=r"^cannot write .*/cache/columns/\w+: Not a directory; set XDG_CACHE_HOME to"
    ):
        columns.open(["key"])


def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "shardfeed"
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == Path.home() / ".cache" / "shardfeed"


def test_columns_of_a_remote_dataset_are_fetched_once(dataset: Path, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    import fsspec

    manifest = with_columns(dataset)
    url = f"{s3_bucket.url}/dataset"
    files, _ = fsspec.core.url_to_fs(url)
    files.put(f"{dataset}/", f"{url}/", recursive=True)
    columns = DatasetColumns(folder=open_folder(url), manifest=manifest, cache=tmp_path / "cache")
    assert columns.open(["key"])["key"].rows(0, 36).to_pylist() == open_dataset(dataset).describe(np.arange(36)).keys
    files.rm(f"{url}/{manifest.columns['key'].file}")
    assert len(columns.open(["key"])["key"]) == 36
    for path in (tmp_path / "cache").rglob("key.*"):
        path.unlink()
    with pytest.raises(ShardError, match=r"^column .*/columns/key\.\w{8}\.arrow is missing, but the manifest lists it"):
        columns.open(["key"])
    files.pipe(f"{url}/{manifest.columns['label'].file}", b"not it")
    with pytest.raises(ShardError, match=r"^column .*/columns/label\.\w{8}\.arrow was cut or altered: digest"):
        columns.open(["label"])
