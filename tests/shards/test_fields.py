"""Any fields, from a table through a shard of every format to a reader, and as other tools see them."""

import json
import math
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.packing import ShardTask, write_shard
from feeder.shards.building.planning import plan_shards
from feeder.shards.dataset.manifest import load_manifest, new_manifest, save_manifest
from feeder.shards.dataset.shard_table import SEGMENT_BYTES, ShardTable, segment_starts, shard_table
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT, LABEL, Field
from feeder.shards.formats.known import WRITTEN_FORMATS, shard_name
from feeder.shards.formats.tar import END
from feeder.shards.names import PathTable
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.table import Places, SampleTable
from tests.images import encoded

FIELDS = {
    "image": Field(type="image"),
    "label": LABEL,
    "mask": Field(type="image"),
    "embedding": Field(type="bytes", extension="npy"),
    "caption": Field(type="string", extension="txt"),
    "alt": Field(type="string"),
    "score": Field(type="float64"),
    "votes": Field(type="int64"),
    "safe": Field(type="bool"),
}
COUNT = 40
VALUES: dict[str, list[Any]] = {
    "caption": [None if row % 5 == 0 else f"Ein Bild № {row}" for row in range(COUNT)],
    "alt": ["" if row % 3 == 0 else "x" * row * 30 for row in range(COUNT)],
    "score": [None if row == 3 else row / 7 for row in range(COUNT)],
    "votes": [None if row % 2 else row - 10 for row in range(COUNT)],
    "safe": [(True, False, None)[row % 3] for row in range(COUNT)],
}


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    """40 samples with every type of field; masks and embeddings are absent in some."""
    names = [f"{row:02d}.jpg" for row in range(COUNT)]
    source = tmp_path / "source"
    source.mkdir()
    stored: dict[str, list[bytes | None]] = {
        "image": [encoded(row, size=(20 + row, 30)) for row in range(COUNT)],
        "mask": [None if row % 4 == 1 else encoded(row, size=(20 + row, 30), format="PNG") for row in range(COUNT)],
        "embedding": [None if row in (0, 17, 39) else bytes(range(row)) for row in range(COUNT)],
    }
    places = {}
    for field, contents in stored.items():
        for name, content in zip(names, contents, strict=True):
            (source / f"{field}-{name}").write_bytes(content or b"")
        sizes = [ABSENT if content is None else len(content) for content in contents]
        places[field] = Places(files=PathTable(f"{field}-{name}" for name in names), sizes=np.array(sizes))
    types = {"caption": pa.string(), "alt": pa.string(), "score": pa.float64(), "votes": pa.int64(), "safe": pa.bool_()}
    return SampleTable(
        root=str(source),
        names=PathTable(names),
        labels=np.array([-1 if row == 7 else row % 3 for row in range(COUNT)], np.int64),
        classes=("ant", "bee", "cat"),
        fields=FIELDS,
        stored=places,
        values={name: pa.array(VALUES[name], kind) for name, kind in types.items()},
    )


def write(table: SampleTable, folder: Path, shard_format: str, **options: Any) -> Path:
    """Write a dataset of three shards."""
    folder.mkdir()
    records = []
    for number, rows in enumerate(np.array_split(np.arange(len(table)), 3)):
        name = shard_name(number, shard_format)
        task = ShardTask(
            folder=LocalDestination(folder),
            name=name,
            format=shard_format,
            table=table.take(rows),
            max_pixels=10**6,
            **options,
        )
        written = write_shard(task)
        assert written.bad == []
        assert written.shard is not None
        records.append(written.shard)
    manifest = new_manifest(
        shards=shard_table(records), fields=table.fields, classes=table.classes, shard_format=shard_format
    )
    save_manifest(manifest, folder)
    return folder


@pytest.mark.parametrize("shard_format", WRITTEN_FORMATS)
def test_every_field_comes_back(table: SampleTable, tmp_path: Path, shard_format: str) -> None:
    folder = write(table, tmp_path / "dataset", shard_format)
    assert load_manifest(folder).fields == FIELDS
    assert verify(folder, "deep", decode=lambda images, sizes: {}).problems == []
    reader = open_dataset(folder)
    ids = np.array([39, 0, 7, 17, 3, 1, *range(COUNT)])
    for field in ("image", "mask", "embedding"):
        rows, contents = reader.read(ids, field)
        for row, key, content in zip(ids.tolist(), rows.keys, contents, strict=True):
            assert key == f"{row:02d}"
            assert content == Path(table.root, f"{field}-{key}.jpg").read_bytes()
    rows, contents = reader.read(ids, "mask")
    sizes = zip(rows.widths.tolist(), rows.heights.tolist(), rows.formats, strict=True)
    assert list(sizes) == [(20 + row, 30, "png") if row % 4 != 1 else (0, 0, "") for row in ids.tolist()]
    assert rows.labels.tolist() == [-1 if row == 7 else row % 3 for row in ids.tolist()]
    for field, values in VALUES.items():
        assert reader.values(ids, field) == [values[row] for row in ids.tolist()]
    assert reader.values(ids, "label") == rows.labels.tolist()


@pytest.mark.parametrize("shard_format", WRITTEN_FORMATS)
def test_fields_are_asked_for_in_the_way_they_are_kept(table: SampleTable, tmp_path: Path, shard_format: str) -> None:
    reader = open_dataset(write(table, tmp_path / "dataset", shard_format))
    for call in (lambda: reader.read(np.array([0]), "score"), lambda: reader.values(np.array([0]), "image")):
        with pytest.raises(
            ConfigError, match=r"^.*/dataset has no such field '(score|image)' to read in this way: its"
        ):
            call()


def test_tar_members_are_those_that_webdatasets_users_expect(table: SampleTable, tmp_path: Path) -> None:
    folder = write(table, tmp_path / "dataset", "tar")
    with tarfile.open(folder / "shard-000000.tar") as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    names = list(contents)
    assert names[:5] == ["00.alt.txt", "00.cls", "00.jpg", "00.json", "00.mask.png"]
    assert [name for name in names if name.startswith("01.")] == [
        "01.alt.txt", "01.cls", "01.jpg", "01.json", "01.npy", "01.txt",
    ]  # fmt: skip
    assert "07.cls" not in contents
    assert (contents["01.txt"].decode(), contents["01.cls"]) == ("Ein Bild № 1", b"1")
    assert json.loads(contents["01.json"]) == {"safe": False, "score": 1 / 7, "votes": None}


def test_arrow_shows_absent_fields_as_null(table: SampleTable, tmp_path: Path) -> None:
    folder = write(table, tmp_path / "dataset", "arrow")
    with pa.ipc.open_file((folder / "shard-000000.arrow").read_bytes()) as file:
        rows = file.read_all().to_pylist()
    assert [row["mask"] is None for row in rows] == [number % 4 == 1 for number in range(len(rows))]
    assert [row["caption"] for row in rows] == VALUES["caption"][: len(rows)]
    assert rows[0]["embedding"] is None
    assert rows[1]["mask.width"] is None


@pytest.mark.parametrize("shard_format", WRITTEN_FORMATS)
def test_nan_and_infinity_are_values(table: SampleTable, tmp_path: Path, shard_format: str) -> None:
    scores = [math.nan, math.inf, -math.inf, None] * (COUNT // 4)
    odd = SampleTable(
        root=table.root,
        names=table.names,
        labels=table.labels,
        fields={"image": FIELDS["image"], "score": FIELDS["score"]},
        stored={"image": table.stored["image"]},
        values={"score": pa.array(scores, pa.float64())},
    )
    folder = write(odd, tmp_path / "dataset", shard_format)
    assert verify(folder, "full").problems == []
    first, second, third, fourth = open_dataset(folder).values(np.arange(4), "score")
    assert math.isnan(first)
    assert (second, third, fourth) == (math.inf, -math.inf, None)


def test_a_bad_mask_sets_its_sample_aside_and_says_so(table: SampleTable, tmp_path: Path) -> None:
    Path(table.root, "mask-02.jpg").write_bytes(b"x" * int(table.stored["mask"].sizes[2]))
    task = ShardTask(folder=LocalDestination(tmp_path), name="a.tar", format="tar", table=table, max_pixels=10**6)
    (bad,) = write_shard(task).bad
    assert (bad.source, bad.cause) == ("02.jpg", "not an image")
    assert bad.reason.startswith("its mask: its first bytes (78 78 78 78 78 78 78 78) are of no known image format")


def test_kept_bad_images_have_no_size(table: SampleTable, tmp_path: Path) -> None:
    size = int(table.stored["image"].sizes[5])
    Path(table.root, "image-05.jpg").write_bytes(b"x" * size)
    for shard_format in WRITTEN_FORMATS:
        folder = write(table, tmp_path / shard_format, shard_format, on_error="keep")
        rows, images = open_dataset(folder).read(np.arange(COUNT))
        assert (int(rows.widths[5]), int(rows.heights[5]), rows.formats[5]) == (0, 0, "")
        assert images[5] == b"x" * size
        assert verify(folder, "full").problems == []


def test_a_sample_without_an_image_is_bad(table: SampleTable, tmp_path: Path) -> None:
    table.stored["image"].sizes[4] = ABSENT
    task = ShardTask(folder=LocalDestination(tmp_path), name="a.tar", format="tar", table=table, max_pixels=10**6)
    assert [(bad.source, bad.cause) for bad in write_shard(task).bad] == [("04.jpg", "missing")]
    with pytest.raises(SourceError, match=r"^bad image .*/source/04.jpg: it has no image; repair or remove it"):
        write_shard(
            ShardTask(
                folder=LocalDestination(tmp_path),
                name="b.tar",
                format="tar",
                table=table,
                max_pixels=10**6,
                on_error="fail",
            )
        )


def test_a_tar_shard_with_many_fields_does_not_pass_the_size_it_was_planned_for(
    table: SampleTable, tmp_path: Path
) -> None:
    plan = plan_shards(table, seed=1, shard_bytes=30_000, shard_samples=None)
    assert len(plan) > 3
    for number, rows in enumerate(plan):
        task = ShardTask(
            folder=LocalDestination(tmp_path),
            name=f"{number}.tar",
            format="tar",
            table=table.take(rows),
            max_pixels=10**6,
        )
        written = write_shard(task)
        assert written.shard is not None
        assert 15_000 < written.shard.size_bytes <= 30_000 or number == len(plan) - 1


def test_large_shards_are_cut_into_segments() -> None:
    megabyte = 1 << 20
    ends = np.arange(1, 301, dtype=np.int64) * megabyte
    assert segment_starts(ends[:128], 128 * megabyte) == ()
    starts = segment_starts(ends, 300 * megabyte + len(END))
    assert starts == (0, 64, 128, 192, 256)
    huge = np.array([200, 201, 500], np.int64) * megabyte  # each sample over the limit is a segment of its own
    assert segment_starts(huge, 500 * megabyte) == (0, 1, 2)
    assert 64 * megabyte == SEGMENT_BYTES
    table = ShardTable(
        ["a.tar", "b.tar", "c.tar"], np.array([5, 300, 2]), np.array([9, 9, 9]), ["", "", ""], ["", "", ""],
        segments={1: starts},
    )  # fmt: skip
    segments = table.segment_table()
    assert segments.shards.tolist() == [0, 1, 1, 1, 1, 1, 2]
    assert segments.first_rows.tolist() == [0, 0, 64, 128, 192, 256, 0]
    assert segments.samples.tolist() == [5, 64, 64, 64, 64, 44, 2]


def test_labels_and_scalars_survive_a_pickle(table: SampleTable) -> None:
    part = table.take(np.array([5, 3, 3]))
    again = pickle.loads(pickle.dumps(part))
    assert [again.key(row) for row in range(3)] == ["05", "03", "03"]
    assert again.values["score"].to_pylist() == [5 / 7, None, None]
    assert len(pickle.dumps(part)) < 4000
