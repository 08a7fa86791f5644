"""The formats of shards, in one table: what writes one, and what holds one against its index.

All else is the same for every format: the plan, so that the same samples share a shard; the index beside each shard;
reading, which fetches ``(offset, size)`` and compares the CRC-32C; the manifest and its digests.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from feeder.shards.fields import Field
from feeder.shards.formats.arrow import ArrowWriter, check_rows
from feeder.shards.formats.index import ShardIndex
from feeder.shards.formats.samples import DigestedFile, Sample
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.formats.tar import TarWriter
from feeder.shards.formats.tar_check import check_members


class ShardWriter(Protocol):
    """Appends samples to the file of a shard.

    Duties: the same samples give the same bytes; one thread uses it; it writes through the file it was given, from
    where that stands at the start, and leaves it open.
    """

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        ...

    def close(self) -> Mapping[str, list[int]]:
        """Write what is left; return the columns that `feeder.shards.formats.index.bytes_columns` names, of each
        stored field and of each member that holds columns."""
        ...


class ShardCheck(Protocol):
    """Yields what contradicts the index in the bytes of a shard, which it reads from their beginning onwards.

    Duties: whatever the bytes are, it raises nothing but `StorageError`.

    Args:
        shard: the bytes.
        index, fields: what they are held against.
        dropped: samples that the shard holds and its index leaves out.
        own: a build of ours wrote the shard.
    """

    def __call__(
        self, shard: SequentialShard, index: ShardIndex, fields: Mapping[str, Field], *, dropped: int, own: bool
    ) -> Iterator[str]: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardFormat:
    """One format of shards.

    Attributes:
        writer: makes the writer of a shard, from its file and the fields of its samples; None for formats that are only
            adopted.
        check: holds a shard against its index; None where there is nothing to check beyond the CRC of each field.
        files: a shard is no file but a group of them, one a sample, named by the column ``path`` of its index.
    """

    writer: Callable[[DigestedFile, Mapping[str, Field]], ShardWriter] | None = None
    check: ShardCheck | None = None
    files: bool = False


SHARD_FORMATS = {
    "tar": ShardFormat(writer=TarWriter, check=check_members),
    "arrow": ShardFormat(writer=ArrowWriter, check=check_rows),
    "mds": ShardFormat(),
    "folder": ShardFormat(files=True),
}
"""By name, which is also the extension of their files."""

WRITTEN_FORMATS = tuple(name for name, shard_format in SHARD_FORMATS.items() if shard_format.writer)


def shard_name(number: int, shard_format: str) -> str:
    """Return the name of a dataset's shard."""
    return f"shard-{number:06d}.{shard_format}"
