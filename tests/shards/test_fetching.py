"""Fetching remote samples: together, but never more bytes than fit into memory beside each other."""

import fsspec
import numpy as np
import pytest

from feeder.shards import fetching
from feeder.shards.errors import BadImageError, SourceError
from feeder.shards.fetching import fetch
from feeder.shards.fields import Field
from feeder.shards.images import MAX_IMAGE_BYTES
from feeder.shards.names import PathTable
from feeder.shards.storage import read_url_ranges
from feeder.shards.table import Places, SampleTable


def remote_table(contents: list[bytes], sizes: list[int]) -> SampleTable:
    """Return a table of objects in memory, which have some contents and are said to have some sizes."""
    files = fsspec.filesystem("memory")
    for number, content in enumerate(contents):
        files.pipe_file(f"/fetching/{number}", content)
    names = PathTable(str(number) for number in range(len(contents)))
    return SampleTable(
        root="memory://fetching",
        names=names,
        labels=np.full(len(contents), -1, np.int64),
        fields={"image": Field(type="image")},
        stored={"image": Places(files=names, sizes=np.array(sizes, np.int64))},
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The sizes that each request of many ranges asked for."""
    sizes: list[list[int]] = []

    def watched(ranges: list[tuple[str, int, int]]) -> list[bytes]:
        sizes.append([size for _, _, size in ranges])
        return read_url_ranges(ranges)

    monkeypatch.setattr(fetching, "read_url_ranges", watched)
    return sizes


def test_what_is_fetched_together_is_bounded_in_bytes(asked: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FETCHED_BYTES", 100)
    contents = [bytes(size) for size in (60, 40, 1, 300, 100, 0, 0)] + [bytes(1)] * 101
    table = remote_table(contents, [len(content) for content in contents])
    assert [sample["image"] for sample in fetch(table)] == contents
    assert asked[:3] == [[60, 40], [1], [300]]
    assert asked[3:] == [[100, 0, 0], [1] * 64, [1] * 37]


def test_what_is_too_large_is_not_fetched(asked: list[list[int]]) -> None:
    first, second = fetch(remote_table([b"a", b"b"], [1, MAX_IMAGE_BYTES + 1]))
    assert first["image"] == b"a"
    assert isinstance(second["image"], BadImageError)
    assert asked == [[1]]


def test_the_object_that_is_gone_is_the_one_named() -> None:
    table = remote_table([b"a", b"b", b"c"], [1, 1, 1])
    fsspec.filesystem("memory").rm_file("/fetching/1")
    with pytest.raises(SourceError) as caught:
        list(fetch(table))
    assert str(caught.value) == (
        "memory://fetching/1 vanished while it was read; run the command again when the source is at rest"
    )
