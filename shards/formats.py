"""The formats of shards, in one table: what writes one, and what holds one against its index.

All else is the same for every format: the plan, so that the same samples share a shard; the index beside each shard;
reading, which fetches ``(offset, size)`` and compares the CRC-32C; the manifest and its digests.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from feeder.shards.arrow import ArrowWriter, check_rows
from feeder.shards.index import ShardIndex
from feeder.shards.samples import DigestedFile, Sample
from feeder.shards.tar import LABEL_EXTENSION, TarWriter, check_members


class ShardWriter(Protocol):
    """Appends samples to the file of a shard.

    Duties: the same samples give the same bytes; one thread uses it; it writes through the file it was given, from
    where that stands at the start, and leaves it open.
    """

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        ...

    def close(self) -> Mapping[str, list[int]]:
        """Write what is left; return the columns that `feeder.shards.index.bytes_columns` names, of each field."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardFormat:
    """One format of shards.

    Attributes:
        writer: makes the writer of a shard, from its file and whether its samples have labels.
        check: takes the bytes of a shard, its index and its place; yields what contradicts the index.
        label_extension: that of the member of a sample which holds its label as text, if there is such a thing.
    """

    writer: Callable[[DigestedFile, bool], ShardWriter]
    check: Callable[[bytes, ShardIndex, str], Iterator[str]]
    label_extension: str | None = None


SHARD_FORMATS = {
    "tar": ShardFormat(writer=TarWriter, check=check_members, label_extension=LABEL_EXTENSION),
    "arrow": ShardFormat(writer=ArrowWriter, check=check_rows),
}
"""By name, which is also the extension of their files."""


def shard_name(number: int, shard_format: str) -> str:
    """Return the name of a dataset's shard."""
    return f"shard-{number:06d}.{shard_format}"
