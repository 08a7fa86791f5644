"""The plan of a build: which samples go into which shard, in which order.

It is a pure function of names, sizes, columns and the seed, and the same for every format: shards are cut by the bytes
that their samples would take in a tar shard. So one source gives the same samples in the same shards, and with them the
same batches, whatever the format.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from feeder.keyed import derive_key, draw
from feeder.shards.errors import SourceError
from feeder.shards.names import key_of, readable
from feeder.shards.splitting import balanced_order
from feeder.shards.table import SampleTable
from feeder.shards.tar import END, member_sizes, scalar_names

DEFAULT_SHARD_BYTES = 64 << 20  # large enough for object storage to stream, small enough to hold several in flight


_SCALAR_BYTES = 30  # of one scalar in its JSON member, at most: quotes, colon, comma, and 24 digits of a float64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The shards of one split.

    Attributes:
        order: int64[n], rows of the table in the order in which they are written.
        starts: int64[S+1]: shard s takes order[starts[s]:starts[s+1]].
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """Return the numbers of the samples of a shard."""
        return self.order[self.starts[number] : self.starts[number + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each shard."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.order[start:end]


def plan_shards(
    table: SampleTable,
    *,
    seed: int | None,
    shard_bytes: int,
    shard_samples: int | None = None,
    shards: int | None = None,
    balanced: bool = False,
) -> Plan:
    """Return the plan of a split.

    Shuffled order is the stable argsort of one 64-bit draw a sample, of the key ("shards.shuffle", seed): a uniform
    permutation over the whole split, the same on every machine. Shards are then cut greedily: each takes samples until
    the next would pass `shard_bytes` or `shard_samples`, and at least one.

    Args:
        table: the samples of the split.
        seed: of the shuffle; None keeps the order of the source.
        shard_bytes: the size that a tar shard of these samples does not pass, unless a single one does.
        shard_samples: at most this many samples in a shard, if given.
        shards: so many shards of equally many samples instead, if given; one for each sample if there are fewer.
        balanced: with a seed, let classes take turns (`feeder.shards.splitting.balanced_order`).

    Raises:
        SourceError: two samples would have the same key.
    """
    refuse_clashes(table)
    numbers = np.arange(len(table), dtype=np.int64)
    if seed is None:
        order = numbers
    elif balanced:
        order = balanced_order(table.labels, seed)
    else:
        order = np.argsort(draw(derive_key("shards.shuffle", seed), numbers), kind="stable").astype(np.int64)
    if shards is not None:
        count = min(shards, len(table))
        return Plan(order=order, starts=np.arange(count + 1, dtype=np.int64) * len(table) // count)
    ends = np.cumsum(_tar_bytes(table)[order])
    starts = [0]
    while starts[-1] < len(table):
        start = starts[-1]
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + shard_bytes - len(END), side="right"))
        if shard_samples is not None:
            end = min(end, start + shard_samples)
        starts.append(max(end, start + 1))
    return Plan(order=order, starts=np.array(starts, np.int64))


def _tar_bytes(table: SampleTable) -> NDArray[np.int64]:
    """Return int64[n]: the bytes that each sample takes in a tar shard, at most."""
    total = np.zeros(len(table), np.int64)
    for places in table.stored.values():
        total += np.where(places.sizes >= 0, member_sizes(np.maximum(places.sizes, 0)), 0)
    total += np.where(table.labels >= 0, member_sizes(np.array(1)), 0)  # a label's digits fit a block
    for name, column in table.values.items():
        if table.fields[name].type == "string":
            lengths = np.asarray(pc.fill_null(pc.binary_length(column), -1), np.int64)
            total += np.where(lengths >= 0, member_sizes(np.maximum(lengths, 0)), 0)
    if scalars := scalar_names(table.fields):
        total += member_sizes(np.array(sum(len(name) + _SCALAR_BYTES for name in scalars)))
    return total


def refuse_clashes(table: SampleTable) -> None:
    """Raise `SourceError` if two samples have the same key. Keys are compared by digest: 8 bytes each, not a string."""
    digests = np.fromiter(
        (xxhash.xxh3_64_intdigest(table.key(row).encode()) for row in range(len(table))), np.uint64, len(table)
    )
    order = np.argsort(digests, kind="stable")
    for position in np.flatnonzero(digests[order[1:]] == digests[order[:-1]]):
        first, second = (int(order[position + i]) for i in (0, 1))
        if table.key(first) == table.key(second):
            said = f"{table.name(first)} and {table.name(second)} in {readable(table.root)} would both have the key "
            if key_of(table.names[first]) != table.key(first):  # it is not made of the name
                raise SourceError(f"{said}{table.key(first)!r}; give each sample a key of its own")
            raise SourceError(
                f"{said}{table.key(first)!r}, because a key has no extension; rename or remove one of them"
            )
