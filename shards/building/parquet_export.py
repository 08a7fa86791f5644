"""Exporting datasets as the Parquet files that Hugging Face ``datasets`` and its hub read and write.

================  ==================================  ==================================================
column            type                                content
================  ==================================  ==================================================
each image field  struct<bytes: binary, path: string> the encoded image; a name with its format's extension
``label``         int64                               ``ClassLabel`` with the names of the classes; −1 for none
other fields      binary, string, int64, float64,     null where a sample has none; JSON documents as text
                  bool
``key``           string                              the sample's key
================  ==================================  ==================================================

The files are laid out as `datasets` lays them out: ``SPLIT-00000-of-00003.parquet`` of about 500 MB; row groups of at
most 100 samples and 100 MB, the most that the hub's viewer reads; images neither compressed nor in dictionaries; an
index of pages; and pages cut by their content, so that an edited dataset shares most pages with the one before. Two
keys of metadata tell of it: ``huggingface`` holds the features, ``content_defined_chunking`` how pages were cut.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.building.packing import Advance, no_progress
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.destinations.claiming import claim_destination
from feeder.shards.errors import ShardError
from feeder.shards.fields import Field
from feeder.shards.formats.tar import member_extension
from feeder.shards.reading.opening import find_datasets, open_dataset
from feeder.shards.reading.rows import Reader, Rows

FILE_BYTES = 500_000_000  # `datasets.config.MAX_SHARD_SIZE`
ROW_GROUP_BYTES = 100_000_000  # `datasets.config.MAX_ROW_GROUP_SIZE`
ROW_GROUP_SAMPLES = 100  # to get at one sample a reader fetches its row group
CHUNKING = {"min_chunk_size": 256 << 10, "max_chunk_size": 1 << 20, "norm_level": 0}  # `datasets.config`'s own

_WHOLE = "train"  # how `datasets` calls what has no splits
_PYARROW = 21  # the first that cuts pages by content
_READ_SAMPLES = 16  # at a time: a row group may end after any of them
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {
    "image": _IMAGE,
    "bytes": pa.binary(),
    "json": pa.string(),
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParquetReport:
    """What an export wrote: paths or URLs, in order; samples; and bytes of all files."""

    files: list[str]
    num_samples: int
    size_bytes: int


def export_parquet(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    file_bytes: int = FILE_BYTES,
    start: Callable[[int], Advance] | None = None,
) -> ParquetReport:
    """Export a dataset, all its splits together, checking every image against its CRC-32C.

    Args:
        source: what `feeder.shards.reading.opening.open_dataset` opens, or a folder of splits.
        dest: a folder, local or a URL of fsspec, that is empty or does not exist.
        file_bytes: of a file, about.
        start: called with the number of samples; returns what takes the progress.

    Raises:
        ConfigError: pyarrow is too old, or the features cannot be told to `datasets`.
        DestinationError: the destination is not empty, in use, or cannot be written.
        ManifestError, ShardError, SourceError, StorageError: the dataset is damaged, or cannot be read.
    """
    if int(pa.__version__.split(".")[0]) < _PYARROW:
        raise ConfigError(
            f"exporting to Parquet needs pyarrow {_PYARROW} or later, and {pa.__version__} is installed; run: "
            f"pip install --upgrade 'pyarrow>={_PYARROW}'"
        )
    readers = [open_dataset(url) for url in find_datasets(source) or [os.fspath(source)]]
    with claim_destination(dest, source) as claim:
        folder = claim.folder
        folder.remove(folder.files())  # what a killed export left
        total = sum(reader.manifest.num_samples for reader in readers)
        advance = start(total) if start else no_progress
        names = []
        for reader in readers:
            parts = _file_rows(reader.manifest, file_bytes)
            for number, (first, last) in enumerate(parts):
                name = f"{reader.manifest.split or _WHOLE}-{number:05}-of-{len(parts):05}.parquet"
                with folder.staged(name) as file:
                    _write_file(reader, first, last, file, advance)
                names.append(name)
        folder.flush()
        sizes = folder.files()
    return ParquetReport(
        files=[folder.where(name) for name in names],
        num_samples=total,
        size_bytes=sum(sizes[name] for name in names),
    )


def _file_rows(manifest: Manifest, file_bytes: int) -> list[tuple[int, int]]:
    """Return the first and last (exclusive) sample id of each file: equal shares, as `datasets` cuts them."""
    total = manifest.num_samples
    count = max(1, min(total, -(-manifest.size_bytes // file_bytes)))
    return [(number * total // count, (number + 1) * total // count) for number in range(count)]


def schema(manifest: Manifest) -> pa.Schema:
    """Return the columns of an export, with the features that `datasets` finds in their metadata.

    Raises:
        ConfigError: a class has no name of its own, which `datasets` would refuse.
    """
    fields = {name: _TYPES[field.type] for name, field in manifest.fields.items()} | {"key": pa.string()}
    features = {name: _feature(name, field, manifest) for name, field in manifest.fields.items()}
    features["key"] = {"dtype": "string", "_type": "Value"}
    info = {"info": {"features": features}}
    return pa.schema(list(fields.items()), metadata={"huggingface": json.dumps(info)})


def _feature(name: str, field: Field, manifest: Manifest) -> dict[str, Any]:
    if field.type == "image":
        return {"_type": "Image"}
    if name == "label" and manifest.classes:
        if len(set(manifest.classes)) != len(manifest.classes):
            twice = next(one for one in manifest.classes if manifest.classes.count(one) > 1)
            raise ConfigError(
                f"two classes have the name {twice!r}, which Hugging Face's ClassLabel refuses; build the dataset "
                "again with a list of other names (--classes)"
            )
        return {"names": list(manifest.classes), "_type": "ClassLabel"}
    return {"dtype": "binary" if field.type == "bytes" else str(_TYPES[field.type]), "_type": "Value"}


def _write_file(reader: Reader, first: int, last: int, file: BinaryIO, advance: Advance) -> None:
    """Write the samples first … last − 1 as one Parquet file, holding one row group in memory."""
    import pyarrow.parquet as pq

    columns = schema(reader.manifest)
    with pq.ParquetWriter(
        file, columns, use_content_defined_chunking=CHUNKING, write_page_index=True, **_column_options(columns)
    ) as writer:
        writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKING)})
        for rows in _row_groups(reader, first, last, columns):
            writer.write_table(rows, row_group_size=len(rows))
            advance(len(rows), size_bytes=rows.nbytes)


def _column_options(columns: pa.Schema) -> dict[str, Any]:
    """Return how each column is stored: images as they are, all else compressed, in dictionaries where that helps."""
    compression, dictionaries, encodings, statistics = {}, [], {}, []
    for field in columns:
        image = field.type == _IMAGE
        for leaf in [f"{field.name}.bytes", f"{field.name}.path"] if image else [field.name]:
            compression[leaf] = "none" if image else "snappy"
            if image:
                encodings[leaf] = "PLAIN"
            else:
                dictionaries.append(leaf)
                statistics.append(leaf)
    return {
        "compression": compression,
        "use_dictionary": dictionaries,
        "column_encoding": encodings,
        "write_statistics": statistics,
    }


def _row_groups(reader: Reader, first: int, last: int, columns: pa.Schema) -> Iterator[pa.Table]:
    """Yield tables of samples in order, each a row group."""
    waiting: list[tuple[Any, ...]] = []
    size_bytes = 0
    for start in range(first, last, _READ_SAMPLES):
        ids = np.arange(start, min(start + _READ_SAMPLES, last))
        for sample, size in _samples(reader, ids):
            if len(waiting) == ROW_GROUP_SAMPLES or (waiting and size_bytes + size > ROW_GROUP_BYTES):
                yield _table(waiting, columns)
                waiting, size_bytes = [], 0
            waiting.append(sample)
            size_bytes += size
    if waiting:
        yield _table(waiting, columns)


def _table(samples: list[tuple[Any, ...]], columns: pa.Schema) -> pa.Table:
    arrays = [pa.array(values, field.type) for values, field in zip(zip(*samples, strict=True), columns, strict=True)]
    return pa.table(arrays, columns)


def _samples(reader: Reader, ids: NDArray[np.int64]) -> list[tuple[tuple[Any, ...], int]]:
    """Return the values of each sample, in the order of the columns, and how many bytes of stored fields it has."""
    keys = reader.describe(ids).keys
    columns: list[list[Any]] = []
    sizes = np.zeros(len(ids), np.int64)
    for name, field in reader.manifest.fields.items():
        if not field.stored:
            columns.append(reader.values(ids, name))
            continue
        rows, stored = reader.read(ids, name)
        sizes += [len(data) for data in stored]
        if field.type == "image":
            columns.append(_images(name, field, rows, stored))
        else:
            columns.append([_stored(field, data, key, reader) for data, key in zip(stored, keys, strict=True)])
    return list(zip(zip(*columns, keys, strict=True), sizes.tolist(), strict=True))


def _images(name: str, field: Field, rows: Rows, images: list[bytes]) -> list[dict[str, Any] | None]:
    """Return the values of an image field: bytes, and a name that tells their format."""
    return [
        {"bytes": image, "path": f"{key}.{member_extension(name, field, image_format)}"} if image else None
        for key, image_format, image in zip(rows.keys, rows.formats, images, strict=True)
    ]


def _stored(field: Field, data: bytes, key: str, reader: Reader) -> bytes | str | None:
    """Return the value of a stored field that is no image; None where there is none."""
    if not data:
        return None
    if field.type == "bytes":
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ShardError(
            f"the JSON document of sample {key!r} in {reader.url} is not UTF-8 ({error}); drop the sample"
        ) from error
