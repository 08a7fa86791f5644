"""What is in a dataset, from its manifest and from the indexes of some of its shards."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.fields import ABSENT
from feeder.shards.images.headers import FORMAT_NAMES
from feeder.shards.reading.listing import shard_columns
from feeder.shards.reading.rows import Reader

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_EXAMPLES = 3  # values of a column that are shown


@dataclasses.dataclass(slots=True)
class FieldSummary:
    """One field over the samples looked at, but `image` and `label`.

    Attributes:
        type: as in the manifest.
        absent: samples without a value.
        examples: of a column, its first different values.
        lowest, highest: of a column of numbers.
        formats: of an image field, how often each occurs.
        sizes: of a stored field, bytes at `QUANTILES`; zeros where no sample has it.
    """

    type: str
    absent: int = 0
    examples: list[Any] = dataclasses.field(default_factory=list)
    lowest: float | None = None
    highest: float | None = None
    formats: dict[str, int] = dataclasses.field(default_factory=dict)
    sizes: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The samples of evenly spaced shards, counted.

    Attributes:
        shards_read, samples_read: how much was looked at.
        class_counts: int64[classes], samples of each.
        unlabelled: samples without a label, where there are labels.
        formats: samples of each image format; ``""`` counts headers that cannot be parsed.
        widths, heights: pixels at `QUANTILES`, over images whose header can be parsed; zeros when there are none.
        sizes: bytes of images at `QUANTILES`.
        fields: all other fields, by name.
    """

    shards_read: int
    samples_read: int
    class_counts: NDArray[np.int64]
    unlabelled: int
    formats: dict[str, int]
    widths: list[int]
    heights: list[int]
    sizes: list[int]
    fields: dict[str, FieldSummary]


def summarise(reader: Reader, max_shards: int) -> Summary:
    """Return a summary of at most `max_shards` shards, evenly spaced over the dataset.

    Raises `ConfigError` if that is less than 1, and what `feeder.shards.reading.listing.shard_columns` raises.
    """
    if max_shards < 1:
        raise ConfigError(f"max_shards is {max_shards}, expected at least 1")
    manifest = reader.manifest
    count = min(max_shards, len(manifest.shards))
    counts = _Counts(reader)
    for number in range(count):
        counts.add(number * len(manifest.shards) // count)
    image = counts.finish("image")
    return Summary(
        shards_read=count,
        samples_read=counts.samples,
        class_counts=counts.classes,
        unlabelled=counts.unlabelled,
        formats=image.formats,
        widths=_quantiles(counts.widths),
        heights=_quantiles(counts.heights),
        sizes=image.sizes,
        fields={name: counts.finish(name) for name in manifest.fields if name not in ("image", "label")},
    )


class _Counts:
    """Adds up what shards hold."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._fields = reader.manifest.fields
        self._found = {name: FieldSummary(type=field.type) for name, field in self._fields.items()}
        self._formats: dict[str, Counter[str]] = {name: Counter() for name in self._fields}
        self._sizes: dict[str, list[NDArray[Any]]] = {name: [] for name in self._fields}
        self.widths: list[NDArray[Any]] = []
        self.heights: list[NDArray[Any]] = []
        self.samples = self.unlabelled = 0
        self.classes = np.zeros(len(reader.manifest.classes), np.int64)

    def add(self, number: int) -> None:
        """Count the samples of a shard."""
        columns = shard_columns(self._reader, number)
        self.samples += len(columns["key"])
        for name, field in self._fields.items():
            if name == "label":
                labels = np.asarray(columns[name])
                self.classes += np.bincount(labels[labels >= 0], minlength=len(self.classes))[: len(self.classes)]
                self.unlabelled += int((labels < 0).sum())
            elif field.stored:
                self._add_stored(name, columns)
            else:
                self._add_values(name, self._values(name, columns, number))
        widths, heights = (np.asarray(columns[f"image.{part}"]) for part in ("width", "height"))
        self.widths.append(widths[widths > 0])
        self.heights.append(heights[heights > 0])

    def _values(self, name: str, columns: Mapping[str, pa.Array], number: int) -> pa.Array:
        """Return a column, which may stand in a file of all samples alone."""
        if name in columns and name not in self._reader.manifest.columns:
            return columns[name]
        first_ids = self._reader.manifest.first_ids
        return pa.array(self._reader.values(np.arange(first_ids[number], first_ids[number + 1]), name))

    def _add_stored(self, name: str, columns: Mapping[str, pa.Array]) -> None:
        sizes = np.asarray(columns[f"{name}.size"])
        present = sizes != ABSENT
        self._found[name].absent += int((~present).sum())
        self._sizes[name].append(sizes[present])
        if f"{name}.format" in columns:
            codes, times = np.unique(np.asarray(columns[f"{name}.format"])[present], return_counts=True)
            names = [FORMAT_NAMES[code] for code in codes.tolist()]
            self._formats[name].update(dict(zip(names, times.tolist(), strict=True)))

    def _add_values(self, name: str, values: pa.Array) -> None:
        found = self._found[name]
        found.absent += values.null_count
        present = values.drop_null()
        if not len(present):
            return
        if len(found.examples) < _EXAMPLES:
            unique = pc.unique(present[: 64 * _EXAMPLES]).to_pylist()
            found.examples += [value for value in unique if value not in found.examples]
            del found.examples[_EXAMPLES:]
        if found.type in ("int64", "float64"):
            low, high = (pc.min_max(present)[end].as_py() for end in ("min", "max"))
            found.lowest = low if found.lowest is None else min(found.lowest, low)
            found.highest = high if found.highest is None else max(found.highest, high)

    def finish(self, name: str) -> FieldSummary:
        """Return what was found of a field."""
        found = self._found[name]
        found.formats = dict(self._formats[name].most_common())
        if self._fields[name].stored:
            found.sizes = _quantiles(self._sizes[name])
        return found


def _quantiles(arrays: list[NDArray[Any]]) -> list[int]:
    values = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
    if not values.size:
        return [0] * len(QUANTILES)
    return [int(value) for value in np.quantile(values, QUANTILES, method="nearest")]
