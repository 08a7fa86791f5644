"""Splits by hash stay when samples are added; balanced orders deal classes out evenly."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.shards.errors import SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.names import PathTable
from feeder.shards.sources.splitting import balanced_order, cut_table, hash_points, split_by_hash
from feeder.shards.table import Places, SampleTable


def table(names: list[str], split: str | None = None) -> SampleTable:
    paths = PathTable(names)
    return SampleTable(
        split=split,
        root="/data",
        names=paths,
        labels=np.arange(len(names)) % 3,
        classes=("a", "b", "c"),
        fields={"image": Field(type="image"), "label": LABEL},
        stored={"image": Places(files=paths, sizes=np.arange(len(names)))},
    )


NAMES = [f"c/{number}.jpg" for number in range(2000)]


def test_a_split_by_hash_has_about_its_fraction() -> None:
    parts = split_by_hash([table(NAMES)], {"test": 0.1, "val": 0.02})
    assert [part.split for part in parts] == ["train", "val", "test"]
    assert [len(part) for part in parts] == [1744, 42, 214]
    assert sorted(name for part in parts for name in part.names) == sorted(NAMES)
    assert all(part.classes == ("a", "b", "c") for part in parts)
    val = parts[1]
    assert [val.stored["image"].file(row) for row in range(len(val))] == list(val.names)
    assert (val.stored["image"].sizes % 3 == val.labels).all()


@given(st.sets(st.integers(0, 10**6), min_size=150, max_size=300), st.sets(st.integers(0, 10**6), max_size=100))
def test_samples_stay_in_their_split_when_others_come(before: set[int], more: set[int]) -> None:
    def splits(numbers: set[int]) -> dict[str, str | None]:
        parts = split_by_hash([table([f"{number}.jpg" for number in sorted(numbers)])], {"val": 0.3})
        return {name: part.split for part in parts for name in part.names}

    old, new = splits(before), splits(before | more)
    assert all(new[name] == split for name, split in old.items())


def test_places_of_the_hash_are_pinned() -> None:
    """Another rule would move samples between the splits of existing datasets."""
    assert [round(point, 6) for point in hash_points(table(["a.jpg", "b/c.jpg"])).tolist()] == PINNED


PINNED = [0.184607, 0.07526]


def test_val_is_cut_off_train_where_there_are_splits() -> None:
    parts = split_by_hash([table(NAMES, "train"), table(["x.jpg"], "test")], {"val": 0.1})
    assert [(part.split, len(part)) for part in parts] == [("train", 1782), ("val", 218), ("test", 1)]
    assert split_by_hash(parts, {}) == parts


def test_splits_that_cannot_be() -> None:
    with pytest.raises(SourceError) as caught:
        split_by_hash([table(NAMES, "train"), table(NAMES, "val")], {"val": 0.1})
    assert str(caught.value) == (
        "/data cannot be split into train, val, because it has the splits train, val; splits by hash are cut off the "
        "samples of 'train', or of a source without splits"
    )
    with pytest.raises(SourceError) as caught:
        split_by_hash([table(["a.jpg", "b.jpg"])], {"val": 0.001})
    assert str(caught.value) == (
        "the split 'val' by hash would be empty: 2 samples are too few for a fraction of 0.001; choose a larger one"
    )


def test_parts_stand_in_the_order_of_splits() -> None:
    parts = cut_table(table(NAMES[:5]), np.array([1, 0, 1, 3, 0]), ["test", "train", "val", None])
    assert [part.split for part in parts] == [None, "train", "test"]
    assert list(parts[1].names) == [NAMES[0], NAMES[2]]


@given(st.lists(st.integers(-1, 5), max_size=60), st.integers(-(2**63), 2**63 - 1))
def test_classes_take_turns(labels: list[int], seed: int) -> None:
    order = balanced_order(np.array(labels, np.int64), seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    dealt = [labels[row] for row in order]
    position = 0
    for turn in range(max(map(labels.count, labels), default=0)):
        expected = {label for label in labels if labels.count(label) > turn}
        assert set(dealt[position : position + len(expected)]) == expected
        position += len(expected)


def test_balanced_orders_depend_on_the_seed_alone() -> None:
    labels = np.arange(60) % 4
    assert balanced_order(labels, 1).tolist() == balanced_order(labels.copy(), 1).tolist()
    assert balanced_order(labels, 1).tolist() != balanced_order(labels, 2).tolist()
    assert balanced_order(labels, 7)[:8].tolist() == BALANCED


BALANCED = [16, 39, 37, 58, 3, 45, 24, 14]


def test_cutting_keeps_a_whole_table() -> None:
    whole = table(NAMES[:3])
    assert cut_table(whole, np.zeros(3, np.int64), ["val"]) == [dataclasses.replace(whole, split="val")]
