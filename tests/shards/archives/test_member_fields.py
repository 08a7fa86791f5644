"""Which fields the members of samples are."""

from pathlib import Path

import pyarrow as pa
import pytest

from feeder.shards.archives.member_fields import (
    MemberField,
    field_name,
    is_value,
    member_fields,
    member_type,
    member_values,
)
from feeder.shards.archives.members import walk_samples
from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from tests.shards.formats.test_tar_walk import packed


def named(*extensions: str, together: tuple[tuple[str, ...], ...] = ()) -> dict[str, tuple[str, tuple[str, ...]]]:
    fields = member_fields(extensions, [frozenset(pair) for pair in together])
    return {field.name: (field.field.type, field.extensions) for field in fields}


def test_the_last_part_of_an_extension_tells_the_type() -> None:
    types = {
        extension: member_type(extension) for extension in ("jpg", "mask.png", "cls", "index", "txt", "json", "npy")
    }
    assert list(types.values()) == ["image", "image", "int64", "int64", "string", "json", "bytes"]
    assert [is_value(extension) for extension in ("jpg", "cls", "a.txt", "json")] == [False, True, True, False]


def test_fields_of_extensions() -> None:
    assert named("npy", "json", "id", "cls", "txt", "mask.png", "left.rgb.tif", "jpg", "vae.npy", "aug.cls") == {
        "image": ("image", ("jpg",)),
        "label": ("int64", ("cls",)),
        "aug": ("int64", ("aug.cls",)),
        "caption": ("string", ("txt",)),
        "id_": ("int64", ("id",)),
        "json": ("json", ("json",)),
        "left.rgb": ("image", ("left.rgb.tif",)),
        "mask": ("image", ("mask.png",)),
        "npy": ("bytes", ("npy",)),
        "vae.npy": ("bytes", ("vae.npy",)),
    }
    assert member_fields(["cls", "a.txt"])[1] == MemberField(
        name="a", field=Field(type="string", extension="a.txt"), extensions=("a.txt",)
    )


def test_images_of_several_formats_are_one_field_unless_they_meet() -> None:
    assert named("png", "webp", "jpg") == {"image": ("image", ("jpg", "webp", "png"))}
    assert named("png", "webp", "jpg", together=(("jpg", "png"),)) == {
        "image": ("image", ("jpg", "webp")),
        "png": ("image", ("png",)),
    }
    assert named("image.jpg", "cls")["image"] == ("image", ("image.jpg",))
    assert named("label.png", "cls", "jpg")["label_"] == ("image", ("label.png",))
    assert named("class", "jpg")["label"] == ("int64", ("class",))
    assert named("class", "cls", "jpg")["class"] == ("int64", ("class",))
    assert named("mask.png", "mask.tif")["mask"] == ("image", ("mask.png", "mask.tif"))


def test_two_members_of_one_field_are_refused() -> None:
    with pytest.raises(SourceError) as caught:
        member_fields(["jpg", "mask.png", "mask.tif"], [frozenset(("mask.png", "mask.tif"))])
    assert str(caught.value) == (
        "members 'mask.png' and 'mask.tif' would both be the field 'mask' of a sample; pack them under other extensions"
    )
    with pytest.raises(SourceError, match="^members 'a.png' and 'a.txt' would both be the field 'a' of a sample"):
        member_fields(["jpg", "a.png", "a.txt"])


def test_names_of_fields() -> None:
    assert field_name("aesthetic score") == "aesthetic_score"
    assert field_name("é..x") == "_._.x"
    assert [field_name(name) for name in ("id", "key", "source", "scalars")] == ["id_", "key_", "source_", "scalars_"]


def test_values_of_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed({"1.cls": b" 7\n", "1.txt": "é".encode(), "2.cls": b"-1", "3.txt": b""}))
    samples = walk_samples(str(path), wanted=is_value)
    caption, label = (
        next(field for field in member_fields(samples.extensions) if field.name == name)
        for name in ("caption", "label")
    )
    assert member_values(label, samples.contents, samples.where, samples.keys).to_pylist() == [7, -1, None]
    assert member_values(caption, samples.contents, samples.where, samples.keys).to_pylist() == ["é", None, ""]
    assert member_values(caption, samples.contents, samples.where, samples.keys).type == pa.string()


@pytest.mark.parametrize(
    ("content", "extension", "expected"),
    [
        (b"cat", "cls", "an integer of 64 bits"),
        (b"9" * 30, "cls", "an integer of 64 bits"),
        (b"\xff", "txt", "text in UTF-8"),
    ],
)
def test_values_that_are_none(tmp_path: Path, content: bytes, extension: str, expected: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed({f"k/1.{extension}": content}))
    samples = walk_samples(str(path), wanted=is_value)
    (field,) = member_fields(samples.extensions)
    with pytest.raises(SourceError) as caught:
        member_values(field, samples.contents, samples.where, samples.keys)
    assert str(caught.value) == (
        f"k/1.{extension} in {path} holds {content!r}, expected {expected}; pack it again, or under another extension"
    )
