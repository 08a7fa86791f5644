"""The files in the folder of a dataset: which there are, and which of them a generation of the dataset names."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator

from feeder.shards.dataset.manifest import GENERATIONS_FOLDER, MANIFEST_NAME, Manifest, parse_manifest
from feeder.shards.errors import ManifestError
from feeder.shards.storage import Folder, RemoteFolder, unreadable

_GENERATION_NAME = re.compile(rf"{GENERATIONS_FOLDER}/\d{{6}}\.json")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """An earlier generation.

    Attributes:
        name: that of its manifest, relative to the dataset.
        manifest: what it holds; None if it cannot be read.
        purged_by: the generation that took its samples away, if one did.
        problem: why it cannot be read, a sentence; empty otherwise.
    """

    name: str
    manifest: Manifest | None = None
    purged_by: int | None = None
    problem: str = ""


def list_files(folder: Folder) -> dict[str, int]:
    """Return the sizes in bytes of all files of a dataset, by their names relative to its folder, in order.

    Left out are hidden folders, and folders below that are datasets of their own, such as splits.
    """
    files = _remote_files(folder) if isinstance(folder, RemoteFolder) else _local_files(folder.url)
    others = {name.removesuffix(MANIFEST_NAME) for name in files if name.endswith("/" + MANIFEST_NAME)}
    return {
        name: files[name]
        for name in sorted(files)
        if not any(name.startswith(other) for other in others) and not f"/{name}".rpartition("/")[0].count("/.")
    }


def _remote_files(folder: RemoteFolder) -> dict[str, int]:
    filesystem = folder.filesystem()
    try:
        filesystem.invalidate_cache(folder.url)
        found = filesystem.find(folder.url, detail=True)
        root = filesystem._strip_protocol(folder.url).rstrip("/") + "/"  # noqa: SLF001 - as fsspec names what it lists
    except Exception as error:
        raise unreadable(folder.url, error) from error
    return {path.removeprefix(root): int(info["size"] or 0) for path, info in found.items()}


def _local_files(path: str) -> dict[str, int]:
    def fail(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    files = {}
    for folder, inner, names in os.walk(path, onerror=fail):
        if folder != path and MANIFEST_NAME in names:  # a dataset of its own
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            full = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # a file of another process may go at any time
                files[os.path.relpath(full, path)] = os.lstat(full).st_size
    return files


def files_in(folder: Folder, inner: Iterable[str]) -> set[str]:
    """Return the names of the files that lie directly in a dataset's folder (``""``) or in folders of it.

    Names are relative to the dataset's folder; a folder that is not there holds nothing.

    Raises:
        StorageError: the storage does not say.
    """
    found: set[str] = set()
    for name in inner:
        where = folder.where(name) if name else folder.url
        try:
            names = _remote_names(folder, where) if isinstance(folder, RemoteFolder) else _local_names(where)
        except FileNotFoundError:
            continue
        except Exception as error:
            raise unreadable(where, error) from error
        found |= {f"{name}/{one}" if name else one for one in names}
    return found


def _remote_names(folder: RemoteFolder, where: str) -> list[str]:
    filesystem = folder.filesystem()
    filesystem.invalidate_cache(where)
    return [os.path.basename(entry["name"]) for entry in filesystem.ls(where, detail=True) if entry["type"] == "file"]


def _local_names(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if not entry.is_dir()]


def named_files(manifest: Manifest) -> set[str]:
    """Return the files that a generation names, relative to the dataset's folder."""
    table = manifest.shards
    indexes = {table.index(number) for number in range(len(table))}
    shards = set(table.names) if manifest.origin is None else set()
    return indexes | shards | {column.file for column in manifest.columns.values()}


def generation_name(number: int) -> str:
    """Return the name of the manifest of an earlier generation."""
    return f"{GENERATIONS_FOLDER}/{number:06d}.json"


def read_generations(folder: Folder, files: Iterable[str]) -> Iterator[Generation]:
    """Yield the earlier generations of a dataset, the first one first.

    Args:
        folder: that of the dataset.
        files: its files, as `list_files` returns them.
    """
    for name in files:
        if _GENERATION_NAME.fullmatch(name):
            yield _read_generation(folder, name)


def _read_generation(folder: Folder, name: str) -> Generation:
    try:
        data = folder.read(name)
    except FileNotFoundError:
        return Generation(name=name, problem=f"{folder.where(name)} is missing")
    if (purged_by := _purged_by(data)) is not None:
        return Generation(name=name, purged_by=purged_by)
    try:
        manifest = parse_manifest(data, folder.where(name))
    except ManifestError as error:
        return Generation(name=name, problem=str(error))
    if name != generation_name(manifest.generation):
        expected = generation_name(manifest.generation)
        return Generation(name=name, problem=f"{folder.where(name)} is the manifest of {expected}; rename it")
    return Generation(name=name, manifest=manifest)


def _purged_by(data: bytes) -> int | None:
    """Return the generation that a note in the place of a manifest names, if these bytes are such a note."""
    if b'"purged_by"' not in data[:200]:
        return None
    with contextlib.suppress(ValueError, AttributeError):
        number = json.loads(data).get("purged_by")
        return number if type(number) is int else None
    return None
