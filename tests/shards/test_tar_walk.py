"""Walking headers of any tar archive: the same members as `tarfile`, and every cut and damage found."""

import gzip
import io
import random
import subprocess
import tarfile
from itertools import islice
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.errors import SourceError
from feeder.shards.members import walk_samples
from feeder.shards.tar_walk import DamagedArchiveError, Member, open_tar, walk_tar

FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def packed(members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **headers: str) -> bytes:
    """Return an archive; a name that ends with a slash is a folder's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def walked(path: Path | str) -> list[Member]:
    with open_tar(str(path)) as file:
        return list(walk_tar(file))


def by_tarfile(path: Path) -> list[Member]:
    with tarfile.open(path) as archive:
        return [
            Member(member.name, member.offset_data, member.size, member.offset) for member in archive if member.isreg()
        ]


@pytest.mark.parametrize("form", FORMS)
def test_members_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    path = tmp_path / "a.tar"
    names = ["a.jpg", "./b.jpg", "folder/", "folder/c.jpg", "empty.txt", "d" * 99, "x/" * 60 + "prefixed.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["é" * 80 + ".jpg", "long/" * 80 + "name.jpg"]
    path.write_bytes(packed({name: b"" if name[-1] in "/t" else b"x" * 3 * len(name) for name in names}, form))
    got = walked(path)
    assert got == by_tarfile(path)
    assert [member.name for member in got] == [name for name in names if not name.endswith("/")]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=220).filter(
            lambda name: name.strip("/") == name
        ),
        st.binary(max_size=1100),
        max_size=8,
    ),
    st.sampled_from(FORMS[1:]),
)
def test_any_names_and_sizes(tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], form: int) -> None:
    path = tmp_path_factory.mktemp("any") / "a.tar"
    path.write_bytes(packed(members, form))
    assert walked(path) == by_tarfile(path)


def test_links_and_folders_are_stepped_over(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.jpg").write_bytes(b"one")
    (tmp_path / "folder" / "2.jpg").symlink_to("1.jpg")
    (tmp_path / "folder" / "3.jpg").hardlink_to(tmp_path / "folder" / "1.jpg")
    for form in ("v7", "ustar", "gnu", "pax"):
        subprocess.run(["tar", f"--format={form}", "-cf", f"{form}.tar", "folder"], cwd=tmp_path, check=True)
        (member,) = walked(tmp_path / f"{form}.tar")
        assert [member] == by_tarfile(tmp_path / f"{form}.tar")
        assert member.size == 3


def test_sizes_beyond_eight_gigabytes(tmp_path: Path) -> None:
    huge = 9 << 30
    for form in FORMS[1:]:
        info = tarfile.TarInfo("huge.bin")
        info.size = huge
        path = tmp_path / f"{form}.tar"
        with path.open("wb") as file:
            file.write(info.tobuf(form))
            file.truncate(file.tell() + huge)  # a hole
            file.seek(0, io.SEEK_END)
            file.write(packed({"after.jpg": b"x"}))
        assert walked(path) == by_tarfile(path)
        assert [member.size for member in walked(path)] == [huge, 1]


def test_global_records_hold_for_all_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed({"a.jpg": b"abc"}, tarfile.PAX_FORMAT, comment="of a commit"))
    assert walked(path) == by_tarfile(path) == [Member("a.jpg", 1536, 3, 1024)]


def test_a_cut_at_every_block_is_found(tmp_path: Path) -> None:
    data = packed({f"é{number}.jpg": b"x" * 700 * number for number in range(4)}, tarfile.PAX_FORMAT)
    end = -(-len(data.rstrip(b"\0")) // 512) * 512  # where the zero blocks begin: one of them tells of the end
    path = tmp_path / "a.tar"
    for size in range(0, len(data), 512):
        path.write_bytes(data[:size])
        if size > end:
            assert len(walked(path)) == 4
            continue
        with pytest.raises(DamagedArchiveError) as caught:
            walked(path)
        assert str(caught.value).startswith(f"{path} is not a whole tar archive of {size} bytes: ")
        assert caught.value.end <= size


def test_archives_joined_with_cat_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(2 * packed({"a.jpg": b"x" * 100, "b.jpg": b"y"}))
    with pytest.raises(DamagedArchiveError) as caught:
        walked(path)
    assert caught.value.end == 2048
    assert str(caught.value) == (
        f"{path} goes on behind the zero blocks at byte 2048 that end an archive, as when archives are joined with "
        "cat, and most programs do not read on; keep the archives apart, or join them with tar --concatenate"
    )
    assert len(walk_samples(str(path), keep_damaged=True)) == 2


def test_compressed_archives_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (gzip.compress(packed({"a.jpg": b"x"})), gzip.compress(random.Random(0).randbytes(5000))):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"a.tar is compressed \(gzip\), so no sample in it can be read alone"):
            walked(path)
    path.write_bytes(packed({"BZh1.jpg": b"x"}))
    assert [member.name for member in walked(path)] == ["BZh1.jpg"]


def test_a_flipped_bit_in_a_header_is_found(tmp_path: Path) -> None:
    data = packed({"a.jpg": b"x" * 100, "b.jpg": b"y"})
    path = tmp_path / "a.tar"
    for byte in (0, 50, 124, 130, 150, 156, 257, 400):
        damaged = bytearray(data)
        damaged[1024 + byte] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DamagedArchiveError) as caught:
            walked(path)
        assert str(caught.value) == (
            f"{path} is not a whole tar archive of {len(data)} bytes: the header at byte 1024 is damaged; copy it "
            "again from its origin"
        )
        assert caught.value.end == 1024


def test_sentences(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(packed({"a.jpg": b"x" * 5000})[:2048])
    with pytest.raises(DamagedArchiveError) as caught:
        walked(tmp_path / "cut.tar")
    assert str(caught.value) == (
        f"{tmp_path}/cut.tar is not a whole tar archive of 2048 bytes: the content of 'a.jpg' is cut: 5000 bytes from "
        "byte 512 on; copy it again from its origin"
    )
    with pytest.raises(SourceError, match="^no such tar archive: /nowhere/a.tar; check the path$"):
        walked("/nowhere/a.tar")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
        file.seek(1 << 20)
        file.write(b"end")
    for form in ("gnu", "pax"):
        subprocess.run(["tar", "-S", f"--format={form}", "-cf", f"{form}.tar", "sparse"], cwd=tmp_path, check=True)
        with pytest.raises(SourceError, match="as a sparse file, whose bytes do not lie in the archive as they are"):
            walked(tmp_path / f"{form}.tar")


def test_reading_behind_a_url_skips_large_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/walk/a.tar", packed({f"{number}.bin": bytes(5 << 20) for number in range(4)}))
    asked = []
    original = type(filesystem).cat_ranges

    def counting(self: object, paths: list[str], starts: list[int], ends: list[int], **options: object) -> object:
        asked.extend(end - start for start, end in zip(starts, ends, strict=True))
        return original(self, paths, starts, ends, **options)

    monkeypatch.setattr(type(filesystem), "cat_ranges", counting)
    assert [member.size for member in walked("memory://walk/a.tar")] == [5 << 20] * 4
    assert sum(asked) <= 5 << 20


@pytest.mark.parametrize("size", [b"-0000001001\0", b"+0000000001\0", b"0_000000001\0", b"00000000008\0"])
def test_a_size_that_is_not_octal_digits_is_damage(tmp_path: Path, size: bytes) -> None:
    data = bytearray(packed({"a.jpg": b"x"}))
    data[124:136] = size
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * ord(" "))
    (tmp_path / "a.tar").write_bytes(data)
    with (
        open_tar(str(tmp_path / "a.tar")) as file,
        pytest.raises(DamagedArchiveError, match="the header at byte 0 is damaged"),
    ):
        list(islice(walk_tar(file), 3))  # a negative size led back to the same header, for ever
