"""Selections: what an expression chooses of a dataset, computed once and kept."""

import logging
from pathlib import Path

import numpy as np
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.dropping import drop
from feeder.shards.columns import selections
from feeder.shards.columns.dataset_columns import DatasetColumns
from feeder.shards.columns.expressions import ExpressionError
from feeder.shards.columns.selections import dataset_columns, select
from feeder.shards.reading.opening import open_dataset


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7))
    return tmp_path / "dataset"


@pytest.fixture
def columns(dataset: Path, tmp_path: Path) -> DatasetColumns:
    return dataset_columns(dataset, tmp_path / "cache")


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "selections").iterdir())


def test_a_selection_is_what_the_rows_say(dataset: Path, columns: DatasetColumns) -> None:
    selection = select(columns, "label in [0, 2] and width >= 60 and not key.startswith('cat')")
    rows = open_dataset(dataset).describe(np.arange(36))
    chosen = [i for i, key in enumerate(rows.keys) if key.startswith("ant") and rows.widths[i] >= 60]
    assert selection.ids().tolist() == chosen
    assert selection.mask().sum() == selection.num_selected == len(chosen) > 0
    assert (selection.num_samples, selection.dataset) == (36, columns.manifest.digest)
    assert select(columns, "format == 'jpeg'").num_selected == 36


def test_the_second_time_it_comes_from_the_cache(
    columns: DatasetColumns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = select(columns, "label == 1 and width > 50")
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(selections, "_compute", None)
    for spelling in ("label == 1 and width > 50", " (label==1) and  width>50"):
        again = select(columns, spelling)
        assert (again.digest, again.expression, again.num_selected) == (
            first.digest,
            first.expression,
            first.num_selected,
        )
        assert np.array_equal(again.bits, first.bits)
    with pytest.raises(TypeError):
        select(columns, "label == 2")


def test_what_is_damaged_in_the_cache_is_computed_again(columns: DatasetColumns, tmp_path: Path) -> None:
    expected = select(columns, "label == 1")
    (path,) = kept(tmp_path)
    good = path.read_bytes()
    for place in range(0, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert np.array_equal(select(columns, "label == 1").bits, expected.bits)
        path.write_bytes(good[:place])
        assert np.array_equal(select(columns, "label == 1").bits, expected.bits)
        assert path.read_bytes() == good


def test_another_generation_has_results_of_its_own(dataset: Path, columns: DatasetColumns, tmp_path: Path) -> None:
    before = select(columns, "label == 1")
    drop(dataset, [open_dataset(dataset).describe(before.ids()[:1]).keys[0]])
    after = select(dataset_columns(dataset, tmp_path / "cache"), "label == 1")
    assert after.num_selected == before.num_selected - 1
    assert select(
        dataset_columns(dataset / "generations" / "000000.json", tmp_path / "cache"), "label == 1"
    ).digest == (before.digest)
    assert len(kept(tmp_path)) == 2


def test_missing_values_of_an_annotation(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("key,score\nant/ant-00,0.5\nbee/bee-03,2\n")
    annotate(dataset, tmp_path / "scores.csv")
    columns = dataset_columns(dataset, tmp_path / "cache")
    assert [select(columns, text).num_selected for text in ("score > 1", "score is None", "not score > 1")] == [
        1,
        34,
        35,
    ]


def test_any_number_of_threads_gives_the_same(
    columns: DatasetColumns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selections, "ROWS_A_BATCH", 8)
    monkeypatch.setattr(selections, "_ROWS_AT_ONCE", 8)
    expected = select(columns, "width > 60")
    for threads in (1, 2, 5):
        for path in kept(tmp_path):
            path.unlink()
        assert np.array_equal(select(columns, "width > 60", threads=threads).bits, expected.bits)
    with pytest.raises(ConfigError, match="^threads is 0, expected at least 1$"):
        select(columns, "width > 60", threads=0)


def test_an_error_of_the_expression_leaves_nothing(columns: DatasetColumns, tmp_path: Path) -> None:
    with pytest.raises(ExpressionError, match="did you mean 'label'"):
        select(columns, "lable == 1")
    with pytest.raises(ExpressionError, match="beyond 64 bits"):
        select(columns, "width * 9000000000000000000 > 0")
    assert not (tmp_path / "cache" / "selections").exists()


def test_a_cache_that_cannot_be_written_costs_time_only(
    columns: DatasetColumns, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    select(columns, "label == 0")
    for path in kept(tmp_path):
        path.unlink()
    (tmp_path / "cache" / "selections").rmdir()
    (tmp_path / "cache" / "selections").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert select(columns, "label == 1").num_selected == 12
    assert "it is computed each time; set XDG_CACHE_HOME to a folder that can be written" in caplog.text
