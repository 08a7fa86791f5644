"""Index files for DALI and energon, held against the tools' own algorithms over `tarfile` of the standard library."""

import itertools
import json
import os
import re
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from feeder.shards.archives.foreign_indexes import write_foreign_indexes
from feeder.shards.errors import DestinationError, SourceError
from tests.tar_archives import FORMATS, add_member, wds2idx_samples


def odd_archive(path: Path, kind: str) -> str:
    """Write an archive with what other programs leave out, long names where the format has them, and empty members."""
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        add_member(archive, "d", b"", tarfile.DIRTYPE)
        add_member(archive, "d/0001.jpg", b"x" * 1000)
        add_member(archive, "d/0001.cls", b"3")
        add_member(archive, "d/0002.seg.png", b"")
        add_member(archive, "d/0002.jpg", b"y" * 512)
        if kind != "ustar":
            add_member(archive, "d/" + "l" * 150 + ".jpg", b"z" * 700)
            add_member(archive, "d/" + "l" * 150 + ".txt", b"hello")
        add_member(archive, "e/.hidden.jpg", b"h")
        add_member(archive, "README", b"r")
        add_member(archive, "__meta__/x.json", b"{}")
        add_member(archive, "d/link.jpg", b"", tarfile.SYMTYPE, "0001.jpg")
        add_member(archive, "d/0003.jpg", b"k" * 1024)
        add_member(archive, "d/0003.cls", b"2")
        add_member(archive, "f", b"", tarfile.DIRTYPE)
    return str(path)


def index_of_wds2idx(path: str) -> str:
    """Return the index that ``wds2idx`` (DALI 1.x, version v1.2) writes, by its way without GNU tar."""
    samples = wds2idx_samples(path)
    lines = [" ".join(" ".join(map(str, component)) for component in sample) for sample in samples]
    return "".join(f"{line}\n" for line in [f"v1.2 {len(samples)}", *lines])


def index_of_energon(path: str) -> bytes:
    """Return the index that energon's ``prepare`` (7.x) writes."""
    offsets = []
    last = None
    with tarfile.open(path) as archive:
        for member in archive:
            match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name) or match is None:
                continue
            if match.group(1) != last:
                offsets.append(member.offset)
                last = match.group(1)
        offsets.append(archive.offset)
    return struct.pack(f"{len(offsets)}Q", *offsets)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_index_for_dali_is_that_of_wds2idx(kind: str, tmp_path: Path) -> None:
    tar = odd_archive(tmp_path / "a.tar", kind)
    report = write_foreign_indexes({"train": [tar]}, "dali")
    assert report.written == [tmp_path / "a.idx"]
    expected = index_of_wds2idx(tar)
    assert (tmp_path / "a.idx").read_text() == expected
    assert report.samples == {tar: int(expected.split("\n")[0].split()[1])}
    assert sorted(os.listdir(tmp_path)) == ["a.idx", "a.tar"]


def test_the_offsets_for_dali_are_those_that_gnu_tar_tells_wds2idx(tmp_path: Path) -> None:
    """Its usual way: the block after a member, less its size, down to a whole block."""
    tar = odd_archive(tmp_path / "a.tar", "ustar")
    write_foreign_indexes({"train": [tar]}, "dali")
    command = ["tar", "--list", "--block-num", "--file", tar]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    blocks = [(line.split(": ")[1], int(line.split()[1].rstrip(":"))) for line in listing.stdout.splitlines()]
    after = {name: start for (name, _), (_, start) in itertools.pairwise(blocks)}
    checked = 0
    for line in (tmp_path / "a.idx").read_text().splitlines()[1:]:
        parts = line.split()
        for _, offset, size, name in zip(*(iter(parts),) * 4, strict=True):
            assert int(offset) == (after[name] * 512 - int(size)) // 512 * 512
            checked += 1
    assert checked == 8


@pytest.mark.parametrize("kind", FORMATS)
def test_the_index_for_energon_is_that_of_its_prepare(kind: str, tmp_path: Path) -> None:
    tar = odd_archive(tmp_path / "a.tar", kind)
    report = write_foreign_indexes({"train": [tar]}, "energon")
    data = (tmp_path / "a.tar.idx").read_bytes()
    assert data == index_of_energon(tar)
    count = len(data) // 8 - 1
    assert report.samples == {tar: count}
    assert json.loads((tmp_path / ".nv-meta" / ".info.json").read_text()) == {"shard_counts": {"a.tar": count}}


def test_energon_gets_the_tars_of_each_split_and_a_kind_of_samples(tmp_path: Path) -> None:
    splits = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        splits[split] = [odd_archive(tmp_path / split / "0.tar", "gnu")]
    report = write_foreign_indexes(splits, "energon")
    meta = tmp_path / ".nv-meta"
    names = ["train/0.tar.idx", "val/0.tar.idx", ".nv-meta/.info.json", ".nv-meta/split.yaml", ".nv-meta/dataset.yaml"]
    assert [str(path.relative_to(tmp_path)) for path in report.written] == names
    assert json.loads((meta / "split.yaml").read_text()) == {
        "split_parts": {"train": ["train/0.tar"], "val": ["val/0.tar"]},
        "exclude": [],
    }
    assert (meta / "dataset.yaml").read_text() == "__module__: megatron.energon\n__class__: CrudeWebdataset\n"


def test_what_is_there_already_is_kept_if_it_says_the_same(tmp_path: Path) -> None:
    tar = odd_archive(tmp_path / "a.tar", "gnu")
    write_foreign_indexes({"train": [tar]}, "energon")
    meta = tmp_path / ".nv-meta"
    (meta / "dataset.yaml").write_text("__class__: ImageClassificationSample\n")
    (meta / ".info.json").write_text(json.dumps({"energon_version": "7.0", "shard_counts": {"a.tar": 5}}))
    report = write_foreign_indexes({"train": [tar]}, "energon")
    assert report.written == []
    assert len(report.kept) == 4
    assert "ImageClassificationSample" in (meta / "dataset.yaml").read_text()


def test_a_file_that_says_something_else_is_overwritten_only_if_asked(tmp_path: Path) -> None:
    tar = odd_archive(tmp_path / "a.tar", "gnu")
    (tmp_path / "a.idx").write_text("v1.1 7\n")
    with pytest.raises(DestinationError) as caught:
        write_foreign_indexes({"train": [tar]}, "dali")
    size = len(index_of_wds2idx(tar))
    assert str(caught.value) == (
        f"{tmp_path}/a.idx exists and says something else (it has 7 bytes, expected {size}); remove it, or overwrite "
        "such files with --replace"
    )
    assert (tmp_path / "a.idx").read_text() == "v1.1 7\n"
    write_foreign_indexes({"train": [tar]}, "dali", replace=True)
    assert (tmp_path / "a.idx").read_text() == index_of_wds2idx(tar)


def test_a_name_with_a_space_cannot_stand_in_the_index_for_dali(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add_member(archive, "my cat.jpg", b"x")
    with pytest.raises(SourceError) as caught:
        write_foreign_indexes({"train": [str(tmp_path / "a.tar")]}, "dali")
    assert str(caught.value) == (
        f"{tmp_path}/a.tar holds 'my cat.jpg', which DALI's index cannot name: spaces separate its columns; pack the "
        "archive again with names without them, as 'feeder build' writes them"
    )
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("tool", ["dali", "energon"])
def test_an_archive_that_is_cut_or_empty_gets_no_index(tool: str, tmp_path: Path) -> None:
    tar = odd_archive(tmp_path / "a.tar", "gnu")
    os.truncate(tar, 2000)
    with pytest.raises(SourceError, match="is not a whole tar archive of 2000 bytes"):
        write_foreign_indexes({"train": [tar]}, tool)
    with tarfile.open(tmp_path / "b.tar", "w"):
        pass
    with pytest.raises(SourceError, match="b.tar holds no samples, which no loader takes; remove it"):
        write_foreign_indexes({"train": [str(tmp_path / "b.tar")]}, tool)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "b.tar"]
