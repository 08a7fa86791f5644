"""Reading a shard once, in order."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.errors import SourceError
from feeder.shards.formats import sequential
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.storage import LocalFolder, RemoteFolder

DATA = bytes(range(256)) * 40


class CountingFolder(RemoteFolder):
    """A folder in memory that remembers what was read, and may become shorter."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        super().__init__("/nowhere")
        self.data = data
        self.claimed = len(data) if size is None else size
        self.fetched: list[tuple[int, int]] = []

    def size(self, name: str) -> int:
        return self.claimed

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        self.fetched += [(offset, size) for _, offset, size in ranges]
        return [self.data[offset : offset + size] for _, offset, size in ranges]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "_LOCAL_PIECE_BYTES", 64)
    monkeypatch.setattr(sequential, "_REMOTE_PIECE_BYTES", 64)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11_000), st.integers(0, 3_000)), max_size=12))
def test_any_reads_in_order_give_the_bytes_and_fetch_each_once(reads: list[tuple[int, int]]) -> None:
    folder = CountingFolder(DATA)
    shard = SequentialShard(folder, "a.tar")
    for offset, size in sorted(reads):
        assert shard.read(offset, size) == DATA[offset : offset + size]
    assert shard.finish() == xxhash.xxh3_128_hexdigest(DATA)
    position = 0
    for offset, size in folder.fetched:
        assert offset == position
        position += size
    assert position == len(DATA)


def test_what_is_stepped_over_is_not_held() -> None:
    folder = CountingFolder(DATA)
    shard = SequentialShard(folder, "a.tar")
    shard.read(0, 10)
    shard.read(9_000, 10)
    assert len(shard._window) <= 4 * 64
    assert shard.finish() == xxhash.xxh3_128_hexdigest(DATA)


def test_an_offset_before_the_last_one_is_a_mistake() -> None:
    shard = SequentialShard(CountingFolder(DATA), "a.tar")
    shard.read(5_000, 10)
    with pytest.raises(ValueError, match="offset 10 of /nowhere/a.tar was asked for after 4864"):
        shard.read(10, 10)


def test_a_shard_that_becomes_shorter_is_refused() -> None:
    shard = SequentialShard(CountingFolder(DATA[:100], size=200), "a.tar")
    with pytest.raises(SourceError) as caught:
        shard.finish()
    assert str(caught.value) == (
        "/nowhere/a.tar changed while it was read: got 36 bytes at offset 64, expected 64; run the command again when "
        "it is at rest"
    )


def test_a_local_shard_is_read_in_small_pieces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    shard = SequentialShard(LocalFolder(str(tmp_path)), "a")
    assert shard.read(0, 64) == DATA[:64]
    assert len(shard._window) == 64
    assert shard.read(1_000, 5_000) == DATA[1_000:6_000]
    assert shard.finish() == xxhash.xxh3_128_hexdigest(DATA)


def test_an_empty_shard_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert SequentialShard(LocalFolder(str(tmp_path)), "a").finish() == xxhash.xxh3_128_hexdigest(b"")
