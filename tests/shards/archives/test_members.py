"""The samples in tar archives: grouped as webdataset groups them."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.archives.members import MAX_EXTENSIONS, split_name, walk_archives, walk_samples
from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT
from feeder.shards.formats.tar_walk import DamagedArchiveError
from tests.shards.formats.test_tar_walk import packed


def archive(path: Path, *names: str) -> Path:
    path.write_bytes(packed({name: name.encode() for name in names}))
    return path


def test_members_of_a_key_are_a_sample(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", "s/1.cls", "s/1.jpg", "s/1.mask.PNG", "s/2.jpg", "s/3.JPG", "s/3.cls")
    samples = walk_samples(str(path), wanted=lambda extension: extension == "cls")
    assert list(samples.keys) == ["s/1", "s/2", "s/3"]
    assert samples.extensions == ("cls", "jpg", "mask.png")
    assert samples.sizes["mask.png"].tolist() == [12, ABSENT, ABSENT]
    assert samples.offsets["jpg"].tolist() == [1536, 3584, 4608]
    assert samples.contents["cls"].to_pylist() == [b"s/1.cls", None, b"s/3.cls"]
    assert (samples.damage, samples.size_bytes) == ("", path.stat().st_size)


def test_names_are_split_as_webdataset_splits_them() -> None:
    expand = pytest.importorskip("webdataset.tariterators").base_plus_ext
    for name in ("a.jpg", "a/b.c.d", "v1.0/x.jpg", "plain", "a.b/plain", "é.jpg", "a b.seg.png"):
        expected = expand(name)
        assert split_name(name) == (None if expected == (None, None) else expected)
    assert split_name("./a/b.JPG") == ("a/b", "jpg")
    for left_out in (
        "__meta__",
        "__meta__/1.jpg",
        "./__meta__/1.jpg",
        "._1.jpg",
        "a/._1.jpg",
        "a/.jpg",
        "a/1.",
        "README",
    ):
        assert split_name(left_out) is None


NAMES = st.text("ab._/é", min_size=1, max_size=8).filter(lambda name: "//" not in name and name.strip("/") == name)


@settings(max_examples=50, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=12, unique_by=str.lower))
def test_samples_are_those_of_webdataset(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Apart from hidden files, which webdataset leaves out at the top alone, and names that end at their first dot."""
    iterators = pytest.importorskip("webdataset.tariterators")
    names = [name for name in names if not re.search(r"(^|/)[.]|^[^.]*[.]$|/[^./]*[.]$", name)]
    path = tmp_path_factory.mktemp("any") / "a.tar"
    path.write_bytes(packed({name: name.encode() for name in names}, tarfile.PAX_FORMAT))
    with path.open("rb") as stream:
        files = [dict(file, __url__="") for file in iterators.tar_file_iterator(stream)]
    expected = list(iterators.group_by_keys(files))
    keys = [sample["__key__"] for sample in expected]
    if len(set(keys)) < len(keys):
        with pytest.raises(SourceError, match="holds two samples with the key"):
            walk_samples(str(path))
        return
    got = walk_samples(str(path), wanted=lambda extension: True)
    assert list(got.keys) == keys
    for row, sample in enumerate(expected):
        contents = {extension: got.contents[extension][row].as_py() for extension in got.extensions}
        assert {extension: data for extension, data in contents.items() if data is not None} == {
            extension: data for extension, data in sample.items() if extension not in ("__key__", "__url__")
        }


def test_what_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        walk_samples(str(archive(tmp_path / "a.tar", "1.jpg", "2.jpg", "1.cls")))
    assert str(caught.value) == (
        f"{tmp_path}/a.tar holds two samples with the key '1', with others between them; pack the members of a sample "
        "side by side and give each sample a name of its own"
    )
    with pytest.raises(SourceError) as caught:
        walk_samples(str(archive(tmp_path / "b.tar", "1.jpg", "1.JPG")))
    assert str(caught.value) == (
        f"{tmp_path}/b.tar holds two members 1.jpg; names differ only in case, or one was added twice: pack it again "
        "with one of them"
    )


def test_names_full_of_dots_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", *(f"photo {number}.at.{number}.jpg" for number in range(MAX_EXTENSIONS + 1)))
    with pytest.raises(SourceError) as caught:
        walk_samples(str(path))
    assert str(caught.value) == (
        f"{path} holds members with more than 256 extensions, such as 'at.256.jpg': a key ends at the first dot of a "
        "name, so names must not hold others; pack it again with names like 0001.jpg"
    )


def test_a_value_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed({"1.txt": bytes((1 << 20) + 1)}))
    with pytest.raises(SourceError, match="^1.txt in .*/a.tar has 1048577 bytes, more than the 1048576 that a text or"):
        walk_samples(str(path), wanted=lambda extension: True)


def test_samples_before_the_damage(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", "1.cls", "1.jpg", "2.cls", "2.jpg", "3.cls", "3.jpg")
    path.write_bytes(path.read_bytes()[:4096])  # the second sample is whole, but nothing says that it is
    with pytest.raises(DamagedArchiveError):
        walk_samples(str(path))
    samples = walk_samples(str(path), keep_damaged=True, wanted=lambda extension: True)
    assert list(samples.keys) == ["1"]
    assert samples.contents["jpg"].to_pylist() == [b"1.jpg"]
    assert "without the zero blocks that end an archive" in samples.damage


def test_archives_come_in_order(tmp_path: Path) -> None:
    paths = [str(archive(tmp_path / f"{number}.tar", f"{number}.jpg")) for number in range(20)]
    assert [next(iter(samples.keys)) for samples in walk_archives(paths, threads=3)] == list(map(str, range(20)))
    with pytest.raises(SourceError, match="no such tar archive"):
        list(walk_archives([*paths, str(tmp_path / "none.tar")]))


def test_empty_archives(tmp_path: Path) -> None:
    samples = walk_samples(str(archive(tmp_path / "a.tar")))
    assert (len(samples), samples.extensions) == (0, ())
    assert samples.sizes == {}
    assert isinstance(samples.size_bytes, int)
    assert np.array_equal(list(samples.keys), [])
