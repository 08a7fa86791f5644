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
    "origin": null,                     where the shards lie, when not beside the manifest: data adopted in place
    "generation": 0,                    1, 2, … after samples or columns were added or removed
    "parent": null,                     the dataset digest of the generation before
    "columns": {},                      {"label": {"file": "columns/label.1f00ab42.arrow", "digest": "…"}}
    "digest_algorithm": "xxh3-128",     of the shards and their indexes
    "num_samples": 600,
    "size_bytes": 67635200,
    "shards": [
    {"name": "shard-000000.tar", "samples": 571, "size_bytes": 67097600, "digest": "…", "index_digest": "…"},
    …
    ]
    }

A record of a shard may say more (`feeder.shards.dataset.shard_table`). A manifest that a build writes holds no time,
no host and no absolute path: the same input makes the same manifest. In memory the shards are columns (NumPy), so that
80,000 of them load in a fraction of a second and nothing is ever kept per sample.

``manifest.json`` is the newest generation; the manifests of earlier ones stand in ``generations/000000.json`` and so
on, and open like the dataset itself. Files that a generation names never change, so a reader keeps the one it opened.
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

from feeder.shards.dataset.checked_json import FaultError, objects, one_of, optional, required
from feeder.shards.dataset.shard_table import SegmentTable, ShardTable, documents, is_plain_name, parse_shards
from feeder.shards.errors import ManifestError
from feeder.shards.fields import TYPES, Field
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.storage import Folder, LocalFolder, flush_folder, open_folder, staged_file
from feeder.shards.table import SPLITS

MANIFEST_NAME = "manifest.json"
GENERATIONS_FOLDER = "generations"
COLUMNS_FOLDER = "columns"
PURGED_KEY = "purged_by"  # all that is left of a generation whose samples were removed for good: by which one
MARKER_NAME = ".building"  # stands in a destination, locked, from the start of a build until its manifests are written
VERSION = 1
DIGEST_ALGORITHM = "xxh3-128"

_GENERATION_NAME = re.compile(rf"(?:(.*)/)?({GENERATIONS_FOLDER}/\d{{6}}\.json)", re.DOTALL)
_HEX_DIGEST = re.compile("[0-9a-f]{32}")
_DIGEST_BYTES = 16  # 128 bits: no two datasets meet by accident, and people can still compare it by eye


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFile:
    """The file that holds one field of all samples, in sample order: its name, and its xxh3-128 digest."""

    file: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """A dataset: what it holds and the shards it is made of. Two are equal if their digests are.

    Attributes:
        digest: the dataset digest, hexadecimal; two datasets with one digest have the same bytes.
        format: a name in `feeder.shards.formats.known.SHARD_FORMATS`.
        classes: the class names in order of their labels.
        split: the name of the split, or None.
        fields: what a sample holds, by name.
        shuffled: whether samples lie in random order over all shards.
        shuffle_seed: the seed of that order, if known.
        build: the settings of the build that decided its bytes; ``"adopted"`` is true where shards were not written by
            a build of ours.
        shards: the shards as columns.
        origin: the absolute path or URL of the folder in which shards lie; None: beside the manifest.
        generation: how many changes the dataset has seen since it was built.
        parent: the digest of the generation before, or None.
        columns: the files that hold a field of all samples, by field.
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
    origin: str | None = None
    generation: int = 0
    parent: str | None = None
    columns: Mapping[str, ColumnFile] = dataclasses.field(default_factory=dict)

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

    @property
    def adopted(self) -> bool:
        """Whether the shards were not written by a build of ours: names and layout of their members are any."""
        return bool(self.build.get("adopted"))

    @functools.cached_property
    def segments(self) -> SegmentTable:
        """What orders permute: whole shards, and the segments of those over 128 MiB."""
        return self.shards.segment_table()

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
    fields: Mapping[str, Field],
    classes: tuple[str, ...] = (),
    split: str | None = None,
    shuffle_seed: int | None = None,
    shuffled: bool = False,
    build: Mapping[str, Any] | None = None,
    shard_format: str = "tar",
    origin: str | None = None,
    columns: Mapping[str, ColumnFile] | None = None,
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
        origin=origin,
        columns=dict(columns or {}),
    )
    return sealed(manifest)


def sealed(manifest: Manifest) -> Manifest:
    """Return a manifest with the digest that its content has."""
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
    return read_manifest(*locate_manifest(source))


def locate_manifest(source: str | os.PathLike[str]) -> tuple[Folder, str]:
    """Return the folder of a dataset and the name of its manifest there.

    Args:
        source: the path or URL of the dataset, of its manifest, or of an earlier generation of it.
    """
    url = os.fspath(source)
    if older := _GENERATION_NAME.fullmatch(url):
        return open_folder(older[1] if older[1] is not None else "."), older[2]
    if url.endswith("/" + MANIFEST_NAME) or url == MANIFEST_NAME:
        url = url[: -len(MANIFEST_NAME)] or "."
    return open_folder(url), MANIFEST_NAME


def read_manifest(folder: Folder, name: str = MANIFEST_NAME) -> Manifest:
    """Read the manifest of the dataset in a folder, or that of an earlier generation; errors as in `load_manifest`."""
    return parse_manifest(read_manifest_bytes(folder, name), folder.where(name))


def read_manifest_bytes(folder: Folder, name: str = MANIFEST_NAME) -> bytes:
    """Return the bytes of a manifest, unread; until its build has finished, there is none."""
    where = folder.where(name)
    try:
        return folder.read(name)
    except FileNotFoundError as error:
        if isinstance(folder, LocalFolder) and name == MANIFEST_NAME:
            _refuse_unfinished(folder.url)
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
    if PURGED_KEY in document:
        raise ManifestError(
            f"{where} is gone: generation {document[PURGED_KEY]} removed samples of it for good; open the dataset "
            "itself, or a later generation"
        )
    try:
        return _from_document(document)
    except FaultError as fault:
        raise ManifestError(f"{fault.what} in {where}{fault.next_step}") from fault


def _document(manifest: Manifest) -> dict[str, Any]:
    """Return the JSON object of a manifest, without its digest, in the order in which it is written."""
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
        "origin": manifest.origin,
        "generation": manifest.generation,
        "parent": manifest.parent,
        "columns": {name: dataclasses.asdict(column) for name, column in sorted(manifest.columns.items())},
        "digest_algorithm": DIGEST_ALGORITHM,
        "num_samples": manifest.num_samples,
        "size_bytes": manifest.size_bytes,
        "shards": documents(manifest.shards),
    }


def _from_document(document: dict[str, Any]) -> Manifest:
    version = required(document, int, "version")
    if version > VERSION:
        raise FaultError(
            f"version {version} is newer than version {VERSION}, the latest this program reads,",
            "; upgrade shardfeed",
        )
    if version < 1:
        raise FaultError(f"version is {version}, expected {VERSION},")
    stored = required(document, str, "digest")
    computed = dataset_digest(document)
    build = required(document, dict, "build")
    adopted = bool(build.get("adopted"))
    manifest = Manifest(
        digest=computed,
        format=one_of(document, "format", tuple(SHARD_FORMATS)),
        classes=_classes(document),
        split=optional(document, str, "split"),
        fields=_fields(document),
        shuffled=required(document, bool, "shuffled"),
        shuffle_seed=optional(document, int, "shuffle_seed"),
        build=build,
        shards=parse_shards(required(document, list, "shards"), folders=adopted),
        origin=optional(document, str, "origin"),
        generation=_generation(document),
        parent=optional(document, str, "parent"),
        columns=_columns(document),
    )
    one_of(document, "digest_algorithm", (DIGEST_ALGORITHM,))
    for name, actual in (("num_samples", manifest.num_samples), ("size_bytes", manifest.size_bytes)):
        if (stated := required(document, int, name)) != actual:
            raise FaultError(f"{name} is {stated}, but the shards sum to {actual},")
    if stored != computed:
        raise FaultError(f"the digest is {stored}, but the content has {computed}: it was altered after the build,")
    return manifest


def _classes(document: dict[str, Any]) -> tuple[str, ...]:
    classes = required(document, list, "classes")
    for number, name in enumerate(classes):
        if type(name) is not str:
            raise FaultError(f"classes[{number}] is {type(name).__name__}, expected str,")
    if len(set(classes)) != len(classes):
        raise FaultError("classes holds a name twice,")
    return tuple(classes)


def _fields(document: dict[str, Any]) -> dict[str, Field]:
    fields = {}
    for name, entry, at in objects(document, "fields"):
        field = Field(type=one_of(entry, "type", TYPES, at), extension=optional(entry, str, "extension", at))
        # Files are named by both: those of columns, those of members that are taken out of a shard.
        if not is_plain_name(name) or not is_plain_name(field.extension or "bin"):
            raise FaultError(f"fields.{name} has a name or an extension that leads out of a folder,")
        fields[name] = field
    if "image" not in fields or fields["image"].type != "image":
        raise FaultError("fields lacks image, which every sample has,")
    return fields


def _generation(document: dict[str, Any]) -> int:
    generation = required(document, int, "generation")
    if not 0 <= generation < 1_000_000:
        raise FaultError(f"generation is {generation}, expected a number from 0 to 999999,")
    return int(generation)


def _columns(document: dict[str, Any]) -> dict[str, ColumnFile]:
    columns = {}
    for name, entry, at in objects(document, "columns"):
        file, digest = required(entry, str, "file", at), required(entry, str, "digest", at)
        if not is_plain_name(name) or not is_plain_name(file, folders=True):
            raise FaultError(f"{at}file is {file!r}, expected the name of a file in {COLUMNS_FOLDER}/,")
        if not _HEX_DIGEST.fullmatch(digest):
            raise FaultError(f"{at}digest is {digest!r}, expected 32 hexadecimal digits,")
        columns[name] = ColumnFile(file=file, digest=digest)
    return columns
