"""What an examination of a shard finds, and what is lost with it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.shards.dataset.manifest import Manifest
from feeder.shards.dataset.shard_table import ShardRecord
from feeder.shards.errors import ShardError, StorageError
from feeder.shards.fields import Field
from feeder.shards.reading.opening import load_index
from feeder.shards.storage import Folder

Columns = dict[str, pa.Array]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LostSample:
    """A sample that is gone, or several whose keys are not known.

    Attributes:
        shard: the name of its shard.
        key: its key; None where it is not known.
        samples: how many.
        reason: why, a clause.
    """

    shard: str
    key: str | None
    samples: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardFinding:
    """What is wrong with a shard and what is to be done about it.

    Attributes:
        record: the shard as the manifest has it.
        kept: bool[samples], which of its rows stay.
        sentence: what is wrong and what to do; empty if nothing is wrong.
        action: ``"none"``; ``"restore"``: the index as it was; ``"index"``: a new index; ``"rewrite"``: a new shard of
            the samples that are right; ``"remove"``: nothing is left; ``"leave"``: it cannot be repaired.
        data: of restore and index, the bytes of the index file.
        columns: of rewrite, the index columns of the samples that stay, with their places in the shard as it is.
        digest, size_bytes, dropped: of index, the shard as it is, and the samples in it that the index leaves out.
        lost: the samples that are gone.
    """

    record: ShardRecord
    kept: NDArray[np.bool_]
    sentence: str = ""
    action: str = "none"
    data: bytes = b""
    columns: Columns = dataclasses.field(default_factory=dict)
    digest: str = ""
    size_bytes: int = 0
    dropped: int = 0
    lost: tuple[LostSample, ...] = ()


def lost_samples(record: ShardRecord, keys: list[Any], reason: str) -> Iterator[LostSample]:
    """Yield the samples of a shard that are lost, those without a known key together."""
    for key in keys:
        if key is not None:
            yield LostSample(shard=record.name, key=key, samples=1, reason=reason)
    if unknown := sum(key is None for key in keys):
        yield LostSample(shard=record.name, key=None, samples=unknown, reason=reason)


def shard_fields(folder: Folder, manifest: Manifest, oldest: Manifest | None) -> dict[str, Field]:
    """Return the fields that the shards of a dataset hold: not those that were added as columns alone.

    Args:
        folder, manifest: of the dataset.
        oldest: its first generation that can still be read, which tells where no index can be.
    """
    names: set[str] | None = None
    for number in range(len(manifest.shards)):
        try:
            names = set(load_index(folder, manifest, number).names)
            break
        except (ShardError, StorageError):
            continue
    if names is None:
        names = set((oldest or manifest).fields)
    return {name: field for name, field in manifest.fields.items() if field.stored or name in names}
