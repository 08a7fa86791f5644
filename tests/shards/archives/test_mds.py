"""MDS: the places and values of columns, what they become, and what is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feeder.shards.archives.mds import (
    MdsColumn,
    MdsShard,
    decode_value,
    mds_fields,
    read_mds_index,
    sample_key,
    walk_mds,
)
from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from feeder.shards.storage import open_folder
from tests.images import encoded, picture
from tests.mds_sets import write_mds

COLUMNS = {
    "x": "jpeg",
    "y": "int",
    "caption": "str",
    "score": "float32",
    "meta": "json",
    "arr": "ndarray",
    "thumb": "bytes",
    "blob": "bytes",
    "id": "uint8",
    "weird name!": "str_int",
}


def sample(number: int) -> dict[str, Any]:
    return {
        "x": encoded(number),
        "y": number % 3,
        "caption": f"picture {number} 蜂" * number,
        "score": number / 4,
        "meta": {"n": number},
        "arr": b"\x42" * number,
        "thumb": encoded(number, size=(8, 8), format="PNG"),
        "blob": b"any",
        "id": number,
        "weird name!": 10**12 + number,
    }


def walked(folder: Path) -> tuple[list[MdsShard], list[list[bytes]], list[list[int]]]:
    """Return the shards of a set, and of each sample its columns' bytes and offsets."""
    shards = read_mds_index(open_folder(folder))
    values, offsets = [], []
    for shard in shards:
        data = (folder / shard.name).read_bytes()
        for one in walk_mds(lambda offset, size, data=data: data[offset : offset + size], shard, shard.name):
            values.append(one.values)
            offsets.append(one.offsets)
            assert [data[o : o + len(v)] for o, v in zip(one.offsets, one.values, strict=True)] == one.values
    return shards, values, offsets


def test_columns_are_found_where_they_lie(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(23)]
    shards, values, _ = walked(write_mds(tmp_path, COLUMNS, samples))
    assert [shard.samples for shard in shards] == [10, 10, 3]
    names = [column.name for column in shards[0].columns]
    for row, one in enumerate(samples):
        found = dict(zip(names, values[row], strict=True))
        assert found["x"] == one["x"]
        assert found["arr"] == one["arr"]
        assert json.loads(found["meta"]) == one["meta"]
        for column, data in zip(shards[0].columns, values[row], strict=True):
            if column.encoding in ("int", "str", "float32", "uint8", "str_int"):
                assert decode_value(column, data, "here") == one[column.name]


def test_what_columns_become(tmp_path: Path) -> None:
    shards, values, _ = walked(write_mds(tmp_path, COLUMNS, [sample(1)]))
    fields = mds_fields(shards[0], values[0], "here")
    assert dict(fields.fields) == {
        "image": Field(type="image"),
        "label": Field(type="int64"),
        "arr": Field(type="bytes"),
        "blob": Field(type="bytes"),
        "caption": Field(type="string"),
        "id_": Field(type="int64"),
        "meta": Field(type="json"),
        "score": Field(type="float64"),
        "thumb": Field(type="image"),
        "weird_name_": Field(type="int64"),
    }
    names = [column.name for column in shards[0].columns]
    assert {name: names[number] for name, number in fields.columns.items()} == {
        "image": "x",
        "label": "y",
        "arr": "arr",
        "blob": "blob",
        "caption": "caption",
        "id_": "id",
        "meta": "meta",
        "score": "score",
        "thumb": "thumb",
        "weird_name_": "weird name!",
    }


def test_names_and_keys_tell_shard_and_row() -> None:
    assert sample_key("a/shard.00003.mds", 12) == "a/shard-00003/000012"


ZIPPED = {"compression": "zstd:7", "zip_data": {"basename": "shard.00000.mds.zstd", "bytes": 7, "hashes": {}}}
REFUSED = {
    "compressed": (
        ZIPPED,
        (
            "shard 0 of {where} is compressed (zstd:7), so no sample in it can be read alone; write the set again with "
            "MDSWriter(compression=None)"
        ),
    ),
    "xsv": (
        {"format": "xsv"},
        "shard 0 of {where} has the format 'xsv', expected 'mds'; write the set with MDSWriter",
    ),
    "damaged": (
        {"samples": "many"},
        (
            "{where} has a damaged record of a shard (invalid literal for int() with base 10: 'many'); copy it again "
            "from its origin"
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shards_that_cannot_be_read_are_refused(case: str, tmp_path: Path) -> None:
    changes, sentence = REFUSED[case]
    write_mds(tmp_path, {"x": "jpeg"}, [{"x": encoded(1)}], changes=changes)
    with pytest.raises(SourceError) as caught:
        read_mds_index(open_folder(tmp_path))
    assert str(caught.value) == sentence.format(where=tmp_path / "index.json")


def test_indexes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    for text, words in (
        ("{", "is not the index of an MDS set"),
        ('{"a": 1}', "is not the index of an MDS set"),
        ('{"version": 1, "shards": []}', "has version 1, expected 2"),
        ('{"version": 2, "shards": []}', "lists no shards; is the set finished?"),
    ):
        index.write_text(text)
        with pytest.raises(SourceError, match=words):
            read_mds_index(open_folder(tmp_path))


def test_shards_of_different_columns_are_refused(tmp_path: Path) -> None:
    write_mds(tmp_path, {"x": "jpeg"}, [{"x": encoded(n)} for n in range(2)], per_shard=1)
    document = json.loads((tmp_path / "index.json").read_text())
    document["shards"][1]["column_names"] = ["image"]
    (tmp_path / "index.json").write_text(json.dumps(document))
    with pytest.raises(SourceError) as caught:
        read_mds_index(open_folder(tmp_path))
    assert str(caught.value) == (
        f"shards shard.00000.mds and shard.00001.mds of {tmp_path}/index.json have different columns (x: jpeg; image: "
        "jpeg); adopt them as two datasets"
    )


NO_IMAGES = {
    "pil": (
        "the images of here are raw pixels (encoding 'pil'), ten times the bytes of an encoded image and nothing that "
        "an image decoder reads; write the set again with the encoding 'jpeg' or 'png'"
    ),
    "bytes": (
        "no column of here holds encoded images (x: bytes); expected one with the encoding 'jpeg' or 'png', or 'bytes' "
        "of an image file"
    ),
}


@pytest.mark.parametrize("encoding", NO_IMAGES)
def test_sets_without_encoded_images_are_refused(encoding: str, tmp_path: Path) -> None:
    shards, values, _ = walked(write_mds(tmp_path, {"x": encoding}, [{"x": b"\0" * 50}]))
    with pytest.raises(SourceError) as caught:
        mds_fields(shards[0], values[0], "here")
    assert str(caught.value) == NO_IMAGES[encoding]


def test_every_cut_of_a_shard_is_found(tmp_path: Path) -> None:
    write_mds(tmp_path, {"x": "bytes", "y": "int"}, [{"x": b"x" * n, "y": n} for n in range(5)])
    shard = read_mds_index(open_folder(tmp_path))[0]
    whole = (tmp_path / shard.name).read_bytes()
    for size in range(len(whole)):
        data = whole[:size]
        with pytest.raises(SourceError, match="is not a whole MDS shard"):
            list(walk_mds(lambda offset, count, data=data: data[offset : offset + count], shard, "here"))


def test_an_integer_beyond_64_bits_is_refused() -> None:
    column = MdsColumn(name="n", encoding="uint64", size=8)
    assert decode_value(column, (2**63 - 1).to_bytes(8, "little"), "here") == 2**63 - 1
    with pytest.raises(SourceError) as caught:
        decode_value(column, (2**63).to_bytes(8, "little"), "here")
    assert str(caught.value) == (
        "column 'n' of here holds 9223372036854775808, which does not fit into 64 bits; write it as text"
    )


@pytest.mark.skipif(importlib.util.find_spec("streaming") is None, reason="mosaicml-streaming is not installed")
def test_what_streamings_own_writer_writes_is_read_as_its_own_reader_reads_it(tmp_path: Path) -> None:
    from streaming import MDSWriter, StreamingDataset

    columns = {
        "image": "jpeg",
        "label": "int",
        "text": "str",
        "emb": "ndarray:float32:4",
        "w": "float64",
        "any": "json",
    }
    with MDSWriter(out=str(tmp_path), columns=columns, size_limit=20_000, hashes=["xxh64"]) as writer:
        for number in range(40):
            writer.write(
                {
                    "image": picture(number),
                    "label": number % 7,
                    "text": "t" * number,
                    "emb": np.arange(4, dtype=np.float32) + number,
                    "w": number / 3,
                    "any": [number],
                }
            )
    shards, values, _ = walked(tmp_path)
    assert len(shards) > 2
    names = [column.name for column in shards[0].columns]
    theirs = StreamingDataset(local=str(tmp_path), shuffle=False, batch_size=1)
    assert len(values) == 40
    for number, row in enumerate(values):
        found = dict(zip(shards[0].columns, row, strict=True))
        expected = theirs[number]
        for column, data in found.items():
            if column.encoding in ("int", "str", "float64"):
                assert decode_value(column, data, "here") == expected[column.name]
        by_name = dict(zip(names, row, strict=True))
        assert np.frombuffer(by_name["emb"], np.float32).tolist() == expected["emb"].tolist()
        assert json.loads(by_name["any"]) == expected["any"]
        assert by_name["image"][:3] == b"\xff\xd8\xff"
