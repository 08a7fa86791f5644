"""The samples of a source as columns: what every kind of source is turned into, and what shards are planned from.

Nothing is kept per sample but a few numbers and, in one run of bytes, its name: so that millions fit into memory. A
table can be cut (`SampleTable.take`) into the small part that one worker process needs, which is quick to pickle.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.shards.fields import Field
from feeder.shards.names import PathTable, key_of, readable

SPLITS = ("train", "val", "validation", "valid", "test")  # the names that folders of splits may have, in order
REST = "train"  # the split that others are cut off from
UNREADABLE = -1  # stands for the size of what is no regular file: a dangling link, a pipe, a device
FORBIDDEN = -3  # stands for the size of a file that its source must not name (−2 is `feeder.shards.fields.ABSENT`)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where one stored field of n samples lies.

    Attributes:
        files: paths relative to the table's root, absolute paths, or URLs.
        sizes: int64[n], bytes; `UNREADABLE`, `FORBIDDEN`, or `feeder.shards.fields.ABSENT`, where there are none.
        numbers: int64[n], the file of each sample; None: sample i has the file i.
        offsets: int64[n], where the bytes start in their file; None: each is a whole file.
        crcs: int64[n], the CRC-32C that the bytes must have, where it is known.
    """

    files: PathTable
    sizes: NDArray[np.int64]
    numbers: NDArray[np.int64] | None = None
    offsets: NDArray[np.int64] | None = None
    crcs: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def file(self, row: int) -> str:
        """Return the file of a sample."""
        return self.files[row if self.numbers is None else int(self.numbers[row])]

    def take(self, rows: NDArray[np.int64]) -> "Places":
        """Return the places of some samples, with no more files than they need."""
        numbers = None
        used = rows
        if self.numbers is not None:
            used, numbers = np.unique(self.numbers[rows], return_inverse=True)
        return Places(
            files=self.files.take(used),
            sizes=self.sizes[rows],
            numbers=numbers,
            offsets=None if self.offsets is None else self.offsets[rows],
            crcs=None if self.crcs is None else self.crcs[rows],
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SampleTable:
    """The samples of one split, in order.

    Attributes:
        split: the name of the split, or None.
        root: the absolute path or URL that files of `stored` are relative to, and that messages name.
        names: of each sample, where it came from: a path relative to the root, a URL, or the name that its source gives
            it, with an extension; its key is made of it (`feeder.shards.names.key_of`).
        keys: the keys themselves, where the samples have valid ones already; None: they are made of the names.
        labels: int64[n], numbers of `classes`; −1 for none.
        classes: class names in order of their labels, those of all splits; empty when there are no labels.
        fields: every field, ``image`` first, in the order in which indexes hold them; ``label`` among them if there are
            labels.
        stored: of each field that shards store as bytes, where it lies.
        values: of each other field but ``label``, its n values: a pyarrow array of the field's type, which may hold
            nulls.
        shuffled: whether the samples lie in random order already, by `shuffle_seed` if that is known.
        estimated: sizes are estimates and the bytes cannot be read: enough for the preview of a build.
    """

    split: str | None = None
    root: str
    names: PathTable
    keys: PathTable | None = None
    labels: NDArray[np.int64]
    classes: tuple[str, ...] = ()
    fields: Mapping[str, Field]
    stored: Mapping[str, Places]
    values: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)
    shuffled: bool = False
    shuffle_seed: int | None = None
    estimated: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether samples have labels."""
        return "label" in self.fields

    @property
    def prefix(self) -> str:
        """What stands before the names of files that are written of it: ``"train/"``, or nothing."""
        return f"{self.split}/" if self.split else ""

    @property
    def size_bytes(self) -> int:
        """The bytes of all stored fields, as far as their sizes are known."""
        return sum(int(np.maximum(places.sizes, 0).sum()) for places in self.stored.values())

    def key(self, row: int) -> str:
        """Return the key of a sample."""
        return key_of(self.names[row]) if self.keys is None else self.keys[row]

    def name(self, row: int) -> str:
        """Return the name of a sample as text that any file can hold."""
        return readable(self.names[row])

    def take(self, rows: NDArray[np.int64]) -> "SampleTable":
        """Return the table of some samples, in the order of `rows`."""
        return dataclasses.replace(
            self,
            names=self.names.take(rows),
            keys=None if self.keys is None else self.keys.take(rows),
            labels=self.labels[rows],
            stored={name: places.take(rows) for name, places in self.stored.items()},
            values={name: column.take(pa.array(rows)) for name, column in self.values.items()},
        )
