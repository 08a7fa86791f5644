"""Loading what describes a dataset beside its shards: indexes and consolidated columns, each checked by its digest."""

import mmap
import os
from typing import Any

import pyarrow as pa
import xxhash

from feeder.shards.dataset.manifest import MANIFEST_NAME, Manifest, locate_manifest
from feeder.shards.errors import ShardError
from feeder.shards.formats.index import ShardIndex, open_index
from feeder.shards.storage import Folder, LocalFolder, unreadable
from feeder.shards.table import SPLITS


def find_datasets(source: str | os.PathLike[str]) -> list[str]:
    """Return the folders or URLs of the datasets at a place: itself, or its splits; empty when there is none."""
    folder, name = locate_manifest(source)
    if name != MANIFEST_NAME:
        return [folder.where(name)]
    names = [split for split in ("", *SPLITS) if _exists(folder, os.path.join(split, MANIFEST_NAME))]
    return [folder.where(name) if name else folder.url for name in names]


def _exists(folder: Folder, name: str) -> bool:
    try:
        return folder.size(name) >= 0
    except FileNotFoundError:
        return False


def check_size(folder: Folder, manifest: Manifest, number: int) -> None:
    """Raise `ShardError` if a shard is missing or has not the size that the manifest says."""
    name = manifest.shards.names[number]
    try:
        compare_size(folder.where(name), folder.size(name), manifest, number)
    except FileNotFoundError as error:
        raise missing("shard", folder.where(name)) from error


def compare_size(where: str, size: int, manifest: Manifest, number: int) -> None:
    """Raise `ShardError` if the size of a shard (bytes) is not the one that the manifest says."""
    if size != (expected := int(manifest.shards.size_bytes[number])):
        raise ShardError(
            f"shard {where} has {size} bytes, but the manifest says {expected}; copy it again from the dataset's origin"
        )


def load_index(folder: Folder, manifest: Manifest, number: int, *, mapped: bool = False) -> ShardIndex:
    """Return the index of a shard.

    Args:
        folder, manifest: of the dataset.
        number: of the shard.
        mapped: map a local file instead of reading it. A mapping costs no memory of its own, and a descriptor and one
            of the 65,530 mappings that a process may have: for a bounded number of indexes only.

    Raises:
        ShardError: the index is missing, cut, altered or of another shard.
        StorageError: the storage answered with an error.
    """
    table = manifest.shards
    name = table.index(number)
    try:
        buffer = _map(folder.where(name)) if mapped and isinstance(folder, LocalFolder) else folder.read(name)
    except FileNotFoundError as error:
        raise missing("index", folder.where(name)) from error
    return open_index(
        buffer,
        folder.where(name),
        samples=int(table.samples[number]),
        shard_digest=table.digests[number],
        index_digest=table.index_digests[number],
    )


def load_column(folder: Folder, manifest: Manifest, field: str) -> pa.ChunkedArray:
    """Return the consolidated column of a field, mapped if local; `ShardError` if it is missing, cut or altered."""
    column = manifest.columns[field]
    where = folder.where(column.file)
    try:
        buffer = _map(where) if isinstance(folder, LocalFolder) else folder.read(column.file)
    except FileNotFoundError as error:
        raise missing("column", where) from error
    if xxhash.xxh3_128_hexdigest(buffer) != column.digest:
        raise ShardError(
            f"column {where} was cut or altered: its {len(memoryview(buffer))} bytes do not have the manifest's "
            "digest; copy it again from the dataset's origin"
        )
    with pa.ipc.open_file(pa.py_buffer(buffer)) as reader:
        values = reader.read_all().column(0)
    if len(values) != manifest.num_samples:
        raise ShardError(
            f"column {where} holds {len(values)} values, but the manifest says {manifest.num_samples} samples; copy it "
            "again from the dataset's origin"
        )
    return values


def open_local(path: str) -> int:
    """Return a descriptor of a local file; FileNotFoundError passes unmapped."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def _map(path: str) -> Any:
    """Return a read-only mapping of a local file; all processes of a machine share its pages.

    If somebody cuts the file later, touching the mapping is SIGBUS. Shards are immutable, and their indexes small and
    whole when opened: that risk is taken. Images are not mapped.
    """
    descriptor = open_local(path)
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) if os.fstat(descriptor).st_size else b""
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)


def missing(what: str, where: str) -> ShardError:
    """Return the error for a file that the manifest lists and that is not there."""
    return ShardError(f"{what} {where} is missing, but the manifest lists it; copy it again from the dataset's origin")
