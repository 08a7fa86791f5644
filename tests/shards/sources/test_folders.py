"""Which files of a folder are images, in which order, with which labels."""

import os
import sys
from pathlib import Path

import pytest

from feeder.shards.errors import SourceError
from feeder.shards.sources.folders import scan_source
from feeder.shards.table import UNREADABLE


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


def test_class_folders_have_imagefolders_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/1.jpeg", "a/deep/er/x.png", "a/z.webp", "a-b/q.tif", "Z/y.bmp", "é/u.gif", "a/no.txt")
    (files,) = scan_source(tmp_path)
    assert files.classes == ("Z", "a", "a-b", "b", "é")
    assert list(files.names) == [
        "Z/y.bmp",
        "a/deep/er/x.png",
        "a/z.webp",
        "a-b/q.tif",
        "b/1.jpeg",
        "b/2.JPG",
        "é/u.gif",
    ]
    assert files.labels.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert files.stored["image"].sizes.tolist() == [len(os.fsencode(p)) if p.isascii() else len(p) for p in files.names]
    assert (files.split, files.root, files.labelled) == (None, str(tmp_path), True)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.jpg", "notes.md")
    (files,) = scan_source(f"file://{tmp_path}")
    assert list(files.names) == ["a.jpg", "b.jpg"]
    assert (files.classes, files.labels.tolist(), files.labelled) == ((), [-1, -1], False)


def test_splits_share_one_mapping_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/bee/1.jpg", "val/cat/1.jpg", "test/9.jpg", "readme.txt")
    train, val, test = scan_source(tmp_path)
    assert [part.split for part in (train, val, test)] == ["train", "val", "test"]
    assert train.classes == val.classes == test.classes == ("ant", "bee", "cat")
    assert (train.labels.tolist(), val.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 2], [-1])
    assert (list(val.names), val.root) == (["bee/1.jpg", "cat/1.jpg"], str(tmp_path / "val"))
    (alone,) = scan_source(tmp_path / "val")
    assert (alone.classes, alone.labels.tolist()) == (("bee", "cat"), [0, 1])


def test_a_class_may_be_called_train_beside_others(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "plane/1.jpg")
    (files,) = scan_source(tmp_path)
    assert files.classes == ("plane", "train")


def test_hidden_names_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", ".cache/2.jpg", "a/.thumbs/3.jpg")
    (files,) = scan_source(tmp_path)
    assert list(files.names) == ["a/1.jpg"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "1.jpg")
    root = touch(tmp_path / "root", "a/1.jpg", "a/inner/2.jpg")
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "inner" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "to-itself").symlink_to(root / "a" / "to-itself")
    (root / "a" / "3.jpg").symlink_to(elsewhere / "1.jpg")
    (files,) = scan_source(root)
    assert list(files.names) == ["a/1.jpg", "a/3.jpg", "a/inner/2.jpg", "b/1.jpg", "c/1.jpg"]


def test_folders_may_be_nested_deeper_than_pythons_stack(tmp_path: Path) -> None:
    folders = [str(tmp_path / "a" / ("d/" * depth)) for depth in range(sys.getrecursionlimit() + 100)]
    for folder in folders:
        os.mkdir(folder)
    image = Path(touch(Path(folders[-1]), "1.jpg"), "1.jpg")
    touch(tmp_path, "b/2.jpg")
    try:
        (files,) = scan_source(tmp_path)
        assert list(files.names) == [str(image.relative_to(tmp_path)), "b/2.jpg"]
        assert files.classes == ("a", "b")
    finally:
        image.unlink()
        for folder in reversed(folders):  # shutil.rmtree, by which pytest tidies up, calls itself
            os.rmdir(folder)


def test_what_is_no_regular_file_has_no_size(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/folder.jpg/2.jpg")
    (tmp_path / "a" / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (files,) = scan_source(tmp_path)
    assert dict(zip(files.names, files.stored["image"].sizes.tolist(), strict=True)) == {
        "a/1.jpg": 7, "a/dangling.jpg": UNREADABLE, "a/folder.jpg/2.jpg": 18, "a/pipe.jpg": UNREADABLE
    }  # fmt: skip


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    touch(folder, os.fsdecode(b"\xff.jpg"))
    (files,) = scan_source(tmp_path)
    assert files.classes == ("caf\\xe9",)
    assert files.names.encoded(0) == b"caf\xe9/\xff.jpg"


def test_class_names_that_look_the_same_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"caf\xe9/1.jpg"), "caf\\xe9/1.jpg")
    with pytest.raises(SourceError, match="differ only in bytes that are not UTF-8; rename one of them$"):
        scan_source(tmp_path)


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.txt", "file.jpg", "mixed/a/1.jpg", "mixed/2.jpg")
    sentences = {
        tmp_path / "a": f"no images in {tmp_path}/a: expected files named .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, "
        ".pgm, .png, .ppm, .tif, .tiff, .webp in it or in class folders; check the path",
        tmp_path / "none": f"no such source: {tmp_path}/none; expected a folder of images",
        tmp_path / "file.jpg": f"source {tmp_path}/file.jpg is a file, expected a folder of images",
        tmp_path / "mixed": f"{tmp_path}/mixed holds both class folders (a, …) and images beside them (2.jpg, …), so "
        "their label is unknown; move those images into class folders, or away",
    }
    for source, sentence in sentences.items():
        with pytest.raises(SourceError) as caught:
            scan_source(source)
        assert str(caught.value) == sentence
