"""Selections: which samples arguments choose and how often, held against what the rows of the dataset say."""

import itertools
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from feeder import selection
from feeder.copies import Copies
from feeder.errors import ConfigError
from feeder.order import Order
from feeder.order_settings import OrderSettings
from feeder.selection import choose
from feeder.shards.adoption.adopting import adopt
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.annotating import annotate
from feeder.shards.columns import selections
from feeder.shards.reading.opening import open_dataset
from feeder.shards.reading.rows import Reader

SCORES = "key,score,group,rare\n" + "".join(
    f"{name}/{name}-{i:02d},{(i % 5) / 2},{'left' if i < 3 else 'right'},{i == 0}\n"
    for name in ("ant", "bee")
    for i in range(12)
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "shardfeed" / "copies"


@pytest.fixture
def reader(image_folder: Path, tmp_path: Path) -> Reader:
    """36 samples in three classes; those of two of them have scores."""
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7))
    (tmp_path / "scores.csv").write_text(SCORES)
    annotate(tmp_path / "dataset", tmp_path / "scores.csv")
    return open_dataset(tmp_path / "dataset")


def chosen(reader: Reader, **arguments: Any) -> Copies:
    copies = choose(reader, **arguments)
    assert copies is not None
    assert len(copies.table) == reader.manifest.num_samples
    return copies


def ids(reader: Reader, **arguments: Any) -> list[int]:
    """Return the ids that are in an epoch, once each."""
    copies = chosen(reader, **arguments)
    assert copies.unit == 1
    assert copies.table.max() == 1
    return np.flatnonzero(copies.table).tolist()


def means(copies: Copies) -> NDArray[np.float64]:
    return copies.table / copies.unit


def keys_of(reader: Reader) -> list[str]:
    return reader.describe(np.arange(reader.manifest.num_samples)).keys


def refused(reader: Reader, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        choose(reader, **arguments)
    return str(caught.value)


def test_nothing_asked_is_no_table(reader: Reader, cache: Path) -> None:
    assert choose(reader) is None
    assert not cache.exists()


def test_where_and_each_way_to_exclude(reader: Reader, tmp_path: Path) -> None:
    keys = keys_of(reader)
    ants = [i for i, key in enumerate(keys) if key.startswith("ant")]
    assert ids(reader, where="label == 0") == ants
    listed = [keys[i] for i in (ants[3], ants[5], 30)]
    expected = [i for i in ants if keys[i] not in listed]
    (tmp_path / "bad.txt").write_text("\ufeff" + "\n\n".join(listed) + " \n")
    numbers = [keys.index(key) for key in listed]
    for exclude in (
        listed,
        tuple(listed),
        np.array(listed),
        tmp_path / "bad.txt",
        numbers,
        np.array(numbers, np.uint16),
        f"key in {listed}",
    ):
        assert ids(reader, where="label == 0", exclude=exclude) == expected
    assert ids(reader, exclude=[]) == list(range(36))


def test_the_table_is_kept_and_mapped(reader: Reader, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chosen(reader, where="label == 1", limit=5)
    (path,) = cache.iterdir()
    monkeypatch.setattr(selection, "select", None)
    again = chosen(reader, where=" (label==1)", limit=5)
    assert (again.digest, again.path) == (first.digest, str(path))
    assert isinstance(again.table, np.memmap)
    assert pickle.loads(pickle.dumps(again)).path == str(path)
    with pytest.raises(TypeError):
        choose(reader, where="label == 1 and width > 0", limit=5)


def test_what_is_damaged_is_computed_again(reader: Reader, cache: Path) -> None:
    expected = chosen(reader, balance="label", limit=20)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    for damaged in (good[:-1], good[:-1] + b"\xff", b"", good.replace(b'"unit"', b'"units"')):
        path.write_bytes(damaged)
        assert chosen(reader, balance="label", limit=20).digest == expected.digest
        assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_time_only(
    reader: Reader, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file")
    with caplog.at_level(logging.WARNING):
        copies = chosen(reader, limit=7)
    assert (copies.num_rows, copies.path) == (7, None)
    assert "cannot keep which samples are selected in" in caplog.text
    assert "it is computed each time; set XDG_CACHE_HOME to a folder that can be written" in caplog.text


def test_processes_at_once_find_the_same(reader: Reader, cache: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from feeder.selection import choose; from feeder.shards.reading.opening import open_dataset;"
        "print(choose(open_dataset(sys.argv[1]), where='width > 50', balance='label').digest)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "dataset")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate()[0].strip() for process in running}
    assert digests == {chosen(reader, where="width > 50", balance="label").digest}
    assert len(list(cache.iterdir())) == 1


class TestLimit:
    def test_limits_nest(self, reader: Reader) -> None:
        found = [set(ids(reader, limit=limit)) for limit in (1, 2, 10, 35, 36, 1000)]
        assert [len(some) for some in found] == [1, 2, 10, 35, 36, 36]
        assert all(smaller <= larger for smaller, larger in itertools.pairwise(found))

    def test_a_fraction_is_of_what_remains(self, reader: Reader) -> None:
        assert len(ids(reader, limit=0.25)) == 9
        bees = set(ids(reader, where="label == 1"))
        half = ids(reader, where="label == 1", limit=0.5)
        assert len(half) == 6
        assert set(half) <= bees
        assert ids(reader, limit=1.0) == list(range(36))
        assert len(ids(reader, limit=1e-9)) == 1

    def test_what_is_limited_is_a_matter_of_ids_alone(self, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = ids(reader, exclude=[3, 4], limit=9)
        monkeypatch.setattr(selection, "ROWS_A_BATCH", 5)
        monkeypatch.setattr(selection, "map_copies", lambda *_, **__: None)
        assert ids(reader, exclude=[3, 4], limit=9) == expected

    @pytest.mark.parametrize("limit", [0, -1, 0.0, 1.5, True, "10", float("nan")])
    def test_limits_that_cannot_be(self, reader: Reader, limit: Any) -> None:
        assert refused(reader, limit=limit) == (
            f"limit is {limit!r}; it must be a number of samples of at least 1, or a fraction of them, a float above 0"
            " and up to 1.0"
        )


class TestWeights:
    def test_a_column_says_how_often(self, reader: Reader) -> None:
        copies = chosen(reader, where="score is not None", sample_weights="score")
        expected = np.array([-1.0] * 36)
        for i, key in enumerate(keys_of(reader)):
            expected[i] = (int(key[-2:]) % 5) / 2 if not key.startswith("cat") else 0.0
        assert copies.num_rows == round(expected.sum())
        assert np.abs(means(copies) - expected).max() * 24 <= 0.5 + 1e-6
        assert (means(copies)[expected % 1 == 0] == expected[expected % 1 == 0]).all()

    def test_whole_weights_are_kept(self, reader: Reader) -> None:
        weights = np.arange(36) % 4
        copies = chosen(reader, sample_weights=weights)
        assert (copies.unit, copies.table.tolist()) == (1, weights.tolist())
        assert copies.table.dtype == np.uint8
        assert ids(reader, where="rare is not None", sample_weights="rare") == ids(reader, where="rare")

    def test_weights_of_samples_that_are_left_out_do_not_matter(self, reader: Reader) -> None:
        weights = np.where(np.arange(36) % 2, 1.5, np.nan)
        copies = chosen(reader, exclude=list(range(0, 36, 2)), sample_weights=weights)
        assert copies.num_rows == 27
        assert means(copies)[1::2] == pytest.approx(1.5, abs=1e-6)
        assert not copies.table[::2].any()

    def test_an_epoch_has_the_copies(self, reader: Reader) -> None:
        random = np.random.default_rng(1)
        weights = random.uniform(0, 3, 36)
        copies = chosen(reader, sample_weights=weights)
        settings = OrderSettings(seed=0, shuffle=True, lanes=2, window=20, sticky=True, copies_digest=copies.digest)
        order = Order(reader.manifest.segments.samples, settings, copies)
        counts = np.zeros((300, 36))
        for epoch in range(300):
            counts[epoch] = np.bincount(order.rank_batch(epoch, 0, order.num_positions, 0, 1).ids, minlength=36)
        assert ((counts == np.floor(means(copies))) | (counts == np.ceil(means(copies)))).all()
        assert np.abs(counts.mean(axis=0) - weights).max() < 0.15

    @pytest.mark.parametrize(
        ("weights", "sentence"),
        [
            ([-1.0, float("nan")] * 18, "sample_weights are negative or not finite for 36 samples, such as -1.0 for"),
            ([0.0] * 36, "sample_weights are 0 for all selected samples, so that an epoch would have none"),
            (
                [0.01] * 36,
                "sample_weights sum to 0.36, so that an epoch would have no sample; a weight is the mean num",
            ),
            ([1.0] * 35, "sample_weights has the shape [35]; it must be [36], one weight for each sample of "),
            ({"a": 1}, "sample_weights is dict; it must be the name of a column, or an array of numbers"),
            ([1e10] * 36, "sample_weights go up to 1e+10; they must be below 2**32: divide them"),
            ("scores", "sample_weights='scores' is no column of "),
            ("group", "sample_weights='group' is a column of texts; weights are numbers or truth values"),
            (
                "score",
                "the column 'score' has no value for 12 of 36 selected samples, and sample_weights needs one for",
            ),
        ],
    )
    def test_weights_that_cannot_be(self, reader: Reader, weights: Any, sentence: str) -> None:
        assert refused(reader, sample_weights=weights).startswith(sentence)


class TestBalance:
    def test_every_class_has_the_same_share(self, reader: Reader) -> None:
        exclude = "label == 0 and not key.endswith('-00')"  # leaves one of the twelve
        copies = chosen(reader, exclude=exclude, balance="label")
        labels = reader.describe(np.arange(36)).labels
        assert copies.num_rows == 25
        shares = [means(copies)[labels == label].sum() for label in range(3)]
        assert shares == pytest.approx([25 / 3] * 3, abs=1e-5)

    def test_what_is_balanced_stays_as_it_is(self, reader: Reader) -> None:
        assert ids(reader, balance="label") == list(range(36))
        assert ids(reader, balance="format") == list(range(36))

    def test_texts_and_truth_values_are_classes(self, reader: Reader) -> None:
        for column, values in (("group", ["left", "right"]), ("rare", [True, False])):
            copies = chosen(reader, where=f"{column} is not None", balance=column)
            read = np.array(reader.values(np.arange(36), column), object)
            assert copies.num_rows == 24
            assert [means(copies)[read == value].sum() for value in values] == pytest.approx([12, 12], abs=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                {"balance": "score"},
                "balance='score' is a column of floats; classes are integers, texts or truth values",
            ),
            ({"balance": 3}, "balance is 3; it must be the name of a column"),
            (
                {"balance": "group"},
                (
                    "the column 'group' has no value for 12 of 36 selected samples, and balance needs one for each;"
                    " leave them out with exclude=\"column('group') is None\""
                ),
            ),
            (
                {"balance": "label", "sample_weights": "score"},
                "sample_weights and balance are both given, and each says how often samples occur; give one",
            ),
        ],
    )
    def test_balances_that_cannot_be(self, reader: Reader, arguments: Any, sentence: str) -> None:
        assert refused(reader, **arguments) == sentence


def test_nothing_left_names_the_argument(reader: Reader) -> None:
    url = reader.url
    assert refused(reader, where="width > 1000000000") == (
        f"where='width > 1000000000' holds for none of the 36 samples of {url}; check its values"
    )
    assert refused(reader, where="label == 1", exclude="label == 1") == (
        f"exclude leaves none of 12 samples of {url}; exclude fewer"
    )


def test_excludes_that_cannot_be(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = reader.url
    assert refused(reader, exclude=["a", "b", "c", "d", keys_of(reader)[0]]) == (
        f"4 of 5 keys of exclude are of no sample of {url}: 'a', 'b', 'c', …; correct them, or leave them out"
    )
    assert refused(reader, exclude=[36]) == (
        f"exclude names sample 36, which {url} does not have; ids are from 0 to 35"
    )
    for wrong in (3, [1.5], np.ones(36, np.bool_), {1, 2}, [[1]], [[1], [2, 3]]):
        assert refused(reader, exclude=wrong).endswith(
            "it must be an expression, ids as integers, keys as texts, or the pathlib.Path of a file with one key a"
            " line"
        )
    monkeypatch.chdir(tmp_path)
    Path("bad-keys.txt").write_text("x")
    assert refused(reader, exclude="bad-keys.txt") == (
        "exclude='bad-keys.txt' is a text, and so an expression, but also the name of a file; for the keys in that file"
        " write exclude=pathlib.Path(…)"
    )
    assert refused(reader, where=3) == "where is 3; it must be an expression, such as 'label < 10'"


def test_plain_folders_and_adopted_ones_work(image_folder: Path, tmp_path: Path) -> None:
    plain = open_dataset(image_folder)
    adopt(image_folder, tmp_path / "adopted")
    adopted = open_dataset(tmp_path / "adopted")
    for reader in (plain, adopted):
        rows = reader.describe(np.arange(36))
        wide = [i for i in range(36) if rows.widths[i] >= 60 and rows.labels[i] != 1]
        assert ids(reader, where="label != 1 and width >= 60 and format == 'jpeg'") == wide
        assert ids(reader, exclude=[rows.keys[i] for i in range(36) if i not in wide]) == wide
        assert chosen(reader, where="label != 1", balance="label", limit=11).num_rows == 11
        assert refused(reader, balance="score").startswith("balance='score' is no column of ")


def test_a_folder_reads_headers_only_when_asked_for(image_folder: Path) -> None:
    reader = open_dataset(image_folder)
    reader.describe = None  # type: ignore[assignment, method-assign]
    assert len(ids(reader, where="label == 2 and key.startswith('cat')")) == 12
    with pytest.raises(TypeError):
        choose(reader, where="width > 3")


def test_the_size_of_batches_does_not_change_what_is_chosen(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = chosen(reader, where="width > 55", balance="label").digest
    for rows in (3, 8, 1000):
        monkeypatch.setattr(selection, "ROWS_A_BATCH", rows)
        monkeypatch.setattr(selections, "_ROWS_AT_ONCE", 8)
        monkeypatch.setattr(selection, "map_copies", lambda *_, **__: None)
        assert chosen(reader, where="width > 55", balance="label").digest == expected
