"""Verification finds every damage, and reports all of it at once."""

import dataclasses
import os
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from feeder.errors import ConfigError
from feeder.shards.building.packing import write_index
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import (
    ColumnFile,
    Manifest,
    encode_manifest,
    load_manifest,
    new_manifest,
    save_manifest,
    sealed,
)
from feeder.shards.dataset.shard_table import ShardRecord, shard_table
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.errors import ManifestError
from feeder.shards.fields import Field
from feeder.shards.formats.index import encode_index, index_columns
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.opening import load_index, open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.storage import LocalFolder
from tests.images import encoded


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
    assert problems[2] == (
        f"{path} is not a whole tar archive of {len(data)} bytes: the header at byte 12800 is damaged; copy it again "
        "from its origin"
    )


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


def add_column(dataset: Path, field: str = "label") -> Path:
    """Consolidate a column of the index into a file of its own."""
    manifest = load_manifest(dataset)
    indexes = [load_index(LocalFolder(str(dataset)), manifest, number) for number in range(len(manifest.shards))]
    table = pa.table({field: pa.chunked_array([index.column(field) for index in indexes])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path = dataset / "columns" / f"{field}.arrow"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(sink.getvalue())
    digest = xxhash.xxh3_128_hexdigest(sink.getvalue())
    if field in manifest.columns:
        (dataset / manifest.columns[field].file).unlink()
    columns = {**manifest.columns, field: ColumnFile(file=f"columns/{field}.arrow", digest=digest)}
    save_manifest(sealed(dataclasses.replace(manifest, columns=columns)), dataset)
    return path


def next_generation(dataset: Path, **changes: Any) -> Manifest:
    """Commit a generation, as changes of a dataset do."""
    manifest = load_manifest(dataset)
    older = dataset / "generations" / f"{manifest.generation:06d}.json"
    older.parent.mkdir(exist_ok=True)
    older.write_bytes(encode_manifest(manifest))
    following = dataclasses.replace(manifest, generation=manifest.generation + 1, parent=manifest.digest, **changes)
    save_manifest(sealed(following), dataset)
    return load_manifest(dataset)


def found(dataset: Path, level: str) -> bool:
    """Say whether verification finds damage, or refuses the manifest."""
    try:
        return bool(verify(dataset, level).problems)
    except ManifestError:
        return True


@pytest.mark.parametrize("format", WRITTEN_FORMATS)
def test_full_finds_every_flipped_bit_in_every_file(image_folder: Path, tmp_path: Path, format: str) -> None:
    dataset = tmp_path / "dataset"
    build(image_folder, dataset, BuildOptions(format=format, shard_samples=18))
    add_column(dataset)
    next_generation(dataset, classes=("ant", "bee", "wasp"))
    random = np.random.default_rng(7)
    files = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
    assert len(files) == 2 * 2 + 2 + 6
    for path in files:
        whole = path.read_bytes()
        places = [0, len(whole) - 1, *random.integers(0, len(whole), 60).tolist()]
        for position in places:
            bit = int(random.integers(8))
            flip(path, position, bit)
            assert found(dataset, "full"), f"{path.name}, byte {position}, bit {bit}"
            path.write_bytes(whole)
    assert not found(dataset, "full")


@pytest.mark.parametrize(("format", "step"), [("tar", 512), ("arrow", 97)])
def test_quick_finds_every_cut(image_folder: Path, tmp_path: Path, format: str, step: int) -> None:
    build(image_folder, tmp_path / "dataset", BuildOptions(format=format, shard_samples=36))
    path = tmp_path / "dataset" / f"shard-000000.{format}"
    size = path.stat().st_size
    for length in range(size - size % step or step, -1, -step):
        if length < size:
            os.truncate(path, length)
            assert len(verify(tmp_path / "dataset").problems) == 1, length


@pytest.mark.parametrize("level", ["quick", "full"])
def test_what_belongs_to_no_generation_is_noted(dataset: str, level: str) -> None:
    root = Path(dataset)
    for name in ("shard-000099.tar", "shard-000099.idx.arrow", "manifest.json.tmp", "README.md", "bad-images.jsonl"):
        (root / name).write_bytes(b"anything")
    (root / ".building").write_bytes(b"anything")
    report = verify(dataset, level)
    assert report.problems == []
    assert report.notes == [
        f"{root}/.building says that a command writes here, or was interrupted",
        f"{root}/manifest.json.tmp was never finished; remove it if no command is writing here",
        f"{root}/shard-000099.idx.arrow is of no generation; remove it if no command is writing here",
        f"{root}/shard-000099.tar is of no generation; remove it if no command is writing here",
    ]


def test_a_split_below_is_another_dataset(dataset: str) -> None:
    shutil.copytree(dataset, Path(dataset, "val"))
    Path(dataset, "val", "manifest.json.tmp").touch()
    assert verify(dataset).notes == []


def test_earlier_generations_are_checked_with_the_newest(dataset: str) -> None:
    root = Path(dataset)
    first = load_manifest(dataset)
    shards = [first.shards.record(number) for number in range(2)]
    second = next_generation(root, shards=shard_table(shards), columns={})
    report = verify(dataset, "full")
    assert (report.problems, report.notes) == ([], [])  # the third shard is that of generation 0
    older = root / "generations" / "000000.json"
    assert verify(older).manifest == first
    assert verify(older, "full").problems == []
    whole = older.read_bytes()
    older.write_bytes(whole[:-30])
    assert [problem.split(" (")[0] for problem in verify(dataset).problems] == [f"{older} is not whole JSON"]
    older.write_bytes(encode_manifest(sealed(dataclasses.replace(first, shuffled=not first.shuffled))))
    assert verify(dataset).problems == [
        (
            f"{older} has the digest {load_manifest(older).digest}, but the generation after it names {second.parent}; "
            "copy it again from the dataset's origin"
        )
    ]
    older.write_bytes(b'{"version": 1, "purged_by": 1}\n')
    purged = verify(dataset)
    assert (purged.problems, len(purged.notes)) == ([], 2 + 6)  # the files of the third shard, and the columns
    older.unlink()
    gone = verify(dataset)
    assert gone.problems == []
    assert gone.notes[0] == f"{older} is missing: what the dataset held before generation 1 is gone"


def test_the_digest_of_an_earlier_generation_stays_its_own(dataset: str) -> None:
    first = load_manifest(dataset)
    next_generation(Path(dataset), classes=("ant", "bee", "wasp"))
    older = Path(dataset, "generations", "000000.json")
    older.rename(older.with_name("000005.json"))
    assert verify(dataset).problems == [
        f"{dataset}/generations/000005.json is the manifest of generations/000000.json; rename it"
    ]
    assert first.generation == 0


def drop_rows(dataset: Path, number: int, rows: list[int], **changes: Any) -> None:
    """Commit a generation in which a shard has only these rows."""
    manifest = load_manifest(dataset)
    index = load_index(LocalFolder(str(dataset)), manifest, number)
    columns = {name: index.column(name).take(pa.array(rows)) for name in index.names}
    data = encode_index(columns, manifest.shards.digests[number])
    name = f"shard-{number:06d}.g000001.idx.arrow"
    (dataset / name).write_bytes(data)
    records = [manifest.shards.record(i) for i in range(len(manifest.shards))]
    given = {"index": name, "samples": len(rows), "dropped": records[number].samples - len(rows)} | changes
    records[number] = dataclasses.replace(records[number], index_digest=xxhash.xxh3_128_hexdigest(data), **given)
    next_generation(dataset, shards=shard_table(records), columns={})


@pytest.mark.parametrize("format", WRITTEN_FORMATS)
def test_samples_that_were_dropped_are_counted(image_folder: Path, tmp_path: Path, format: str) -> None:
    dataset = tmp_path / "dataset"
    build(image_folder, dataset, BuildOptions(format=format, shard_samples=12, shuffle=False))
    drop_rows(dataset, 1, [0, 1, 4, 5, 6, 7, 8, 9, 11])
    assert verify(dataset, "full").problems == []
    again = tmp_path / "again"
    build(image_folder, again, BuildOptions(format=format, shard_samples=12, shuffle=False))
    drop_rows(again, 1, [0, 1, 4, 5, 6, 7, 8, 9, 11], dropped=2)
    assert verify(again, "full").problems == [
        f"{again}/shard-000001.{format} holds 3 samples that its index leaves out, but the manifest says 2"
    ]


def adopt(folder: Path, files: Mapping[str, bytes], digest: str, *, shard_format: str, places: dict[str, Any]) -> Path:
    """Write the manifest of data that lie elsewhere, as one shard."""
    for name, data in files.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_bytes(data)
    name = "files-000000" if shard_format == "folder" else next(iter(files))
    fields = {"image": Field(type="image")}
    keys = places["key"]
    columns = index_columns(fields, places | {"source": keys})
    if "path" in places:
        columns["path"] = pa.array(places["path"])
    data = encode_index(columns, digest)
    (folder / "set").mkdir()
    (folder / "set" / f"{name.removesuffix('.mds')}.idx.arrow").write_bytes(data)
    record = ShardRecord(
        name=name,
        samples=len(keys),
        size_bytes=sum(map(len, files.values())),
        digest=digest,
        index_digest=xxhash.xxh3_128_hexdigest(data),
    )
    manifest = new_manifest(
        shards=shard_table([record]),
        fields=fields,
        build={"adopted": True},
        shard_format=shard_format,
        origin=str(folder / "data"),
    )
    save_manifest(manifest, folder / "set")
    return folder / "set"


def image_places(images: list[bytes], offsets: list[int]) -> dict[str, Any]:
    return {
        "key": [f"k{number}" for number in range(len(images))],
        "image.offset": offsets,
        "image.size": [len(image) for image in images],
        "image.crc32c": [google_crc32c.value(image) for image in images],
        "image.width": [64] * len(images),
        "image.height": [48] * len(images),
        "image.format": [0] * len(images),
    }


def test_files_that_were_adopted_are_checked_one_by_one(tmp_path: Path) -> None:
    images = [encoded(number) for number in range(4)]
    files = {f"{number}.jpg": image for number, image in enumerate(images)}
    places = image_places(images, [0] * 4) | {"path": list(files)}
    digest = xxhash.xxh3_128_hexdigest(b"".join(images))
    dataset = adopt(tmp_path, files, digest, shard_format="folder", places=places)
    data = tmp_path / "data"
    assert verify(dataset, "full").problems == []
    (data / "0.jpg").unlink()
    os.truncate(data / "1.jpg", 100)
    flip(data / "2.jpg", 300)
    quick = [
        f"file {data}/0.jpg is missing, but the index lists it; copy it again from its origin",
        f"file {data}/1.jpg has 100 bytes, but the index says {len(images[1])}; copy it again from its origin",
    ]
    assert verify(dataset).problems == quick
    full = verify(dataset, "full").problems
    assert full[:2] == quick
    assert full[2].startswith(f"file {data}/2.jpg was altered: CRC-32C ")
    assert len(full) == 3


def test_a_format_without_headers_is_checked_by_digest_and_content(tmp_path: Path) -> None:
    images = [encoded(number) for number in range(3)]
    shard = b"head" + b"".join(images)
    offsets = [4, 4 + len(images[0]), 4 + len(images[0]) + len(images[1])]
    digest = xxhash.xxh3_128_hexdigest(shard)
    places = image_places(images, offsets)
    dataset = adopt(tmp_path, {"shard.00000.mds": shard}, digest, shard_format="mds", places=places)
    assert verify(dataset, "full").problems == []
    flip(tmp_path / "data" / "shard.00000.mds", offsets[1] + 50)
    problems = verify(dataset, "full").problems
    assert problems[1] == f"1 of 3 samples of {tmp_path}/data/shard.00000.mds are damaged ('k1')"
    assert len(problems) == 2


def test_memory_does_not_grow_with_a_shard(image_folder: Path, tmp_path: Path) -> None:
    for number in range(8):
        (image_folder / "ant" / f"large-{number}.jpg").write_bytes(bytes([number]) * 20_000_000)
    build(image_folder, tmp_path / "dataset", BuildOptions(on_error="keep", shard_bytes=1 << 30))
    assert len(load_manifest(tmp_path / "dataset").shards) == 1
    tracemalloc.start()
    try:
        assert verify(tmp_path / "dataset", "full").problems == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20  # of 160 MB


def test_a_dataset_behind_a_url_has_notes_too(dataset: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(dataset, "/verify/set", recursive=True)
    try:
        memory.pipe("/verify/set/shard-000077.tar", b"x")
        report = verify("memory://verify/set", "full")
        assert report.problems == []
        assert report.notes == [
            "memory://verify/set/shard-000077.tar is of no generation; remove it if no command is writing here"
        ]
        assert open_dataset("memory://verify/set").manifest == report.manifest
    finally:
        memory.rm("/verify", recursive=True)
