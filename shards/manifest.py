"""The manifest: the list of shards, and the commit record of a dataset.

``manifest.json``, version 1, is one JSON object::

    {
    "version": 1,
    "digest": "…",                      blake2b of the rest in canonical form: the dataset digest
    "format": "tar",                    or "arrow"
    "split": "train",                   null when the source had no splits
    "classes": ["cat", "dog"],          label 0, 1, …; empty when there are no labels
    "fields": {"image": {"type": "image"}, "label": {"type": "int64", "extension": "cls"}},
    "shuffled": true,
    "shuffle_seed": 0,                  null when not shuffled, or when nobody knows
    "build": {"shard_bytes": 67108864, "shard_samples": null, "max_pixels": 178956970},
    "digest_algorithm": "xxh3-128",     of the shards and their indexes
    "num_samples": 600,
    "size_bytes": 67635200,
    "shards": [
    {"name": "shard-000000.tar", "samples": 571, "size_bytes": 67097600, "digest": "…", "index_digest": "…"},
    …
    ]
    }

It holds no time, no host and no absolute path: the same input makes the same manifest. In memory the shards are columns
(NumPy), so that 80,000 of them load in a fraction of a second and nothing is ever kept per sample.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import ManifestError
from feeder.shards.formats import SHARD_FORMATS
from feeder.shards.sources import SPLITS
from feeder.shards.storage import Folder, LocalFolder, flush_folder, open_folder, staged_file

MANIFEST_NAME = "manifest.json"
MARKER_NAME = ".building"  # stands in a destination, locked, from the start of a build until its manifests are written
VERSION = 1
DIGEST_ALGORITHM = "xxh3-128"

_DIGEST_BYTES = 16  # 128 bits: no two datasets meet by accident, and people can still compare it by eye
_HEX_DIGEST = re.compile("[0-9a-f]{32}")
_MAX_COUNT = 2**47  # of samples and bytes of one shard: sums over 65,536 of them stay within 64 bits
_SHARD_KEYS = ("name", "samples", "size_bytes", "digest", "index_digest")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of every sample.

    Attributes:
        type: ``"image"``, or the type of a scalar, such as ``"int64"``.
        extension: that of the field's tar member; None where each image has the one of its format, and where the field
            has no member of its own.
    """

    type: str
    extension: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ShardTable:
    """The shards of a dataset as columns, in manifest order."""

    names: list[str]
    samples: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    digests: list[str]
    index_digests: list[str]

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """A dataset: what it holds and the shards it is made of. Two are equal if their digests are.

    Attributes:
        digest: the dataset digest, hexadecimal; two datasets with one digest have the same bytes.
        format: ``"tar"``, ``"arrow"``, or ``"folder"`` for an image folder adopted in memory.
        classes: the class names in order of their labels.
        split: the name of the split, or None.
        fields: what a sample holds, by name.
        shuffled: whether samples lie in random order over all shards.
        shuffle_seed: the seed of that order, if known.
        build: the settings of the build that decided its bytes.
        shards: the shards as columns.
    """

    digest: str
    format: str
    classes: tuple[str, ...]
    split: str | None
    fields: Mapping[str, Field]
    shuffled: bool
    shuffle_seed: int | None
    build: Mapping[str, Any]
    shards: ShardTable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def first_ids(self) -> NDArray[np.int64]:
        """int64[S+1]: shard s holds the sample ids first_ids[s] … first_ids[s+1] − 1."""
        ids = np.zeros(len(self.shards) + 1, np.int64)
        np.cumsum(self.shards.samples, out=ids[1:])
        return ids

    @functools.cached_property
    def num_samples(self) -> int:
        """The number of samples."""
        return int(self.first_ids[-1])

    @functools.cached_property
    def size_bytes(self) -> int:
        """The bytes of all shards, without their indexes."""
        return int(self.shards.size_bytes.sum())


def new_manifest(
    *,
    shards: ShardTable,
    classes: tuple[str, ...] = (),
    split: str | None = None,
    fields: Mapping[str, Field],
    shuffle_seed: int | None = None,
    shuffled: bool = False,
    build: Mapping[str, Any] | None = None,
    shard_format: str = "tar",
) -> Manifest:
    """Return the manifest of these shards, with its digest."""
    manifest = Manifest(
        digest="",
        format=shard_format,
        classes=classes,
        split=split,
        fields=dict(fields),
        shuffled=shuffled,
        shuffle_seed=shuffle_seed,
        build=dict(build or {}),
        shards=shards,
    )
    return dataclasses.replace(manifest, digest=dataset_digest(_document(manifest)))


def dataset_digest(document: Mapping[str, Any]) -> str:
    """Return the dataset digest of a manifest document: blake2b of its canonical JSON, the key ``digest`` left out.

    Canonical means sorted keys, no spaces, and characters beyond ASCII escaped.
    """
    rest = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=_DIGEST_BYTES).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of ``manifest.json``: one line a key, one line a shard."""
    document = _document(manifest)
    shards = ",\n".join(json.dumps(shard) for shard in document.pop("shards"))
    head = {"version": document.pop("version"), "digest": manifest.digest, **document}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    return f'{{\n{lines},\n"shards": [\n{shards}\n]\n}}\n'.encode("ascii")


def save_manifest(manifest: Manifest, folder: str | os.PathLike[str]) -> None:
    """Write ``manifest.json`` into a local folder so that it is there whole or not at all, and durable."""
    with staged_file(Path(folder, MANIFEST_NAME)) as file:
        file.write(encode_manifest(manifest))
    flush_folder(folder)


def load_manifest(source: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of the dataset at a path or URL (of the dataset, or of the manifest itself).

    Raises:
        ManifestError: it is missing, cut, altered, of another version, or contradicts itself.
        StorageError: the storage would not give it.
    """
    return read_manifest(dataset_folder(source))


def dataset_folder(source: str | os.PathLike[str]) -> Folder:
    """Return the folder of the dataset at a path or URL, which may also be that of its manifest."""
    url = os.fspath(source)
    if url.endswith("/" + MANIFEST_NAME) or url == MANIFEST_NAME:
        url = url[: -len(MANIFEST_NAME)] or "."
    return open_folder(url)


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest of the dataset in a folder; errors as in `load_manifest`."""
    return parse_manifest(read_manifest_bytes(folder), folder.where(MANIFEST_NAME))


def read_manifest_bytes(folder: Folder) -> bytes:
    """Return the bytes of the manifest in a folder, unread; until its build has finished, there is none."""
    where = folder.where(MANIFEST_NAME)
    if isinstance(folder, LocalFolder):
        _refuse_unfinished(folder.url)
    try:
        return folder.read(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise ManifestError(
            f"no manifest at {where}: expected a dataset made by 'feeder build'; check the path, or build it again "
            "if its build was interrupted"
        ) from error


def _refuse_unfinished(path: str) -> None:
    """Raise `ManifestError` if a folder, or the one that it is a split of, is the destination of a build."""
    above, name = os.path.split(path)
    for folder in (path, above) if name in SPLITS else (path,):
        if os.path.exists(os.path.join(folder, MARKER_NAME)):
            raise ManifestError(
                f"{folder} is the destination of a build that has not finished; wait for it, or if it was interrupted, "
                "run the same 'feeder build' again"
            )


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Return the manifest that the bytes of a ``manifest.json`` hold; `where` is named in errors."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # recursion: thousands of brackets
        raise ManifestError(
            f"{where} is not whole JSON ({error}): got {len(data)} bytes; copy the dataset again from its origin, or "
            "build it again"
        ) from error
    if not isinstance(document, dict):
        raise ManifestError(f"{where} holds a JSON {type(document).__name__}, expected an object; is it a manifest?")
    try:
        return _from_document(document)
    except _FaultError as fault:
        raise ManifestError(f"{fault.what} in {where}{fault.next_step}") from fault


class _FaultError(Exception):
    """What is wrong inside a manifest, before the place of the manifest is known."""

    def __init__(
        self, what: str, next_step: str = "; copy the dataset again from its origin, or build it again"
    ) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step


def _document(manifest: Manifest) -> dict[str, Any]:
    """Return the JSON object of a manifest, without its digest, in the order in which it is written."""
    table = manifest.shards
    columns = (table.names, table.samples.tolist(), table.size_bytes.tolist(), table.digests, table.index_digests)
    fields = {
        name: {"type": field.type} if field.extension is None else {"type": field.type, "extension": field.extension}
        for name, field in manifest.fields.items()
    }
    return {
        "version": VERSION,
        "format": manifest.format,
        "split": manifest.split,
        "classes": list(manifest.classes),
        "fields": fields,
        "shuffled": manifest.shuffled,
        "shuffle_seed": manifest.shuffle_seed,
        "build": dict(manifest.build),
        "digest_algorithm": DIGEST_ALGORITHM,
        "num_samples": manifest.num_samples,
        "size_bytes": manifest.size_bytes,
        "shards": [dict(zip(_SHARD_KEYS, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def _from_document(document: dict[str, Any]) -> Manifest:
    version = _required(document, int, "version")
    if version > VERSION:
        raise _FaultError(
            f"version {version} is newer than version {VERSION}, the latest this program reads,",
            "; upgrade shardfeed",
        )
    if version < 1:
        raise _FaultError(f"version is {version}, expected {VERSION},")
    stored = _required(document, str, "digest")
    computed = dataset_digest(document)
    manifest = Manifest(
        digest=computed,
        format=_one_of(document, "format", tuple(SHARD_FORMATS)),
        classes=_classes(document),
        split=_optional(document, str, "split"),
        fields=_fields(document),
        shuffled=_required(document, bool, "shuffled"),
        shuffle_seed=_optional(document, int, "shuffle_seed"),
        build=_required(document, dict, "build"),
        shards=_shard_table(_required(document, list, "shards")),
    )
    _one_of(document, "digest_algorithm", (DIGEST_ALGORITHM,))
    for name, actual in (("num_samples", manifest.num_samples), ("size_bytes", manifest.size_bytes)):
        if (stated := _required(document, int, name)) != actual:
            raise _FaultError(f"{name} is {stated}, but the shards sum to {actual},")
    if stored != computed:
        raise _FaultError(f"the digest is {stored}, but the content has {computed}: it was altered after the build,")
    return manifest


def _required(entry: dict[str, Any], kind: type, name: str, at: str = "") -> Any:
    """Return entry[name], which must be there and of a type; bool does not pass as int."""
    if name not in entry:
        raise _FaultError(f"missing value at {at}{name}")
    value = entry[name]
    if type(value) is not kind:
        got = "null" if value is None else type(value).__name__
        raise _FaultError(f"{at}{name} is {got}, expected {kind.__name__},")
    return value


def _optional(entry: dict[str, Any], kind: type, name: str, at: str = "") -> Any:
    """Return entry[name], which may be missing or null, else must be of a type."""
    return None if entry.get(name) is None else _required(entry, kind, name, at)


def _one_of(entry: dict[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = _required(entry, str, name)
    if value not in allowed:
        raise _FaultError(
            f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))},", "; upgrade shardfeed"
        )
    return str(value)


def _classes(document: dict[str, Any]) -> tuple[str, ...]:
    classes = _required(document, list, "classes")
    for number, name in enumerate(classes):
        if type(name) is not str:
            raise _FaultError(f"classes[{number}] is {type(name).__name__}, expected str,")
    if len(set(classes)) != len(classes):
        raise _FaultError("classes holds a name twice,")
    return tuple(classes)


def _fields(document: dict[str, Any]) -> dict[str, Field]:
    fields = {}
    for name, entry in _required(document, dict, "fields").items():
        if type(entry) is not dict:
            raise _FaultError(f"fields.{name} is {type(entry).__name__}, expected an object,")
        at = f"fields.{name}."
        fields[name] = Field(type=_required(entry, str, "type", at), extension=_optional(entry, str, "extension", at))
    return fields


def _shard_table(shards: list[Any]) -> ShardTable:
    """Return the columns of the shard records.

    Checks run over whole columns: quick. Only when one fails, the fault is looked for record by record.
    """
    try:
        names, samples, sizes, digests, index_digests = ([shard[key] for shard in shards] for key in _SHARD_KEYS)
    except (KeyError, TypeError, IndexError):
        _find_fault(shards)
        raise
    texts = (names, digests, index_digests)
    numbers = (samples, sizes)
    well_formed = (
        all(set(map(type, column)) <= {str} for column in texts)
        and all(set(map(type, column)) <= {int} for column in numbers)
        and all(min(column, default=1) >= 1 and max(column, default=1) < _MAX_COUNT for column in numbers)
        and all(map(_HEX_DIGEST.fullmatch, digests + index_digests))
        and all(map(_is_plain_name, names))
        and len(set(names)) == len(names)
    )
    if not well_formed:
        _find_fault(shards)
    return ShardTable(names, np.array(samples, np.int64), np.array(sizes, np.int64), digests, index_digests)


def _find_fault(shards: list[Any]) -> None:
    """Raise the fault of the first shard record that has one."""
    seen: set[str] = set()
    for number, shard in enumerate(shards):
        at = f"shards[{number}]."
        if type(shard) is not dict:
            raise _FaultError(f"shards[{number}] is {type(shard).__name__}, expected an object,")
        name = _required(shard, str, "name", at)
        if not _is_plain_name(name):
            raise _FaultError(f"{at}name is {name!r}, expected the name of a file beside the manifest,")
        if name in seen:
            raise _FaultError(f"{at}name is {name!r}, which an earlier shard has,")
        seen.add(name)
        for key in ("samples", "size_bytes"):
            if not 1 <= _required(shard, int, key, at) < _MAX_COUNT:
                raise _FaultError(f"{at}{key} is {shard[key]}, expected a positive count,")
        for key in ("digest", "index_digest"):
            if not _HEX_DIGEST.fullmatch(_required(shard, str, key, at)):
                raise _FaultError(f"{at}{key} is {shard[key]!r}, expected 32 hexadecimal digits,")


def _is_plain_name(name: str) -> bool:
    """Say whether a shard's name stays inside the dataset: no folders, nothing hidden, no control characters."""
    return bool(name) and name[0] != "." and "/" not in name and "\\" not in name and name.isprintable()
