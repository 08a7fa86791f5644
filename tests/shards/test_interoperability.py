"""What others read: webdataset, ``tar``, and the rules by which DALI indexes tar shards."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from feeder.shards.reading import open_dataset
from feeder.shards.tar import member_header
from feeder.shards.writing import BuildOptions, build
from tests.images import encoded


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    """Shards with difficult names and several formats."""
    for name in (
        "ant/My Ant (1).JPG",
        "ant/v1.2.final.jpg",
        "bee/蜂.png",
        "cat/deep/er/x.bmp",
        "bee/" + "b" * 120 + ".jpg",
        "__other__/x.jpg",
        "кошка/1.jpg",
    ):
        path = image_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".png": "PNG", ".bmp": "BMP"}.get(path.suffix, "JPEG")
        path.write_bytes(encoded(len(name), format=kind))
    (image_folder / "v.1").mkdir()
    shutil.copy(image_folder / "ant" / "ant-00.jpg", image_folder / "v.1" / "ant-00.jpg")
    build(image_folder, tmp_path / "out", BuildOptions(shard_samples=20))
    return tmp_path / "out"


def shards_of(dataset: Path) -> list[Path]:
    return sorted(dataset.glob("*.tar"))


def test_webdataset_reads_keys_bytes_and_labels(dataset: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    reader = open_dataset(dataset)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    stream = webdataset.WebDataset([str(path) for path in shards_of(dataset)], shardshuffle=False)
    samples = list(stream)
    assert [sample["__key__"] for sample in samples] == rows.keys
    assert [int(sample["cls"]) for sample in samples] == rows.labels.tolist()
    assert [sample.get("jpg") or sample.get("png") or sample.get("bmp") for sample in samples] == images
    decoded = list(
        webdataset.WebDataset(str(shards_of(dataset)[0]), shardshuffle=False)
        .decode("rgb8")
        .to_tuple("jpg;png;bmp", "cls")
    )
    assert [label for _, label in decoded] == rows.labels[:20].tolist()
    sizes = [(image.shape[1], image.shape[0]) for image, _ in decoded]
    assert sizes == list(zip(rows.widths[:20].tolist(), rows.heights[:20].tolist(), strict=True))


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar program")
def test_tar_lists_and_extracts_the_members(dataset: Path, tmp_path: Path) -> None:
    reader = open_dataset(dataset)
    rows, images = reader.read(np.arange(20))
    shard = shards_of(dataset)[0]
    listed = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert [name.rsplit(".", 1)[0] for name in listed.stdout.splitlines()] == [
        k for key in rows.keys for k in (key, key)
    ]
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "xf", shard, "-C", tmp_path / "x"], check=True)
    for key, image in zip(rows.keys, images, strict=True):
        (path,) = (
            p for p in (tmp_path / "x" / key).parent.iterdir() if p.stem == key.split("/")[-1] and p.suffix != ".cls"
        )
        assert path.read_bytes() == image


def dali_samples(path: Path) -> list[list[tuple[str, int, int]]]:
    """Return (extension, offset, size) of the components of each sample, as DALI's wds2idx has them.

    The rules of its tools/wds2idx.py: regular members only; a name is cut at the first dot after the last slash; what
    has no basename does not count; components belong together while the basename stays the same; an archive without
    samples is an error; offsets are those of the content.
    """
    samples: list[list[tuple[str, int, int]]] = []
    last = None
    with tarfile.open(path) as archive:
        for member in archive:
            if member.type != tarfile.REGTYPE:
                continue
            dot = member.name.find(".", member.name.rfind("/") + 1)
            basename, extension = member.name[:dot], member.name[dot + 1 :]
            if not basename or basename.endswith("/"):
                continue
            if basename != last:
                samples.append([])
                last = basename
            samples[-1].append((extension, member.offset_data, member.size))
    assert samples, "wds2idx refuses an empty archive"
    return samples


def test_dalis_index_has_the_samples_of_ours(dataset: Path) -> None:
    reader = open_dataset(dataset)
    first = 0
    for number, path in enumerate(shards_of(dataset)):
        samples = dali_samples(path)
        count = int(reader.manifest.shards.samples[number])
        assert len(samples) == count
        _, images = reader.read(np.arange(first, first + count))
        data = path.read_bytes()
        for components, image in zip(samples, images, strict=True):
            assert {extension for extension, _, _ in components} & {"jpg", "png", "bmp"}
            assert [extension for extension, _, _ in components if extension not in ("jpg", "png", "bmp")] == ["cls"]
            contents = [data[offset : offset + size] for _, offset, size in components]
            assert image in contents
        first += count


def test_webdatasets_writer_gives_these_bytes_if_asked_the_right_way(tmp_path: Path) -> None:
    """It does with an integer mtime and empty names; by default it writes PAX headers with the time of day."""
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "theirs.tar"
    with webdataset.TarWriter(str(path), user="", group="", mtime=0, encoder=False) as writer:
        writer.write({"__key__": "a/b", "jpg": b"x" * 1000, "cls": b"3"})
    ours = member_header("a/b.cls", 1) + b"3" + bytes(511) + member_header("a/b.jpg", 1000) + b"x" * 1000 + bytes(24)
    theirs = path.read_bytes()
    assert theirs[: len(ours)] == ours
    assert theirs[len(ours) :].strip(b"\0") == b""
    assert os.path.getsize(path) == 10_240
