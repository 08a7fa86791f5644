"""What others read: webdataset, DALI, Hugging Face datasets, polars and ``tar``; and the README's code for them."""

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feeder.shards.archives.foreign_indexes import write_foreign_indexes
from feeder.shards.building.parquet_export import export_parquet
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.formats.tar import member_header
from feeder.shards.reading.opening import open_dataset
from feeder.shards.sources.lists import scan_list
from feeder.shards.sources.options import SourceOptions
from tests.images import encoded
from tests.peers import peer
from tests.tar_archives import wds2idx_samples

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face datasets, with its cache in a temporary folder; it asks no server."""
    package = peer("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    package.disable_progress_bars()
    return package


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
    webdataset = peer("webdataset")
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


def test_dalis_index_has_the_samples_of_ours(dataset: Path) -> None:
    reader = open_dataset(dataset)
    first = 0
    for number, path in enumerate(shards_of(dataset)):
        samples = wds2idx_samples(path)
        assert samples, "wds2idx refuses an empty archive"
        count = int(reader.manifest.shards.samples[number])
        assert len(samples) == count
        _, images = reader.read(np.arange(first, first + count))
        data = path.read_bytes()
        for components, image in zip(samples, images, strict=True):
            assert {extension for extension, _, _, _ in components} & {"jpg", "png", "bmp"}
            assert [extension for extension, _, _, _ in components if extension not in ("jpg", "png", "bmp")] == ["cls"]
            contents = [data[offset : offset + size] for _, offset, size, _ in components]
            assert image in contents
        first += count


@pytest.fixture
def with_fields(tmp_path: Path) -> Path:
    """Shards of JPEGs with masks, captions, documents and numbers, in both formats."""
    files = tmp_path / "files"
    (files / "photos").mkdir(parents=True)
    (files / "masks").mkdir()
    lines = []
    for number in range(30):
        (files / f"photos/{number:02}.jpg").write_bytes(encoded(number))
        (files / f"masks/{number:02}.png").write_bytes(encoded(number, mode="L", format="PNG"))
        line = {
            "path": f"photos/{number:02}.jpg",
            "label": f"class {number % 3}",
            "mask": f"masks/{number:02}.png",
            "caption": f"picture № {number}",
            "score": number / 8,
        }
        lines.append(json.dumps(line))
    (files / "list.jsonl").write_text("\n".join(lines))
    tables = scan_list(str(files / "list.jsonl"), SourceOptions(image_columns={"mask": "mask"}))
    for shard_format in ("tar", "arrow"):
        build_tables(tables, tmp_path / shard_format, BuildOptions(format=shard_format, shard_samples=8))
    return tmp_path


def content(folder: Path) -> tuple[list[str], list[bytes], list[int]]:
    """Return keys, images and labels of a dataset."""
    reader = open_dataset(folder)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    return rows.keys, images, rows.labels.tolist()


@pytest.mark.parametrize("indexed", [True, False])
def test_dali_reads_bytes_and_labels(dataset: Path, indexed: bool) -> None:
    peer("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    shards = [str(path) for path in shards_of(dataset)]
    _, images, labels = content(dataset)
    index: dict[str, list[str]] = {}
    if indexed:
        write_foreign_indexes({"": shards}, "dali")
        index = {"index_paths": [shard.replace(".tar", ".idx") for shard in shards]}

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None)
    def pipeline() -> Any:
        return tuple(fn.readers.webdataset(paths=shards, ext=["jpg;png;bmp", "cls"], name="samples", **index))

    made = pipeline()
    made.build()
    got = [[np.asarray(column.at(row)).tobytes() for row in range(len(images))] for column in made.run()]
    assert made.epoch_size("samples") == len(images)
    assert got == [images, [b"%d" % label for label in labels]]


def test_dali_decodes_the_pixels_of_pillow(image_folder: Path, tmp_path: Path) -> None:
    peer("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    build(image_folder, tmp_path / "out")
    _, images, _ = content(tmp_path / "out")

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None)
    def pipeline() -> Any:
        encoded_images, _ = fn.readers.webdataset(paths=[str(shards_of(tmp_path / "out")[0])], ext=["jpg", "cls"])
        return fn.decoders.image(encoded_images)

    made = pipeline()
    made.build()
    (pixels,) = made.run()
    for row, image in enumerate(images):
        expected = np.asarray(Image.open(io.BytesIO(image)), np.int16)
        assert np.abs(np.asarray(pixels.at(row)) - expected).max() <= 1


def test_hugging_face_reads_tar_shards_as_webdataset(image_folder: Path, tmp_path: Path, datasets: Any) -> None:
    build(image_folder, tmp_path / "out", BuildOptions(shard_samples=10))
    keys, images, labels = content(tmp_path / "out")
    for streaming in (False, True):
        found = datasets.load_dataset(
            "webdataset", data_files=f"{tmp_path}/out/*.tar", split="train", streaming=streaming
        )
        raw = list(found.cast_column("jpg", datasets.Image(decode=False)))
        assert [sample["__key__"] for sample in raw] == keys
        assert [sample["jpg"]["bytes"] for sample in raw] == images
        assert [sample["cls"] for sample in raw] == labels
        assert next(iter(found))["jpg"].size == Image.open(io.BytesIO(images[0])).size


def test_hugging_face_reads_fields_of_tar_shards(with_fields: Path, datasets: Any) -> None:
    found = datasets.load_dataset("webdataset", data_files=f"{with_fields}/tar/*.tar", split="train")
    reader = open_dataset(with_fields / "tar")
    ids = np.arange(30)
    raw = found.cast_column("mask.png", datasets.Image(decode=False))
    assert [one["bytes"] for one in raw["mask.png"]] == reader.read(ids, "mask")[1]
    assert list(found["txt"]) == reader.values(ids, "caption")
    assert [one["score"] for one in found["json"]] == reader.values(ids, "score")


def test_hugging_face_reads_arrow_shards(with_fields: Path, datasets: Any) -> None:
    reader = open_dataset(with_fields / "arrow")
    keys, images, labels = content(with_fields / "arrow")
    found = datasets.load_dataset("arrow", data_files=f"{with_fields}/arrow/shard-??????.arrow", split="train")
    assert list(found["key"]) == keys
    assert list(found["label"]) == labels
    assert list(found["image"]) == images
    assert list(found["score"]) == reader.values(np.arange(30), "score")
    decoded = found.cast_column("image", datasets.Image())
    assert decoded[0]["image"].size == Image.open(io.BytesIO(images[0])).size


def test_polars_reads_arrow_shards(with_fields: Path) -> None:
    polars = peer("polars")
    keys, images, labels = content(with_fields / "arrow")
    frame = polars.scan_ipc(f"{with_fields}/arrow/shard-??????.arrow")
    rows = frame.select("key", "image", "label", "image.width").collect()
    assert rows["key"].to_list() == keys
    assert rows["image"].to_list() == images
    assert rows["label"].to_list() == labels
    assert set(rows["image.width"].to_list()) == {64}
    chosen = frame.filter(polars.col("score") > 3).select("key").collect()
    assert len(chosen) == 5


def test_webdataset_reads_fields(with_fields: Path) -> None:
    webdataset = peer("webdataset")
    reader = open_dataset(with_fields / "tar")
    ids = np.arange(30)
    samples = list(webdataset.WebDataset([str(path) for path in shards_of(with_fields / "tar")], shardshuffle=False))
    assert [sample["mask.png"] for sample in samples] == reader.read(ids, "mask")[1]
    assert [sample["txt"].decode() for sample in samples] == reader.values(ids, "caption")
    assert [json.loads(sample["json"])["score"] for sample in samples] == reader.values(ids, "score")


def blocks(section: str) -> list[str]:
    """Return the Python code in a section of the README."""
    text = README.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def run_block(image_folder: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Run the block of the README that holds some text, its datasets being small ones; return its variables."""
    for shard_format in ("tar", "arrow"):
        build(image_folder, tmp_path / shard_format, BuildOptions(format=shard_format, shard_samples=20))
    write_foreign_indexes({"": [str(path) for path in shards_of(tmp_path / "tar")]}, "dali")
    export_parquet(tmp_path / "tar", tmp_path / "parquet")

    def run(text: str) -> dict[str, Any]:
        (code,) = [block for block in blocks("The same shards elsewhere") if text in block]
        for name in ("tar", "arrow", "parquet"):
            code = code.replace(f"/data/in1k-{'shards' if name == 'tar' else name}", f"{tmp_path}/{name}")
        variables: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), variables)
        return variables

    return run


def test_the_readmes_lines_for_webdataset(tmp_path: Path, run_block: Callable[[str], dict[str, Any]]) -> None:
    peer("webdataset")
    got = run_block("import webdataset")
    keys, images, labels = content(tmp_path / "tar")
    assert (got["key"], got["image"], got["label"]) in zip(keys, images, labels, strict=True)


def test_the_readmes_lines_for_dali(tmp_path: Path, run_block: Callable[[str], dict[str, Any]]) -> None:
    peer("nvidia.dali")
    got = run_block("import fn")
    _, _, labels = content(tmp_path / "tar")
    assert np.asarray(got["images"].as_array()).shape == (32, 224, 224, 3)
    assert [int(np.asarray(got["labels"].at(row)).tobytes()) for row in range(32)] == labels[:32]


def test_the_readmes_lines_for_datasets_over_tar(
    tmp_path: Path, datasets: Any, run_block: Callable[[str], dict[str, Any]]
) -> None:
    got = run_block('"webdataset"')
    keys, images, labels = content(tmp_path / "tar")
    assert (got["key"], got["label"]) == (keys[-1], labels[-1])
    assert got["image"].size == Image.open(io.BytesIO(images[-1])).size


def test_the_readmes_lines_for_arrow_shards(
    tmp_path: Path, datasets: Any, run_block: Callable[[str], dict[str, Any]]
) -> None:
    peer("polars")
    got = run_block("import polars")
    keys, _, labels = content(tmp_path / "arrow")
    assert list(got["arrow"]["key"]) == got["sides"]["key"].to_list() == keys
    assert list(got["arrow"]["label"]) == got["sides"]["label"].to_list() == labels
    widths = [image.width for image in got["arrow"]["image"]]
    assert widths == got["sides"]["image.width"].to_list()


def test_the_readmes_lines_for_parquet(
    tmp_path: Path, datasets: Any, run_block: Callable[[str], dict[str, Any]]
) -> None:
    got = run_block('"parquet"')
    keys, images, labels = content(tmp_path / "tar")
    assert got["names"] == ["ant", "bee", "cat"]
    assert list(got["parquet"]["key"]) == keys
    assert list(got["parquet"]["label"]) == labels
    pixels = np.asarray(got["parquet"][5]["image"])
    assert (pixels == np.asarray(Image.open(io.BytesIO(images[5])))).all()


def test_webdatasets_writer_gives_these_bytes_if_asked_the_right_way(tmp_path: Path) -> None:
    """It does with an integer mtime and empty names; by default it writes PAX headers with the time of day."""
    webdataset = peer("webdataset")
    path = tmp_path / "theirs.tar"
    with webdataset.TarWriter(str(path), user="", group="", mtime=0, encoder=False) as writer:
        writer.write({"__key__": "a/b", "jpg": b"x" * 1000, "cls": b"3"})
    ours = member_header("a/b.cls", 1) + b"3" + bytes(511) + member_header("a/b.jpg", 1000) + b"x" * 1000 + bytes(24)
    theirs = path.read_bytes()
    assert theirs[: len(ours)] == ours
    assert theirs[len(ours) :].strip(b"\0") == b""
    assert os.path.getsize(path) == 10_240
