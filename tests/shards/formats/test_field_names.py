"""Names of fields beside each other: no field is called as a column of another, and no two have one tar member."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeder.shards.adoption.adopting import adopt
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.annotating import annotate
from feeder.shards.errors import SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.formats.field_names import check_field_names, settled_fields, settled_names
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import open_source
from tests.images import encoded, write_image_folder
from tests.tar_archives import write_tar

TEXT, NUMBER, IMAGE, BYTES = (Field(type=kind) for kind in ("string", "int64", "image", "bytes"))


def columns(dataset: Path, *names: str) -> dict[str, list[object]]:
    reader = open_dataset(dataset)
    return {name: reader.values(np.arange(reader.manifest.num_samples), name) for name in names}


def test_a_name_that_an_index_has_of_another_field_gets_an_underscore() -> None:
    fields = {
        "image": IMAGE,
        "caption": TEXT,
        "image.width": NUMBER,
        "caption.size": NUMBER,
        "caption.size_": NUMBER,
        "caption.width": NUMBER,
        "scalars.crc32c": NUMBER,
        "meta.width": NUMBER,
    }
    assert {name: new for name, new in settled_names(fields).items() if name != new} == {
        "image.width": "image.width_",
        "caption.size": "caption.size__",
        "scalars.crc32c": "scalars.crc32c_",
    }


def test_the_name_of_a_field_that_was_renamed_counts_too() -> None:
    fields = {"image": IMAGE, "image.size": BYTES, "image.size_.size": NUMBER}
    assert list(settled_names(fields).values()) == ["image", "image.size_", "image.size_.size_"]


def test_members_have_extensions_of_their_own() -> None:
    fields = {
        "image": IMAGE,
        "cls": Field(type="bytes", extension="cls"),
        "txt": Field(type="bytes", extension="txt"),
        "mask": IMAGE,
        "png": Field(type="bytes", extension="png"),
        "mask.png": Field(type="bytes", extension="mask.png"),
        "bin": Field(type="bytes", extension="bin"),
        "A": BYTES,
        "a": BYTES,
        "label": LABEL,
        "caption": Field(type="string", extension="txt"),
        "json": NUMBER,
    }
    settled = settled_fields(fields)
    assert list(settled) == list(fields)
    assert {name: field.extension for name, field in settled.items() if field != fields[name]} == {
        "cls": "cls_",
        "txt": "txt_",
        "png": "png_",
        "mask.png": "mask.png_",
        "a": "a_",
    }


@pytest.mark.parametrize("header", ["path,image.width,image.height", "image.width,image.height,path"])
def test_columns_as_json_normalize_names_them_can_be_built(tmp_path: Path, header: str) -> None:
    rows = [{"path": f"{number}.jpg", "image.width": 10 + number, "image.height": 7} for number in range(3)]
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
    names = header.split(",")
    (tmp_path / "list.csv").write_text("\n".join([header, *(",".join(str(row[n]) for n in names) for row in rows)]))
    build(tmp_path / "list.csv", tmp_path / "out", BuildOptions(shuffle=False))
    assert columns(tmp_path / "out", "image.width_", "image.height_") == {
        "image.width_": [10, 11, 12],
        "image.height_": [7, 7, 7],
    }
    assert open_dataset(tmp_path / "out").describe(np.arange(3)).widths.tolist() != [10, 11, 12]
    assert verify(tmp_path / "out", "full").problems == []


def test_a_column_that_is_called_as_one_of_a_text_keeps_its_values(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(0))
    (tmp_path / "list.csv").write_text("path,caption.size,caption\na.jpg,77,a cat\n")
    build(tmp_path / "list.csv", tmp_path / "out")
    assert columns(tmp_path / "out", "caption.size_", "caption") == {"caption.size_": [77], "caption": ["a cat"]}


def test_bytes_beside_a_label_and_a_caption_have_members_of_their_own(tmp_path: Path) -> None:
    table = {
        "image": pa.array([encoded(0), encoded(1)]),
        "label": pa.array([0, 1]),
        "cls": pa.array([b"one", b"two"]),
        "txt": pa.array([b"x", b"y"]),
        "caption": pa.array(["a cat", "a dog"]),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    build(tmp_path / "a.parquet", tmp_path / "out", BuildOptions(shuffle=False))
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        names = archive.getnames()
    extensions = ["cls", "cls_", "jpg", "txt", "txt_"]
    assert names == [f"a/00000{row}.{extension}" for row in range(2) for extension in extensions]
    reader = open_dataset(tmp_path / "out")
    assert reader.read(np.arange(2), "cls")[1] == [b"one", b"two"]
    assert verify(tmp_path / "out", "full").problems == []


def test_members_that_are_called_as_a_column_can_be_adopted_and_built(tmp_path: Path) -> None:
    members = [("1.jpg", encoded(0)), ("1.image.width", b"wide"), ("1.txt", b"cat"), ("1.caption.size", b"big")]
    write_tar(tmp_path / "a" / "a.tar", members)
    adopt(tmp_path / "a", tmp_path / "adopted")
    build(tmp_path / "a", tmp_path / "built")
    for dataset in (tmp_path / "adopted", tmp_path / "built"):
        reader = open_dataset(dataset)
        assert list(reader.manifest.fields) == ["image", "caption", "caption.size_", "image.width_"]
        assert reader.read(np.arange(1), "image.width_")[1] == [b"wide"]
        assert reader.read(np.arange(1), "caption.size_")[1] == [b"big"]
        assert verify(dataset, "full").problems == []
    (table,) = open_source(tmp_path / "adopted")
    assert table.fields["caption.size_"] == Field(type="bytes", extension="caption.size")


@pytest.mark.parametrize("column", ["label.offset", "scalars.size"])
def test_an_annotation_that_an_index_has_of_another_field_is_refused(tmp_path: Path, column: str) -> None:
    build(write_image_folder(tmp_path / "images"), tmp_path / "out")
    keys = open_dataset(tmp_path / "out").describe(np.arange(1)).keys
    with pytest.raises(SourceError, match=rf"{tmp_path}/out.* {column!r}"):
        annotate(tmp_path / "out", pa.table({"key": keys, column: [1]}))


def test_an_adopted_image_folder_takes_no_annotation_called_path(tmp_path: Path) -> None:
    adopt(write_image_folder(tmp_path / "images"), tmp_path / "out")
    keys = open_dataset(tmp_path / "out").describe(np.arange(1)).keys
    with pytest.raises(SourceError) as caught:
        annotate(tmp_path / "out", pa.table({"key": keys, "path": ["x"]}))
    assert str(caught.value) == (
        f"{tmp_path}/out would have a field 'path', but its index has a column of its own with that name; rename the "
        "field, or leave it out"
    )
    check_field_names({"image": IMAGE, "path": TEXT}, "x")
    with pytest.raises(SourceError, match=r"'a.size', but its index has a column of the field 'a' with that name; "):
        check_field_names({"image": IMAGE, "a": TEXT, "a.size": TEXT}, "x")
