"""The record of an interrupted build: what is the same build, and how what differs is said."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feeder.shards.building.plan_file import PlanRecord, parse_record, record_of, refuse_another, sample_digests
from feeder.shards.building.planning import Plan
from feeder.shards.errors import ResumeError
from feeder.shards.fields import Field
from feeder.shards.names import PathTable
from feeder.shards.table import Places, SampleTable

OPTIONS: dict[str, Any] = {"seed": 0, "shard_bytes": 100, "shuffle": True, "resize": None, "sizes": (1, 2)}


def table(root: Path, *, names: int = 300, split: str | None = None) -> SampleTable:
    """Return a table of local images with a caption each."""
    paths = [f"a/{number:03d}.jpg" for number in range(names)]
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if not (root / path).exists():
            (root / path).write_bytes(b"x")
            os.utime(root / path, ns=(0, 10**9))
    return SampleTable(
        split=split,
        root=str(root),
        names=PathTable(paths),
        labels=np.zeros(names, np.int64),
        classes=("a",),
        fields={"image": Field(type="image"), "label": Field(type="int64"), "text": Field(type="string")},
        stored={"image": Places(files=PathTable(paths), sizes=np.ones(names, np.int64))},
        values={"text": pa.array([f"text {number}" if number % 7 else None for number in range(names)])},
    )


def record(*tables: SampleTable, options: dict[str, Any] = OPTIONS, cut: int = 10) -> PlanRecord:
    plans = [Plan(order=np.arange(len(one)), starts=np.append(np.arange(0, len(one), cut), len(one))) for one in tables]
    return record_of(tables, plans, options)


def refusal(found: PlanRecord, now: PlanRecord, *tables: SampleTable) -> str:
    with pytest.raises(ResumeError) as caught:
        refuse_another(found, now, tables, "/out")
    return str(caught.value)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    tables = (table(tmp_path / "1", split="train"), table(tmp_path / "2", split="val", names=5))
    written = record(*tables)
    found = parse_record(written.encoded(), "/out/.building.plan")
    assert found.encoded() == written.encoded()
    refuse_another(found, record(*tables), tables, "/out")


def test_what_is_no_record_is_refused() -> None:
    whole = PlanRecord(options={}, splits=[]).encoded()
    for data in (b"", b"[]\n", b"{}\n", b"\xff", whole.replace(b'"version": 1', b'"version": 2')):
        with pytest.raises(ResumeError, match=r"^/out/p is not the record of a build that this version of shardfeed"):
            parse_record(data, "/out/p")


def test_a_cut_record_is_refused(tmp_path: Path) -> None:
    data = record(table(tmp_path)).encoded()
    with pytest.raises(ResumeError, match="discard what was written with --restart"):
        parse_record(data[:-1], "/out/p")


def test_other_options_are_named(tmp_path: Path) -> None:
    one = table(tmp_path)
    sentence = refusal(record(one), record(one, options=OPTIONS | {"seed": 3, "resize": "shorter=256"}), one)
    assert sentence == (
        "destination /out holds an interrupted build with other options: resize was None, now it is 'shorter=256'; "
        "seed was 0, now it is 3; run it with the same options to go on, or discard it with --restart"
    )


OTHER = "destination /out holds an interrupted build of other input: "
END = "; bring the source back to go on, or discard the build with --restart"


def test_other_splits_are_named(tmp_path: Path) -> None:
    train, val = (table(tmp_path / split, split=split) for split in ("train", "val"))
    sentence = refusal(record(train, val), record(train), train)
    assert sentence == f"{OTHER}it had train and val, now it has train{END}"


def test_a_file_that_was_changed_is_named(tmp_path: Path) -> None:
    before = table(tmp_path)
    found = record(before)
    os.utime(tmp_path / "a" / "007.jpg", ns=(0, 2 * 10**9))
    assert refusal(found, record(before), before) == f"{OTHER}the first that differs is a/007.jpg in {tmp_path}{END}"


def test_files_more_or_fewer_are_counted_and_one_is_named(tmp_path: Path) -> None:
    small, large = table(tmp_path, names=299), table(tmp_path, names=300)
    more = f"{OTHER}299 samples then, 300 now; the first that differs is a/299.jpg in {tmp_path}{END}"
    assert refusal(record(small), record(large), large) == more
    fewer = f"{OTHER}300 samples then, 299 now; nothing stands after a/298.jpg in {tmp_path} any more{END}"
    assert refusal(record(large), record(small), small) == fewer
    first_gone = large.take(np.arange(1, 300))
    gone = f"{OTHER}300 samples then, 299 now; the first that differs is a/001.jpg in {tmp_path}{END}"
    assert refusal(record(large), record(first_gone), first_gone) == gone


def test_whatever_a_sample_has_counts(tmp_path: Path) -> None:
    one = table(tmp_path)
    image = one.stored["image"]
    offsets = np.arange(300)
    others = [
        dataclasses.replace(one, labels=one.labels + 1),
        dataclasses.replace(one, values={"text": pa.array(["other"] * 300)}),
        dataclasses.replace(one, keys=PathTable(f"k{number}" for number in range(300))),
        dataclasses.replace(one, stored={"image": dataclasses.replace(image, sizes=image.sizes + 1)}),
        dataclasses.replace(one, stored={"image": dataclasses.replace(image, offsets=offsets)}),
        dataclasses.replace(one, stored={"image": image, "mask": image}),
    ]
    digests = [sample_digests(each) for each in (one, *others)]
    for number, first in enumerate(digests):
        for second in digests[:number]:
            assert (first != second).mean() > 0.8  # of the texts every seventh is null
    assert len(np.unique(digests[0])) == 300
    classes = dataclasses.replace(one, classes=("b",))
    assert refusal(record(one), record(classes), classes) == (
        f"{OTHER}the classes or the fields of {tmp_path} are others{END}"
    )


def test_a_moved_source_is_the_same_input(tmp_path: Path) -> None:
    before = record(table(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = table(tmp_path / "there")
    refuse_another(before, record(moved), [moved], "/out")


def test_files_behind_urls_count_by_name_and_size(tmp_path: Path) -> None:
    remote = dataclasses.replace(table(tmp_path), root="s3://bucket/images")
    assert len(np.unique(sample_digests(remote))) == 300


def test_several_samples_of_one_file_share_its_time(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x")
    places = Places(
        files=PathTable(["x.tar"]),
        sizes=np.ones(300, np.int64),
        numbers=np.zeros(300, np.int64),
        offsets=np.arange(300),
    )
    one = dataclasses.replace(table(tmp_path), stored={"image": places})
    before = sample_digests(one)
    os.utime(tmp_path / "x.tar", ns=(0, 5))
    assert (sample_digests(one) != before).all()


def test_another_plan_of_the_same_input_is_of_another_version(tmp_path: Path) -> None:
    one = table(tmp_path)
    assert refusal(record(one), record(one, cut=11), one) == (
        "destination /out holds an interrupted build whose shards another version of shardfeed has planned; finish it "
        "with that, or discard it with --restart"
    )


def test_a_difference_that_no_byte_shows_is_said_without_an_example(tmp_path: Path) -> None:
    one = table(tmp_path)
    found = record(one)
    hidden = dataclasses.replace(found.splits[0], input="0" * 32)
    sentence = refusal(PlanRecord(options=found.options, splits=[hidden]), found, one)
    assert sentence == f"{OTHER}one of the 300 samples of {tmp_path} differs{END}"
