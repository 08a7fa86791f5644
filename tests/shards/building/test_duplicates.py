"""Exact duplicates are found by their bytes, whatever their names and wherever they lie."""

from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import feeder.shards.building.duplicates
from feeder.errors import ConfigError
from feeder.shards.building.duplicates import TAIL_BYTES, Duplicate, find_duplicates, treat_duplicates
from feeder.shards.errors import SourceError
from feeder.shards.sources import open_source
from feeder.shards.table import SampleTable
from tests.servers.s3_server import S3Bucket
from tests.shards.formats.test_tar_walk import packed


def write(root: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path = path.with_name(path.name + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def names(tables: Sequence[SampleTable]) -> list[list[str]]:
    return [list(table.names) for table in tables]


LONG = bytes(range(256)) * 40  # more than a tail


def test_duplicates_are_dropped_over_all_splits(tmp_path: Path) -> None:
    other = b"\1" + LONG[1:]  # differs before the tail
    write(tmp_path / "train", a__1=LONG, a__2=other, b__3=LONG)
    write(tmp_path / "val", a__4=b"x", b__5=LONG, b__6=b"y")
    tables, found = treat_duplicates(open_source(tmp_path), "drop")
    assert names(tables) == [["a/1.jpg", "a/2.jpg"], ["a/4.jpg", "b/6.jpg"]]
    assert found == [
        Duplicate(key="b/3", kept="a/1", split="train", kept_split="train"),
        Duplicate(key="b/5", kept="a/1", split="val", kept_split="train"),
    ]
    assert tables[0].stored["image"].sizes.tolist() == [len(LONG)] * 2


def test_keep_reads_nothing_and_fail_names_one(tmp_path: Path) -> None:
    tables = open_source(write(tmp_path, a__1=LONG, a__2=b"x", b__3=LONG))
    (tmp_path / "a" / "2.jpg").unlink()
    kept, found = treat_duplicates(tables, "keep")
    assert kept == tables
    assert found == []
    with pytest.raises(SourceError) as caught:
        treat_duplicates(tables, "fail")
    assert str(caught.value) == (
        f"1 of 3 images are exact duplicates, such as b/3.jpg, which has the bytes of a/1.jpg in {tmp_path}; take them "
        "out of the source, or leave them out with --duplicates drop"
    )
    with pytest.raises(ConfigError, match="^duplicates is 'ignore'; it must be one of 'keep', 'drop', 'fail'$"):
        treat_duplicates(tables, "ignore")


def test_a_split_of_nothing_but_duplicates_is_refused(tmp_path: Path) -> None:
    tables = open_source(write(tmp_path, train__a__1=LONG, val__a__4=LONG))
    with pytest.raises(SourceError) as caught:
        treat_duplicates(tables, "drop")
    assert str(caught.value) == (
        f"every image of the split 'val' in {tmp_path}/val is a duplicate of one before it, so the split would be "
        "empty; build without --duplicates drop, or leave the split out"
    )


def test_what_cannot_be_read_is_no_duplicate(tmp_path: Path) -> None:
    tables = open_source(write(tmp_path, a=b"", b=b"", c=b"x", d=b"x"))
    assert names(treat_duplicates(tables, "drop")[0]) == [["a.jpg", "b.jpg", "c.jpg"]]


def test_only_images_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = feeder.shards.building.duplicates.fetch

    def counting(table: SampleTable) -> object:
        asked.extend(table.stored["image"].sizes.tolist())
        return original(table)

    monkeypatch.setattr(feeder.shards.building.duplicates, "fetch", counting)
    other = LONG[:-1] + b"\0"  # differs in the tail
    tables = open_source(write(tmp_path, a=LONG, b=LONG + b"1", c=other, d=LONG, e=b"1", f=b"2", g=b"333"))
    seen: list[int] = []
    assert [rows.tolist() for rows in find_duplicates(tables, advance=seen.append)] == [[3], [0]]
    assert sorted(asked) == [1, 1, TAIL_BYTES, TAIL_BYTES, TAIL_BYTES, len(LONG), len(LONG)]
    assert sum(seen) == 7


def test_images_within_tars_and_on_s3(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    members = {"1.jpg": LONG, "1.mask.png": LONG, "2.jpg": b"x" * len(LONG), "3.jpg": LONG}
    (tmp_path / "a.tar").write_bytes(packed(members))
    fsspec.filesystem("s3").put(f"{tmp_path}/a.tar", f"{s3_bucket.url}/a.tar")
    for source in (f"{tmp_path}/a.tar", f"{s3_bucket.url}/a.tar"):
        tables, found = treat_duplicates(open_source(source), "drop")
        assert names(tables) == [["1.jpg", "2.jpg"]]
        assert [(pair.key, pair.kept) for pair in found] == [("3", "1")]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=2), min_size=1, max_size=40), st.integers(1, 9))
def test_duplicates_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], block: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "a.tar").write_bytes(packed({f"{number:03}.jpg": data for number, data in enumerate(contents)}))
    firsts: dict[bytes, int] = {}
    repeats = [(row, firsts.setdefault(data, row)) for row, data in enumerate(contents) if data]
    expected = [(row, first) for row, first in repeats if row != first]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeder.shards.building.duplicates, "_BLOCK", block)
        patch.setattr(feeder.shards.building.duplicates, "TAIL_BYTES", 1)
        rows, kept = find_duplicates(open_source(root / "a.tar"), threads=2)
    assert list(zip(rows.tolist(), kept.tolist(), strict=True)) == expected
    assert rows.dtype == np.int64
