"""What a reader gives: rows of the per-sample columns, and the protocol that every reader keeps."""

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.dataset.manifest import Manifest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The columns of n samples, in the order in which they were asked for.

    Attributes:
        keys: the samples' names, unique in a dataset.
        labels: int64[n], numbers of classes; −1 when there is none.
        widths, heights: int32[n], pixels of the stored image (EXIF orientation is not applied); 0 when its header
            cannot be parsed, or there is none.
        formats: ``"jpeg"``, ``"png"``, …; ``""`` when the header cannot be parsed.
    """

    keys: list[str]
    labels: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    formats: list[str]


class Reader(Protocol):
    """An open dataset.

    Duties: `describe` and `read` are safe from many threads at once; a reader may be pickled (nothing open travels)
    and used on both sides of a fork; results stand in the order of `ids`, which may repeat; `close` may be called
    twice, and a closed reader that is used again opens what it needs.
    """

    manifest: Manifest
    url: str

    def describe(self, ids: NDArray[np.int64]) -> Rows:
        """Return the rows of samples without reading their images."""
        ...

    def read(self, ids: NDArray[np.int64], field: str = "image") -> tuple[Rows, list[bytes]]:
        """Return the rows of samples and the bytes of one of their stored fields, checked against the index.

        Widths, heights and formats are those of the field, if it is an image. Where a sample has no such field its
        bytes are empty.
        """
        ...

    def values(self, ids: NDArray[np.int64], field: str) -> list[Any]:
        """Return the values of a column field, None where a sample has none."""
        ...

    def close(self) -> None:
        """Release descriptors and mappings."""
        ...


def no_such_field(reader: Reader, field: str) -> ConfigError:
    """Return the error for a field that a dataset lacks, or that is not of the kind asked for."""
    fields = ", ".join(f"{name} ({kind.type})" for name, kind in reader.manifest.fields.items())
    return ConfigError(f"{reader.url} has no such field {field!r} to read in this way: its fields are {fields}")


def joined_rows(parts: list[Rows]) -> Rows:
    """Return the rows of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        keys=[key for part in parts for key in part.keys],
        labels=np.concatenate([part.labels for part in parts]),
        widths=np.concatenate([part.widths for part in parts]),
        heights=np.concatenate([part.heights for part in parts]),
        formats=[name for part in parts for name in part.formats],
    )


def checked_ids(ids: Any, num_samples: int) -> NDArray[np.int64]:
    """Return sample ids as int64[n]; an id outside the dataset raises `IndexError`."""
    array = np.asarray(ids, np.int64).reshape(-1)
    if array.size and (array.min() < 0 or array.max() >= num_samples):
        wrong = array[(array < 0) | (array >= num_samples)][0]
        raise IndexError(f"sample id {wrong} is outside the dataset: expected 0 to {num_samples - 1}")
    return array
