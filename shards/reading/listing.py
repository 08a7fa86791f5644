"""The samples of a dataset, read from its indexes one shard at a time, without a byte of an image."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.formats.index import index_columns
from feeder.shards.images.headers import FORMAT_NAMES, FORMATS, UNKNOWN_FORMAT
from feeder.shards.reading.folder import FolderReader
from feeder.shards.reading.opening import load_index
from feeder.shards.reading.rows import Reader
from feeder.shards.storage import open_folder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListedSample:
    """A sample as its index has it.

    Attributes:
        key, label: its name, and the number of its class, −1 for none.
        size_bytes: of its image.
        width, height, format: of its image; 0, 0 and "" where its header cannot be parsed.
        shard: the name of its shard.
    """

    key: str
    label: int
    size_bytes: int
    width: int
    height: int
    format: str
    shard: str


def shard_columns(reader: Reader, number: int) -> Mapping[str, pa.Array]:
    """Return the columns of the index of a shard, by name.

    Of a plain folder they are key, source, size, width, height, format and label; every file's header is read.

    Raises:
        ShardError: the index is missing, cut or altered.
        StorageError: the storage does not give it.
    """
    manifest = reader.manifest
    if not isinstance(reader, FolderReader):
        index = load_index(open_folder(reader.url), manifest, number)
        return {name: index.column(name) for name in index.names}
    ids = np.arange(manifest.first_ids[number], manifest.first_ids[number + 1])
    rows = reader.describe(ids)
    values = {
        "key": rows.keys,
        "source": rows.keys,
        "image.size": reader.sizes(ids),
        "image.width": rows.widths,
        "image.height": rows.heights,
        "image.format": [FORMATS.index(name) if name else UNKNOWN_FORMAT for name in rows.formats],
        "label": rows.labels,
    }
    return index_columns(manifest.fields, values)


def list_samples(reader: Reader, shard: str | None = None) -> Iterator[ListedSample]:
    """Yield the samples of a dataset, or those of one of its shards, in order; errors as in `shard_columns`.

    Raises `ConfigError` if there is no shard of that name.
    """
    names = reader.manifest.shards.names
    if shard is not None and shard not in names:
        raise ConfigError(f"{reader.url} has no shard {shard!r}; its shards are called like {names[0]!r}")
    for number in range(len(names)) if shard is None else (names.index(shard),):
        columns = shard_columns(reader, number)
        count = len(columns["key"])
        labels = columns["label"].to_pylist() if "label" in columns else [-1] * count
        numbers = [columns[f"image.{part}"].to_pylist() for part in ("size", "width", "height", "format")]
        for key, label, size, width, height, code in zip(columns["key"].to_pylist(), labels, *numbers, strict=True):
            yield ListedSample(
                key=key,
                label=label,
                size_bytes=size,
                width=width,
                height=height,
                format=FORMAT_NAMES[code],
                shard=names[number],
            )


def find_sample(reader: Reader, key: str) -> int:
    """Return the id of the sample with a key.

    Raises:
        ConfigError: no sample has it.
        ShardError, StorageError: an index cannot be read.
    """
    if isinstance(reader, FolderReader):
        found = next((number for number, name in enumerate(reader.keys()) if name == key), -1)
    else:
        found = _find_in_indexes(reader, key)
    if found < 0:
        raise ConfigError(f"{reader.url} has no sample with the key {key!r}; 'feeder inspect --list' prints all keys")
    return found


def _find_in_indexes(reader: Reader, key: str) -> int:
    folder, manifest = open_folder(reader.url), reader.manifest
    wanted = pa.scalar(key, pa.string())
    for number in range(len(manifest.shards)):
        row = pc.index(load_index(folder, manifest, number).column("key"), wanted).as_py()
        if row >= 0:
            return int(manifest.first_ids[number]) + int(row)
    return -1


def ids_with_label(reader: Reader, label: int) -> NDArray[np.int64]:
    """Return the ids of the samples with a label, in order; errors as in `shard_columns`."""
    manifest = reader.manifest
    found = [np.zeros(0, np.int64)]
    for number in range(len(manifest.shards)):
        if isinstance(reader, FolderReader):
            ids = np.arange(manifest.first_ids[number], manifest.first_ids[number + 1])
            labels = np.array(reader.values(ids, "label"))
        else:
            labels = np.asarray(load_index(open_folder(reader.url), manifest, number).array("label"))
        found.append(np.flatnonzero(labels == label) + manifest.first_ids[number])
    return np.concatenate(found)
