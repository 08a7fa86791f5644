"""The same samples from every kind of source, in every format: the same bytes of each image and the same fields."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeder.shards.building.writing import BuildOptions, build_tables
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.opening import open_dataset
from feeder.shards.sources import SourceOptions, open_source
from tests.images import encoded
from tests.shards.formats.test_tar_walk import packed
from tests.shards.sources.test_parquet import IMAGE

COUNT = 23
CLASSES = ("ant", "bee", "cat", "dog")  # no sample is a dog
KEYS = [f"{CLASSES[number % 3]}/{number:03}" for number in range(COUNT)]
IMAGES = {key: encoded(number) for number, key in enumerate(KEYS)}
MASKS = {key: encoded(number, mode="L", format="PNG") for number, key in enumerate(KEYS) if number % 4}
CAPTIONS = {key: f"picture “{number}”" if number % 5 else None for number, key in enumerate(KEYS)}


def folder(root: Path) -> Path:
    for key, image in IMAGES.items():
        path = root / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return root


def rows(root: Path) -> list[dict[str, Any]]:
    folder(root)
    for key, mask in MASKS.items():
        (root / f"{key}.mask.png").write_bytes(mask)
    return [
        {
            "path": f"{key}.jpg",
            "label": key.partition("/")[0],
            "caption": CAPTIONS[key],
            "mask_path": f"{key}.mask.png" if key in MASKS else None,
            "key": key,
        }
        for key in KEYS
    ]


def json_lines(root: Path) -> Path:
    root.mkdir()
    (root / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(root)))
    return root / "l.jsonl"


def parquet_list(root: Path) -> Path:
    root.mkdir()
    pq.write_table(pa.Table.from_pylist(rows(root)), root / "l.parquet")
    return root / "l.parquet"


def archives(root: Path) -> Path:
    root.mkdir()
    for number in range(3):
        members: dict[str, bytes] = {}
        for key in KEYS[number * 8 : number * 8 + 8]:
            members[f"./{key}.jpg"] = IMAGES[key]
            members[f"./{key}.cls"] = b"%d" % CLASSES.index(key.partition("/")[0])
            if key in MASKS:
                members[f"./{key}.mask.png"] = MASKS[key]
            if (caption := CAPTIONS[key]) is not None:
                members[f"./{key}.txt"] = caption.encode()
        (root / f"{number}.tar").write_bytes(packed(members))
    return root


def images_in_parquet(root: Path) -> Path:
    root.mkdir()
    table = pa.table(
        {
            "image": pa.array([{"bytes": IMAGES[key], "path": f"{key}.jpg"} for key in KEYS], IMAGE),
            "mask": pa.array([{"bytes": MASKS[key], "path": None} if key in MASKS else None for key in KEYS], IMAGE),
            "label": [CLASSES.index(key.partition("/")[0]) for key in KEYS],
            "caption": [CAPTIONS[key] for key in KEYS],
        }
    )
    pq.write_table(table, root / "0.parquet", row_group_size=5)
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": folder,
    "json lines": json_lines,
    "parquet list": parquet_list,
    "archives": archives,
    "images in parquet": images_in_parquet,
}


def check(dataset: Path, *, plain: bool) -> None:
    """Hold a dataset against the samples that it was made from; `plain`: it had images and labels alone."""
    reader = open_dataset(dataset)
    ids = np.arange(COUNT)
    found, images = reader.read(ids)
    assert dict(zip(found.keys, images, strict=True)) == IMAGES
    assert reader.manifest.classes == CLASSES
    assert found.labels.tolist() == [CLASSES.index(key.partition("/")[0]) for key in found.keys]
    if not plain:
        masks = dict(zip(found.keys, reader.read(ids, "mask")[1], strict=True))
        assert {key: mask for key, mask in masks.items() if mask} == MASKS
        assert dict(zip(found.keys, reader.values(ids, "caption"), strict=True)) == CAPTIONS
    reader.close()


@pytest.mark.parametrize("shard_format", WRITTEN_FORMATS)
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_in_every_format_and_on_to_the_others(tmp_path: Path, kind: str, shard_format: str) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    options = SourceOptions(classes_file=f"{tmp_path}/classes.txt")
    source = SOURCES[kind](tmp_path / "source")
    tables = open_source(source, options, spool=tmp_path / "spool")
    build_tables(tables, tmp_path / "set", BuildOptions(format=shard_format, shard_samples=7))
    check(tmp_path / "set", plain=kind == "folder")
    for other in WRITTEN_FORMATS:
        build_tables(open_source(tmp_path / "set"), tmp_path / other, BuildOptions(format=other, seed=5))
        check(tmp_path / other, plain=kind == "folder")


def test_our_own_tars_read_as_anybodys_give_the_same_samples(tmp_path: Path) -> None:
    """Without manifest and indexes, samples and images are the same; names of classes are what tars cannot tell."""
    (table,) = open_source(archives(tmp_path / "source"))
    build_tables([table], tmp_path / "set", BuildOptions(shuffle=False))
    (again,) = open_source(tmp_path / "set", SourceOptions(kind="webdataset"))
    assert list(again.names) == list(table.names)
    assert again.labels.tolist() == table.labels.tolist()
    assert list(again.fields) == ["image", "label", "caption", "mask"]
    build_tables([again], tmp_path / "again", BuildOptions(shuffle=False))
    shards = [path.name for path in (tmp_path / "set").glob("*.tar")]
    assert [(tmp_path / "again" / name).read_bytes() for name in shards] == [
        (tmp_path / "set" / name).read_bytes() for name in shards
    ]
