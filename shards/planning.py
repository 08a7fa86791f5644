"""The plan of a build: which files go into which shard, in which order.

It is a pure function of paths, sizes, labels and the seed, and the same for every format: shards are cut by the bytes
that their samples would take in a tar shard. So one source gives the same samples in the same shards, and with them the
same batches, whatever the format.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

from feeder.keyed import derive_key, draw
from feeder.shards.errors import SourceError
from feeder.shards.names import key_of, readable
from feeder.shards.sources import ImageFiles
from feeder.shards.tar import END, member_sizes

DEFAULT_SHARD_BYTES = 64 << 20  # large enough for object storage to stream, small enough to hold several in flight


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The shards of one split.

    Attributes:
        order: int64[n], numbers of files in the order in which they are written.
        starts: int64[S+1]: shard s takes order[starts[s]:starts[s+1]].
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Yield the numbers of the files of each shard."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.order[start:end]


def plan_shards(files: ImageFiles, *, seed: int | None, shard_bytes: int, shard_samples: int | None) -> Plan:
    """Return the plan of a split.

    Shuffled order is the stable argsort of one 64-bit draw a file, of the key ("shards.shuffle", seed): a uniform
    permutation over the whole split, the same on every machine. Shards are then cut greedily: each takes files until
    the next would pass `shard_bytes` or `shard_samples`, and at least one.

    Args:
        files: the files of the split.
        seed: of the shuffle; None keeps the order of the source.
        shard_bytes: the size that a tar shard of these samples does not pass, unless a single one does.
        shard_samples: at most this many samples in a shard, if given.

    Raises:
        SourceError: two files would have the same key.
    """
    _refuse_clashes(files)
    numbers = np.arange(len(files), dtype=np.int64)
    if seed is None:
        order = numbers
    else:
        order = np.argsort(draw(derive_key("shards.shuffle", seed), numbers), kind="stable").astype(np.int64)
    ends = np.cumsum(_tar_bytes(files)[order])
    starts = [0]
    while starts[-1] < len(files):
        start = starts[-1]
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + shard_bytes - len(END), side="right"))
        if shard_samples is not None:
            end = min(end, start + shard_samples)
        starts.append(max(end, start + 1))
    return Plan(order=order, starts=np.array(starts, np.int64))


def _tar_bytes(files: ImageFiles) -> NDArray[np.int64]:
    """Return int64[n]: the bytes that each sample takes in a tar shard."""
    images = member_sizes(np.maximum(files.sizes, 0))
    return images + np.where(files.labels >= 0, member_sizes(np.ones_like(images)), 0)  # a label's digits fit a block


def _refuse_clashes(files: ImageFiles) -> None:
    """Raise `SourceError` if two files have the same key. Keys are compared by digest: 8 bytes a file, not a string."""
    digests = np.fromiter(
        (xxhash.xxh3_64_intdigest(key_of(path).encode()) for path in files.paths), np.uint64, len(files)
    )
    order = np.argsort(digests, kind="stable")
    for position in np.flatnonzero(digests[order[1:]] == digests[order[:-1]]):
        first, second = (files.paths[int(order[position + i])] for i in (0, 1))
        if key_of(first) == key_of(second):
            raise SourceError(
                f"{readable(first)} and {readable(second)} in {readable(files.root)} would both have the key "
                f"{key_of(first)!r}, because a key has no extension; rename or remove one of them"
            )
