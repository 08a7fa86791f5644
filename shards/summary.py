"""What is in a dataset, from its manifest and from the rows of some of its shards."""

import dataclasses
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.rows import Reader

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The rows of evenly spaced shards, counted.

    Attributes:
        shards_read, samples_read: how much was looked at.
        class_counts: int64[classes], samples of each.
        formats: samples of each image format; ``""`` counts headers that cannot be parsed.
        widths, heights: pixels at `QUANTILES`, over images whose header can be parsed; zeros when there are none.
    """

    shards_read: int
    samples_read: int
    class_counts: NDArray[np.int64]
    formats: dict[str, int]
    widths: list[int]
    heights: list[int]


def summarise(reader: Reader, max_shards: int) -> Summary:
    """Return a summary of at most `max_shards` shards, evenly spaced over the dataset.

    Raises `ConfigError` if that is less than 1, and what `Reader.describe` raises.
    """
    if max_shards < 1:
        raise ConfigError(f"max_shards is {max_shards}, expected at least 1")
    manifest = reader.manifest
    count = min(max_shards, len(manifest.shards))
    chosen = [number * len(manifest.shards) // count for number in range(count)]
    classes = np.zeros(len(manifest.classes), np.int64)
    formats: Counter[str] = Counter()
    widths, heights = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    samples = 0
    for number in chosen:
        rows = reader.describe(np.arange(manifest.first_ids[number], manifest.first_ids[number + 1]))
        samples += len(rows.keys)
        classes += np.bincount(rows.labels[rows.labels >= 0], minlength=len(classes))
        formats.update(rows.formats)
        widths.append(rows.widths[rows.widths > 0])
        heights.append(rows.heights[rows.heights > 0])
    return Summary(
        shards_read=count,
        samples_read=samples,
        class_counts=classes,
        formats=dict(formats.most_common()),
        widths=_quantiles(np.concatenate(widths)),
        heights=_quantiles(np.concatenate(heights)),
    )


def _quantiles(values: NDArray[np.int32]) -> list[int]:
    if not values.size:
        return [0] * len(QUANTILES)
    return [int(value) for value in np.quantile(values, QUANTILES, method="nearest")]
