"""An existing dataset as a source: built by us in any format, or adopted in place.

Places come from its indexes, so nothing of its shards is read or walked. Keys, sources, fields, values, classes and
splits stay as they are; only a key that shards of ours cannot hold (adopted data may have any) is made anew by the rule
of `feeder.shards.names`. With a file of classes, labels are numbered anew by the names of their classes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeder.shards.dataset.loading import find_datasets, load_column, load_index
from feeder.shards.dataset.manifest import Manifest, locate_manifest, read_manifest
from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT, LABEL
from feeder.shards.formats.index import ShardIndex, column_type
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.names import PathTable
from feeder.shards.sources.columns import combined
from feeder.shards.sources.labels import number_classes
from feeder.shards.sources.lists import clean_key
from feeder.shards.sources.options import SourceOptions
from feeder.shards.storage import Folder
from feeder.shards.table import Places, SampleTable


def scan_dataset(source: str, options: SourceOptions) -> list[SampleTable]:
    """Return the samples of a dataset: one table a split, or a single one.

    Args:
        source: the path or URL of a dataset, of one with splits below, or of a generation of it.
        options: the file of classes counts.

    Raises:
        SourceError: there is no dataset, or it has a class that the file of classes does not name.
        ManifestError, ShardError: a manifest or an index cannot be used.
        StorageError: the storage does not give them.
    """
    found = find_datasets(source)
    if not found:
        raise SourceError(f"no dataset at {source}: expected manifest.json in it, or in train, val, …; check the path")
    known = options.classes()
    tables = []
    for url in found:
        folder, name = locate_manifest(url)
        tables.append(dataset_table(folder, read_manifest(folder, name), known))
    return tables


def dataset_table(folder: Folder, manifest: Manifest, known: tuple[str, ...] | None = None) -> SampleTable:
    """Return the samples of one dataset; `known` are the classes of a file of classes. Errors as in `scan_dataset`."""
    root = manifest.origin or folder.url
    indexes = [load_index(folder, manifest, number) for number in range(len(manifest.shards))]
    labels = np.full(manifest.num_samples, -1, np.int64)
    if "label" in manifest.fields:
        labels = np.asarray(_values(folder, manifest, indexes, "label").fill_null(-1), np.int64)
    classes = manifest.classes
    if known is not None and classes:
        number_classes(classes, known, root)
        places = np.array([*map(known.index, classes), -1])  # −1 stays −1
        labels, classes = places[labels], known
    columns = [name for name, field in manifest.fields.items() if not field.stored and name != "label"]
    return SampleTable(
        split=manifest.split,
        root=root,
        names=PathTable(_strings(indexes, "source")),
        keys=PathTable(map(clean_key, _strings(indexes, "key"))),
        labels=labels,
        classes=classes,
        fields={name: LABEL if name == "label" else field for name, field in manifest.fields.items()},
        stored={name: _places(manifest, indexes, name) for name, field in manifest.fields.items() if field.stored},
        values={name: _values(folder, manifest, indexes, name) for name in columns},
        shuffled=manifest.shuffled,
        shuffle_seed=manifest.shuffle_seed,
    )


def _strings(indexes: Iterable[ShardIndex], column: str) -> Iterable[str]:
    for index in indexes:
        yield from index.values(column)


def _values(folder: Folder, manifest: Manifest, indexes: Sequence[ShardIndex], field: str) -> pa.Array:
    """Return the values of a column field: from its consolidated file, if there is one, else from the indexes."""
    if field in manifest.columns:
        return combined(load_column(folder, manifest, field))
    kind = column_type(manifest.fields[field])
    return combined(pa.chunked_array([index.column(field) for index in indexes], kind))


def _places(manifest: Manifest, indexes: Sequence[ShardIndex], field: str) -> Places:
    """Return where a stored field lies."""
    sizes, crcs = (_numbers(indexes, f"{field}.{column}") for column in ("size", "crc32c"))
    if SHARD_FORMATS[manifest.format].files:
        return Places(files=PathTable(_strings(indexes, "path")), sizes=sizes, crcs=crcs)
    return Places(
        files=PathTable(manifest.shards.names),
        sizes=sizes,
        numbers=np.repeat(np.arange(len(indexes)), [index.num_samples for index in indexes]),
        offsets=_numbers(indexes, f"{field}.offset"),
        crcs=crcs,
    )


def _numbers(indexes: Sequence[ShardIndex], column: str) -> NDArray[np.int64]:
    """Return a column of numbers of all samples; `ABSENT` where no sample of a shard has the field."""
    return np.concatenate(
        [index.array(column) if column in index else np.full(index.num_samples, ABSENT) for index in indexes]
    ).astype(np.int64)
