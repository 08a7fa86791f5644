"""Tar shards held against their index: the same members, at the same places."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import ShardError, SourceError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.formats.index import SCALARS, ShardIndex
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.formats.tar import BLOCK, SCALARS_EXTENSION, member_extension
from feeder.shards.formats.tar_walk import LOCAL_READ_BYTES, Member, TarFile, walk_tar
from feeder.shards.images.headers import FORMAT_NAMES


def check_members(
    shard: SequentialShard, index: ShardIndex, fields: Mapping[str, Field], *, dropped: int, own: bool
) -> Iterator[str]:
    """Yield a problem if the members of a tar shard are not those of its index; see `feeder.shards.formats.known`.

    In one that others have written only places count, not names, and it may hold what the index leaves out.
    """
    expected = _Expected(index, fields)
    place, members, end = 0, 0, 0
    left_out = _Keys()
    try:
        for member in walk_tar(TarFile(shard.where, shard.size_bytes, shard.read, LOCAL_READ_BYTES)):
            if own and member.offset != end + BLOCK:
                yield f"{shard.where} holds what is no member of a sample at offset {end}; build it again"
                return
            members, end = members + 1, member.offset + member.size + -member.size % BLOCK
            due = place < len(expected)
            if due and member.offset == expected.offsets[place] and member.size == expected.sizes[place]:
                if own and member.name != expected.name(place):
                    yield _different(shard, member, expected, place)
                    return
                place += 1
            elif due and (member.offset >= expected.offsets[place] or (own and not dropped)):
                yield _different(shard, member, expected, place)
                return
            else:
                left_out.add(member)
    except (ShardError, SourceError) as error:
        if own or place < len(expected):  # damage behind all samples of an index is that of whoever made the archive
            yield str(error)
        return
    if place < len(expected) or (own and not dropped and members > place):
        yield f"{shard.where} holds {members} readable members, but its index has {len(expected)}"
    elif own and left_out.count != dropped:
        yield (
            f"{shard.where} holds {left_out.count} samples that its index leaves out, but the manifest says {dropped}"
        )


def _different(shard: SequentialShard, member: Member, expected: "_Expected", place: int) -> str:
    return (
        f"{shard.where} holds {member.name!r} at offset {member.offset} with {member.size} bytes where its index has "
        f"{expected.name(place)!r} at offset {expected.offsets[place]} with {expected.sizes[place]} bytes"
    )


class _Keys:
    """Counts the samples that members belong to, which stand side by side."""

    def __init__(self) -> None:
        self.count = 0
        self._key = ""

    def add(self, member: Member) -> None:
        folder, slash, last = member.name.rpartition("/")
        key = folder + slash + last.partition(".")[0]
        self.count += key != self._key
        self._key = key


class _Expected:
    """The members that an index speaks of, in the order of their offsets.

    Attributes:
        offsets, sizes: int64[n].
    """

    def __init__(self, index: ShardIndex, fields: Mapping[str, Field]) -> None:
        self._index = index
        self._fields = fields
        self._names = index.stored_fields
        offsets, sizes, numbers, rows = [], [], [], []
        for number, name in enumerate(self._names):
            size = index.array(f"{name}.size")
            present = np.flatnonzero(size != ABSENT)
            offsets.append(index.array(f"{name}.offset")[present])
            sizes.append(size[present])
            numbers.append(np.full(len(present), number, np.int64))
            rows.append(present)
        order = np.argsort(np.concatenate(offsets), kind="stable")
        self.offsets: NDArray[np.int64] = np.concatenate(offsets)[order]
        self.sizes: NDArray[np.int64] = np.concatenate(sizes)[order]
        self._numbers = np.concatenate(numbers)[order]
        self._rows = np.concatenate(rows)[order]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, place: int) -> str:
        """Return the name that a member has in a shard of our own."""
        name, row = self._names[int(self._numbers[place])], int(self._rows[place])
        if name == SCALARS:
            extension = SCALARS_EXTENSION
        else:
            formats = self._index.stored(name).formats
            image = FORMAT_NAMES[formats[row]] if formats is not None else None
            extension = member_extension(name, self._fields[name], image)
        return f"{self._index.keys[row]}.{extension}"
