"""Verification finds every damage, and reports all of it at once."""

import dataclasses
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from feeder.errors import ConfigError
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.errors import ManifestError
from feeder.shards.manifest import load_manifest, new_manifest, save_manifest
from feeder.shards.packing import write_index
from feeder.shards.verify import verify
from feeder.shards.writing import BuildOptions, build


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> str:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=12, shuffle=False))
    return str(tmp_path / "dataset")


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_all_problems_are_reported_at_once(dataset: str) -> None:
    root = Path(dataset)
    digests = load_manifest(dataset).shards.digests
    os.truncate(root / "shard-000000.tar", 5120)
    shutil.copy(root / "shard-000002.idx.arrow", root / "shard-000001.idx.arrow")
    (root / "shard-000002.tar").unlink()
    expected = load_manifest(dataset).shards.size_bytes[0]
    quick = verify(dataset).problems
    again = "copy it again from the dataset's origin"
    assert quick == [
        f"shard {root}/shard-000000.tar has 5120 bytes, but the manifest says {expected}; {again}",
        (
            f"index {root}/shard-000001.idx.arrow is of another shard: of one with digest {digests[2]}, expected "
            f"{digests[1]}; {again}"
        ),
        f"shard {root}/shard-000002.tar is missing, but the manifest lists it; {again}",
    ]
    full = verify(dataset, "full").problems
    assert [problem for problem in full if problem in quick] == quick
    assert any(
        problem.startswith(f"shard {root}/shard-000000.tar was cut or altered after the build") for problem in full
    )
    assert any("of 12 samples of" in problem and "are damaged ('ant/ant-0" in problem for problem in full)


def test_altered_bytes_are_told_by_sample_and_by_header(dataset: str) -> None:
    path = Path(dataset, "shard-000001.tar")
    data = path.read_bytes()
    flip(path, data.index(b"\xff\xd8\xff") + 40)
    flip(path, data.index(b"bee/bee-03.jpg"))
    problems = verify(dataset, "full").problems
    assert len(problems) == 3
    assert problems[0].startswith(f"shard {path} was cut or altered after the build: digest ")
    assert problems[1] == f"1 of 12 samples of {path} are damaged ('bee/bee-00')"
    assert problems[2] == f"{path} holds 7 readable members, but its index has 24"


def test_deep_reports_what_the_decoder_says(dataset: str) -> None:
    def decode(images: list[bytes], sizes: list[tuple[int, int]]) -> dict[int, str]:
        return {1: "cannot be decoded as JPEG: it is upside down"}

    problems = verify(dataset, "deep", decode=decode).problems
    assert problems[1] == (
        f"image 'bee/bee-01' of {dataset}/shard-000001.tar cannot be decoded as JPEG: it is upside down"
    )
    assert len(problems) == 3


def test_an_altered_manifest_is_told(dataset: str) -> None:
    path = Path(dataset, "manifest.json")
    text = path.read_text()
    path.write_text(text.replace(",\n", ", \n"))
    assert verify(dataset).problems == [
        f"manifest {path} was altered after the build, though its content is right: its text differs"
    ]
    path.write_text(text[:-40])
    with pytest.raises(ManifestError, match="is not whole JSON"):
        verify(dataset)


def test_levels(dataset: str) -> None:
    with pytest.raises(ConfigError, match="^level is 'all', expected one of quick, full, deep$"):
        verify(dataset, "all")
    with pytest.raises(ConfigError, match="^level deep needs a function that decodes images$"):
        verify(dataset, "deep")


def test_the_wrong_label_is_the_one_that_is_named(dataset: str) -> None:
    manifest = load_manifest(dataset)
    index = pa.ipc.open_file(Path(dataset, "shard-000000.idx.arrow").read_bytes()).get_batch(0)
    columns = {name: index.column(name) for name in index.schema.names}
    for wrong in (-5, 3):
        labels = pa.array([wrong, *columns["label"].to_pylist()[1:]], pa.int64())
        folder = LocalDestination(Path(dataset))
        digest = write_index(folder, manifest.shards.names[0], columns | {"label": labels}, manifest.shards.digests[0])
        shards = dataclasses.replace(manifest.shards, index_digests=[digest, *manifest.shards.index_digests[1:]])
        save_manifest(new_manifest(shards=shards, classes=manifest.classes, fields=manifest.fields), dataset)
        assert verify(dataset).problems == [
            f"index {dataset}/shard-000000.idx.arrow has label {wrong}, expected 0 to 2"
        ]
