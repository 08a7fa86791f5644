"""Plain image folders behind the reader that shards have."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.errors import ShardError, SourceError, StorageError
from feeder.shards.reading import folder
from feeder.shards.reading.folder import FolderReader
from feeder.shards.reading.opening import open_dataset
from tests.images import encoded


def test_a_folder_reads_like_the_shards_built_from_it(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "FILES_PER_GROUP", 5)
    build(image_folder, tmp_path / "out", BuildOptions(shuffle=False, shard_samples=5))
    adopted, built = open_dataset(image_folder), open_dataset(tmp_path / "out")
    assert isinstance(adopted, FolderReader)
    assert adopted.manifest.format == "folder"
    assert adopted.manifest.classes == built.manifest.classes
    assert adopted.manifest.first_ids.tolist() == built.manifest.first_ids.tolist()
    ids = np.array([35, 0, 0, 17])
    (rows, images), (expected, expected_images) = adopted.read(ids), built.read(ids)
    assert images == expected_images
    assert rows.keys == [f"{key}.jpg" for key in expected.keys]
    for name in ("labels", "widths", "heights"):
        assert getattr(rows, name).tolist() == getattr(expected, name).tolist()
    assert rows.formats == expected.formats
    described = pickle.loads(pickle.dumps(adopted)).describe(ids)
    assert (described.keys, described.widths.tolist()) == (rows.keys, rows.widths.tolist())


def test_a_file_that_changed_since_the_folder_was_opened_is_named(image_folder: Path) -> None:
    reader = open_dataset(image_folder)
    path = image_folder / "ant" / "ant-00.jpg"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ShardError) as caught:
        reader.read(np.array([0]))
    assert str(caught.value) == (
        f"{path} changed since the folder was opened: it had {size} bytes and now has {size + 4}; open the dataset "
        "again, which then has another digest"
    )


def test_the_digest_follows_names_sizes_and_labels(image_folder: Path) -> None:
    digests = [open_dataset(image_folder).manifest.digest]
    assert open_dataset(image_folder).manifest.digest == digests[0]
    (image_folder / "dog").mkdir()
    (image_folder / "bee" / "bee-00.jpg").rename(image_folder / "dog" / "bee-00.jpg")
    digests.append(open_dataset(image_folder).manifest.digest)
    (image_folder / "dog" / "bee-00.jpg").write_bytes(b"another size")
    digests.append(open_dataset(image_folder).manifest.digest)
    (image_folder / "dog").rename(image_folder / "bed")
    digests.append(open_dataset(image_folder).manifest.digest)
    assert len(set(digests)) == 4


def test_a_header_that_cannot_be_parsed_gives_no_size(image_folder: Path) -> None:
    (image_folder / "ant" / "0a.jpg").write_bytes(b"no image")
    (image_folder / "ant" / "0b.jpg").write_bytes(b"")
    (image_folder / "ant" / "0c.ppm").write_bytes(b"P6 99999999999999 1 255\n")
    reader = open_dataset(image_folder)
    for rows in (reader.describe(np.arange(4)), reader.read(np.arange(4))[0]):
        assert rows.widths.tolist()[:3] == rows.heights.tolist()[:3] == [0, 0, 0]
        assert rows.formats == ["", "", "", "jpeg"]
        assert rows.widths[3] > 0


def test_long_headers_are_read_to_their_end(tmp_path: Path) -> None:
    data = encoded(1)
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)  # a JPEG comment of 64 KiB
    (tmp_path / "a.jpg").write_bytes(data[:2] + comment * 2 + data[2:])
    rows = open_dataset(tmp_path).describe(np.array([0]))
    assert (rows.widths[0], rows.heights[0], rows.labels[0]) == (64, 48, -1)


def test_several_splits_are_refused_with_the_choices(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "in1k"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / split / "ant").symlink_to(image_folder / "ant")
    with pytest.raises(SourceError) as caught:
        open_dataset(root)
    assert str(caught.value) == (
        f"{root} holds several splits, expected one image folder; open {root}/train or {root}/val"
    )
    assert open_dataset(root / "val").manifest.classes == ("ant",)


def test_what_cannot_be_read_is_said_early_or_by_name(image_folder: Path) -> None:
    reader = open_dataset(image_folder)
    (image_folder / "ant" / "ant-00.jpg").unlink()
    with pytest.raises(StorageError) as caught:
        reader.describe(np.array([0]))
    assert str(caught.value) == (
        f"cannot read {image_folder}/ant/ant-00.jpg: No such file or directory; check the path, its permissions and "
        "the storage behind it"
    )
    os.mkfifo(image_folder / "ant" / "ant-00.jpg")
    with pytest.raises(StorageError, match="not a regular file"):  # and no hanging on a pipe without a writer
        reader.read(np.array([0]))
    with pytest.raises(SourceError) as source_error:
        open_dataset(image_folder)
    assert str(source_error.value) == (
        f"{image_folder}/ant/ant-00.jpg is named as an image but is no regular file (a dangling link, a pipe or a "
        "device); remove it"
    )
