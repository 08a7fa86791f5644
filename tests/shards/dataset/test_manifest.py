"""The manifest: written the same, read strictly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feeder.shards.dataset.manifest import (
    Field,
    Manifest,
    ShardTable,
    dataset_digest,
    encode_manifest,
    load_manifest,
    new_manifest,
    parse_manifest,
    save_manifest,
)
from feeder.shards.errors import ManifestError, StorageError


def make_manifest(shards: int = 3, **options: Any) -> Manifest:
    table = ShardTable(
        names=[f"shard-{i:06d}.tar" for i in range(shards)],
        samples=np.arange(10, 10 + shards, dtype=np.int64),
        size_bytes=np.arange(1000, 1000 + shards, dtype=np.int64),
        digests=[f"{i:032x}" for i in range(shards)],
        index_digests=[f"{i + 77:032x}" for i in range(shards)],
    )
    fields = {"image": Field(type="image"), "label": Field(type="int64", extension="cls")}
    return new_manifest(shards=table, fields=fields, classes=("chat", "größe", "犬"), **options)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = make_manifest(split="train", shuffled=True, shuffle_seed=-3, build={"shard_bytes": 7})
    save_manifest(written, tmp_path)
    for source in (tmp_path, str(tmp_path / "manifest.json"), f"file://{tmp_path}"):
        read = load_manifest(source)
        assert encode_manifest(read) == encode_manifest(written)
        assert read.digest == written.digest
    assert read.classes == ("chat", "größe", "犬")
    assert read.fields["label"] == Field(type="int64", extension="cls")
    assert read.first_ids.tolist() == [0, 10, 21, 33]
    assert (read.num_samples, read.size_bytes) == (33, 3003)
    assert (read.split, read.shuffled, read.shuffle_seed, read.build) == ("train", True, -3, {"shard_bytes": 7})
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_an_empty_dataset_can_be_described() -> None:
    read = parse_manifest(encode_manifest(make_manifest(0)), "here")
    assert (read.num_samples, len(read.shards), read.first_ids.tolist()) == (0, 0, [0])


def test_the_digest_is_pinned_and_depends_on_everything() -> None:
    """The digest names a dataset in states and caches: it must not change with the program."""
    assert make_manifest().digest == "127c209d1f7904f85c0021bfccb78e74"
    others = [make_manifest(2), make_manifest(split="val"), make_manifest(shuffled=True), make_manifest(build={"a": 1})]
    assert len({make_manifest().digest, *(other.digest for other in others)}) == 5


Edit = Callable[[dict[str, Any]], Any]
FAULTS: list[tuple[Edit, str]] = [
    (lambda d: d.pop("version"), "missing value at version in"),
    (lambda d: d.update(version=2), "version 2 is newer than version 1, the latest this program reads, in"),
    (lambda d: d.update(version="1"), "version is str, expected int, in"),
    (lambda d: d.update(version=0), "version is 0, expected 1, in"),
    (lambda d: d.pop("digest"), "missing value at digest in"),
    (lambda d: d.update(format="zip"), "format is 'zip', expected one of 'tar', 'arrow', 'mds', 'folder', in"),
    (lambda d: d.update(digest_algorithm="md5"), "digest_algorithm is 'md5', expected one of 'xxh3-128', in"),
    (
        lambda d: d["fields"].update({"../x": {"type": "string"}}),
        "fields.../x has a name or an extension that leads out of a folder, in",
    ),
    (
        lambda d: d["fields"].update(x={"type": "bytes", "extension": "/etc/x"}),
        "fields.x has a name or an extension that leads out of a folder, in",
    ),
    (
        lambda d: d.update(columns={"x": {"file": "../x.arrow", "digest": "0" * 32}}),
        "columns.x.file is '../x.arrow', expected the name of a file in columns/, in",
    ),
    (lambda d: d.update(generation=-1), "generation is -1, expected a number from 0 to 999999, in"),
    (lambda d: d["fields"].pop("image"), "fields lacks image, which every sample has, in"),
    (lambda d: d["shards"][0].update(index="../i"), "shards[0].index is '../i', expected the name of a file beside"),
    (lambda d: d["shards"][0].update(segments=[0, 2, 2]), "shards[0].segments is [0, 2, 2], expected first rows from"),
    (lambda d: d["shards"][0].update(dropped=-1), "shards[0].dropped is -1, expected a count, in"),
    (lambda d: d.update(classes=None), "classes is null, expected list, in"),
    (lambda d: d.update(classes=["a", 3]), "classes[1] is int, expected str, in"),
    (lambda d: d.update(classes=["a", "a"]), "classes holds a name twice, in"),
    (lambda d: d["fields"].update(image=3), "fields.image is int, expected an object, in"),
    (lambda d: d["fields"]["label"].pop("type"), "missing value at fields.label.type in"),
    (lambda d: d.update(shuffled=1), "shuffled is int, expected bool, in"),
    (lambda d: d.update(shards={}), "shards is dict, expected list, in"),
    (lambda d: d["shards"].append(3), "shards[3] is int, expected an object, in"),
    (lambda d: d["shards"][2].pop("size_bytes"), "missing value at shards[2].size_bytes in"),
    (lambda d: d["shards"][1].update(samples=True), "shards[1].samples is bool, expected int, in"),
    (lambda d: d["shards"][1].update(samples=0), "shards[1].samples is 0, expected a positive count, in"),
    (lambda d: d["shards"][1].update(samples=10**30), f"shards[1].samples is {10**30}, expected a positive count, in"),
    (lambda d: d["shards"][0].update(digest="XY"), "shards[0].digest is 'XY', expected 32 hexadecimal digits, in"),
    (lambda d: d["shards"][0].update(index_digest=None), "shards[0].index_digest is null, expected str, in"),
    (lambda d: d["shards"][0].update(name="../x"), "shards[0].name is '../x', expected the name of a file beside the"),
    (
        lambda d: d["shards"][1].update(name="shard-000000.tar"),
        "shards[1].name is 'shard-000000.tar', which an earlier",
    ),
    (lambda d: d.update(num_samples=34), "num_samples is 34, but the shards sum to 33, in"),
    (lambda d: d.update(size_bytes=1), "size_bytes is 1, but the shards sum to 3003, in"),
    (lambda d: d.update(split="val"), "it was altered after the build, in"),
    (lambda d: d.update(extra=1), "it was altered after the build, in"),
]


@pytest.mark.parametrize(("edit", "sentence"), FAULTS)
def test_a_fault_is_named_with_its_place(edit: Edit, sentence: str) -> None:
    document = json.loads(encode_manifest(make_manifest()))
    edit(document)
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(document).encode(), "s3://bucket/train/manifest.json")
    assert sentence in str(caught.value)
    assert "s3://bucket/train/manifest.json; " in str(caught.value)


def test_whole_sentences() -> None:
    document = json.loads(encode_manifest(make_manifest()))
    del document["shards"][1]["size_bytes"]
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(document).encode(), "/d/manifest.json")
    assert str(caught.value) == (
        "missing value at shards[1].size_bytes in /d/manifest.json; copy the dataset again from its origin, or build "
        "it again"
    )
    document["version"] = 9
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(document).encode(), "/d/manifest.json")
    assert str(caught.value) == (
        "version 9 is newer than version 1, the latest this program reads, in /d/manifest.json; upgrade shardfeed"
    )


def test_a_cut_at_any_place_is_found() -> None:
    data = encode_manifest(make_manifest())
    for length in range(len(data) - 2):  # the last bytes are the closing brace and a line end
        with pytest.raises(ManifestError, match=r"^here is not whole JSON|^here holds a JSON"):
            parse_manifest(data[:length], "here")


def test_thousands_of_brackets_are_no_manifest() -> None:
    with pytest.raises(ManifestError, match="^here is not whole JSON"):
        parse_manifest(b"[" * 100_000, "here")


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing_but_white_space() -> None:
    manifest = make_manifest(2)
    data = encode_manifest(manifest)
    for position in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[position] ^= 1 << bit
            try:
                read = parse_manifest(bytes(altered), "here")
            except ManifestError:
                continue
            assert read.digest == manifest.digest
            assert encode_manifest(read) == data


def test_a_missing_manifest_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path)
    assert str(caught.value) == (
        f"no manifest at {tmp_path}/manifest.json: expected a dataset made by 'feeder build'; check the path, or build "
        "it again if its build was interrupted"
    )
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*/manifest.json: Is a directory; check the path"):
        load_manifest(tmp_path)


def test_canonical_json_ignores_the_order_of_keys() -> None:
    assert dataset_digest({"a": 1, "b": [2], "digest": "x"}) == dataset_digest({"b": [2], "a": 1})
