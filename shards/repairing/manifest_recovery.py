"""A manifest that is lost or damaged, put together again from what is left of it and from the files of the dataset.

What is known, the surest first: the newest earlier generation, which its own digest proves; the lines of the damaged
manifest, one a key and one a shard, that can still be read; the shards and their indexes. If what is put together has
the dataset digest that the damaged manifest names, it is exactly the one that was lost. Otherwise it is a new manifest
of the same samples, which may differ in what files do not tell: class names, whether the data are shuffled, what the
build was told.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from feeder.shards.dataset.checked_json import FaultError
from feeder.shards.dataset.manifest import (
    DIGEST_ALGORITHM,
    GENERATIONS_FOLDER,
    MANIFEST_NAME,
    VERSION,
    Manifest,
    dataset_digest,
    encode_manifest,
    parse_manifest,
)
from feeder.shards.dataset.shard_table import ShardRecord, ShardTable, parse_shards, shard_table
from feeder.shards.errors import ManifestError
from feeder.shards.fields import Field
from feeder.shards.repairing.found_records import found_columns, found_records, newest_keys
from feeder.shards.repairing.found_shards import (
    UNKNOWN_DIGEST,
    FoundShard,
    find_shards,
    found_fields,
    newest_generation,
)
from feeder.shards.storage import Folder
from feeder.shards.table import SPLITS

_HEAD = ("format", "split", "classes", "fields", "shuffled", "shuffle_seed", "build", "origin", "columns")
_ALL = {"version", "digest", *_HEAD, "generation", "parent", "digest_algorithm", "num_samples", "size_bytes"}
_MAX_ATTEMPTS = 256  # at a digest that fits: a changed byte is in one value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredManifest:
    """A manifest in the place of one that was lost.

    Attributes:
        manifest: what it holds; of shards that are damaged, too, records that `feeder.shards.repairing.diagnosis`
            finds so.
        exact: it is the one that was lost.
        notes: what could not be known, one clause each.
    """

    manifest: Manifest
    exact: bool
    notes: tuple[str, ...] = ()


def recover_manifest(
    folder: Folder,
    files: Mapping[str, int],
    data: bytes | None,
    older: Manifest | None,
    classes: Sequence[str] | None,
) -> RecoveredManifest:
    """Return the manifest of a dataset that has none that can be read.

    Args:
        folder, files: of the dataset.
        data: the bytes of the damaged manifest; None if there is none.
        older: the newest earlier generation that can be read.
        classes: the class names, where the user gives them.

    Raises:
        ManifestError: there are no shards, or nothing tells what they hold, or they were adopted.
        StorageError: the storage does not give the files.
    """
    lines = _Lines(data or b"")
    given = None if classes is None else list(classes)
    head = _Head(lines.head, older, given)
    if (exact := _exact(lines, head, lines.shards, folder)) is not None:
        return RecoveredManifest(manifest=exact, exact=True)
    build = head.values.get("build", {})
    if head.values.get("origin") is not None or build.get("adopted"):
        raise ManifestError(
            f"the manifest of {folder.url} is lost, and it was of data adopted in place; adopt them again with "
            "'feeder index'"
        )
    shard_format, found = find_shards(folder, files)
    if not found:
        raise ManifestError(
            f"there is no manifest at {folder.where(MANIFEST_NAME)}, and no shard to make one from; check the path"
        )
    fields = _checked_fields(head.fields(), found_fields(folder, shard_format, found))
    if "image" not in fields:
        raise ManifestError(
            f"the manifest of {folder.url} is lost, and so is every index: nothing tells what its shards hold; copy one"
            " of them from the dataset's origin"
        )
    keys = newest_keys(folder, files, older)
    records = found_records(folder, shard_format, fields, found, lines.shards, keys)
    facts = _Facts(folder=folder, files=files, found=found, records=records, fields=fields, shard_format=shard_format)
    head.others += _guesses(facts)
    if (exact := _exact(lines, head, _mixed(lines.shards, records), folder)) is not None:
        return RecoveredManifest(manifest=exact, exact=True)
    return _new(facts, head, lines)


def recover_generation(folder: Folder, name: str, before: Manifest | None) -> Manifest | None:
    """Return the manifest of an earlier generation that cannot be read, if what is left of it proves to be it."""
    lines = _Lines(folder.read(name))
    return _exact(lines, _Head(lines.head, before, None), lines.shards, folder)


class _Lines:
    """What can be read of a damaged manifest.

    Attributes:
        head: the values of its keys.
        shards: the records of shards.
        digest: the dataset digest that it names; "" if that is lost.
    """

    def __init__(self, data: bytes) -> None:
        self.head: dict[str, Any] = {}
        self.shards: list[ShardRecord] = []
        for line in data.decode("utf-8", "replace").split("\n"):
            text = line.strip().rstrip(",")
            value = _json(text if text.startswith("{") else f"{{{text}}}")
            if isinstance(value, dict) and "name" in value and "index_digest" in value:
                self.shards += _shard(value)
            elif isinstance(value, dict):
                self.head |= {key: value[key] for key in value.keys() & _ALL}
        digest = self.head.get("digest")
        self.digest = digest if isinstance(digest, str) else ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shard(value: dict[str, Any]) -> Iterator[ShardRecord]:
    try:
        yield parse_shards([value], folders=True).record(0)
    except (FaultError, KeyError, TypeError):
        return


class _Head:
    """The values of a manifest's keys: for each the surest one, and others to try.

    Attributes:
        values: the surest ones; what nothing tells is left out.
        others: (key, value) of all other values there are.
    """

    def __init__(self, lines: Mapping[str, Any], older: Manifest | None, classes: list[str] | None) -> None:
        before = {} if older is None else json.loads(encode_manifest(older))
        self.older = older
        self.values: dict[str, Any] = {}
        self.others: list[tuple[str, Any]] = []
        for key in _HEAD:
            known = [source[key] for source in (lines, before) if key in source and _is_valid(key, source[key])]
            if key == "classes" and classes is not None:
                known.insert(0, classes)
            if known:
                self.values[key] = known[0]
                self.others += [(key, value) for value in known[1:] if value != known[0]]
        generation = lines.get("generation")
        follows = 0 if older is None else older.generation + 1
        self.generation = generation if type(generation) is int and follows <= generation < 10**6 else None
        self.parent = older.digest if older is not None else lines.get("parent")

    def fields(self) -> dict[str, Field]:
        """Return the fields, if anything tells them."""
        fields = self.values.get("fields", {})
        return {name: Field(type=field["type"], extension=field.get("extension")) for name, field in fields.items()}


def _is_valid(key: str, value: Any) -> bool:
    """Say whether a manifest may have a value, by making one that has it."""
    document = _document({key: value}, ShardTable([], np.zeros(0, np.int64), np.zeros(0, np.int64), [], []))
    return _parsed(document, "") is not None


def _document(values: Mapping[str, Any], shards: ShardTable) -> dict[str, Any]:
    """Return the JSON object of a manifest; values left out are the plainest."""
    return {
        "version": VERSION,
        "format": "tar",
        "split": None,
        "classes": [],
        "fields": {"image": {"type": "image"}},
        "shuffled": False,
        "shuffle_seed": None,
        "build": {},
        "origin": None,
        "generation": 0,
        "parent": None,
        "columns": {},
        **values,
        "digest_algorithm": DIGEST_ALGORITHM,
        "num_samples": int(shards.samples.sum()),
        "size_bytes": int(shards.size_bytes.sum()),
        "shards": [shards.record(number).document() for number in range(len(shards))],
    }


def _parsed(document: dict[str, Any], where: str) -> Manifest | None:
    """Return the manifest of a document, None if it is none."""
    document = document | {"digest": dataset_digest(document)}
    try:
        return parse_manifest(json.dumps(document).encode(), where)
    except (ManifestError, TypeError, ValueError, KeyError):
        return None


# The one that was lost -----------------------------------------------------------------------------------------------


def _exact(lines: _Lines, head: _Head, records: Sequence[ShardRecord], folder: Folder) -> Manifest | None:
    """Return the manifest that has the digest that is named, if what is known comes to that."""
    if not lines.digest or not records:
        return None
    table = shard_table(records)
    generation = head.generation if head.generation is not None else lines.head.get("generation", 0)
    values = head.values | {"generation": generation, "parent": head.parent}
    parents = [("parent", lines.head.get("parent")), ("parent", None)]
    for key, value in [("", None), *head.others, *parents][:_MAX_ATTEMPTS]:
        document = _document(values | ({key: value} if key else {}), table)
        if dataset_digest(document) == lines.digest:
            return _parsed(document, folder.where(MANIFEST_NAME))
    return None


def _mixed(lines: Sequence[ShardRecord], records: Sequence[ShardRecord]) -> list[ShardRecord]:
    """Return the records that files give, but of shards that are damaged those of the manifest."""
    known = {record.name: record for record in lines}
    return [
        known[record.name]
        if record.name in known and known[record.name].size_bytes != record.size_bytes
        else dataclasses.replace(record, index=_plain_index(record))
        for record in records
    ]


def _plain_index(record: ShardRecord) -> str | None:
    return record.document().get("index")


def _guesses(facts: "_Facts") -> Iterator[tuple[str, Any]]:
    """Yield what values may have been, by the files and by what builds mostly do."""
    yield "fields", _field_documents(facts.fields)
    yield "classes", _class_names(facts)[0]
    yield from (("shuffled", value) for value in (True, False))
    yield from (("shuffle_seed", value) for value in (0, None))
    yield from (("generation", value) for value in range(newest_generation(facts.files) + 2))
    yield from (("split", value) for value in (None, *SPLITS))


def _checked_fields(named: dict[str, Field], found: dict[str, Field]) -> dict[str, Field]:
    """Return the fields that a manifest names, put right where shards contradict it; those found if it names others."""
    if not named or not found:
        return named or found
    for name, field in found.items():
        if name not in named or named[name].stored != field.stored:
            return found
    return {
        name: dataclasses.replace(field, extension=found[name].extension)
        if name in found and found[name].extension is not None
        else field
        for name, field in named.items()
    }


# A new one -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the files of a dataset tell."""

    folder: Folder
    files: Mapping[str, int]
    found: Sequence[FoundShard]
    records: Sequence[ShardRecord]
    fields: Mapping[str, Field]
    shard_format: str


def _new(facts: _Facts, head: _Head, lines: _Lines) -> RecoveredManifest:
    """Return a new manifest of the shards that are there."""
    if not facts.records:
        raise ManifestError(
            f"the manifest of {facts.folder.url} is lost, and none of its {len(facts.found)} shards holds a whole "
            "sample; copy the dataset again from its origin"
        )
    values = dict(head.values)
    notes = list(_unknown(facts, lines))
    if "classes" not in values:
        values["classes"], note = _class_names(facts)
        notes += [note] if note else []
    if "split" not in values:
        name = facts.folder.url.rstrip("/").rpartition("/")[2]
        values["split"] = name if name in SPLITS else None
    if "shuffled" not in values:
        notes.append("whether its samples are in random order is not known; it is taken as not shuffled")
    values["fields"] = _field_documents(facts.fields)
    values["format"] = facts.shard_format
    values["origin"] = None
    table = shard_table(facts.records)
    listed = {one["file"] for one in head.values.get("columns", {}).values()}
    columns, gone = found_columns(facts.folder, facts.files, facts.found, facts.records, head.older, listed)
    if gone:
        notes.append(f"the consolidated columns {', '.join(gone)} are lost or of other samples")
    values["columns"] = {name: dataclasses.asdict(column) for name, column in columns.items()}
    for name in set(facts.fields) - _held(facts) - set(columns):
        if not facts.fields[name].stored:
            del values["fields"][name]
            notes.append(f"the values of {name} are lost")
    values["generation"], values["parent"] = _place(facts, head)
    manifest = _parsed(_document(values, table), facts.folder.where(MANIFEST_NAME))
    if manifest is None:
        raise ManifestError(
            f"the manifest of {facts.folder.url} is lost, and what is left does not come to a new one; copy it from"
            " the dataset's origin"
        )
    return RecoveredManifest(manifest=manifest, exact=False, notes=tuple(notes))


def _unknown(facts: _Facts, lines: _Lines) -> Iterator[str]:
    """Yield what cannot be known of the samples, one clause each."""
    listed = {record.name for record in lines.shards}
    blind = [shard.name for shard in facts.found if shard.index is None and shard.name not in listed]
    damaged = {record.name: record.digest == UNKNOWN_DIGEST for record in facts.records}
    if uncounted := [name for name in blind if damaged.get(name, True)]:
        yield f"how many samples were in {', '.join(uncounted)} is not known"
    if facts.shard_format == "tar" and (unchecked := [name for name in blind if not damaged.get(name, True)]):
        yield f"nothing is left to check the bytes of {', '.join(unchecked)} against"
    if any(name.startswith(GENERATIONS_FOLDER) for name in facts.files):
        yield "samples that were dropped are back where neither an index nor a column tells of it"


def _place(facts: _Facts, head: _Head) -> tuple[int, str | None]:
    """Return the number of the generation, and the digest of the one before."""
    if head.generation is not None:
        generation = head.generation
    elif head.older is not None:
        generation = head.older.generation + 1
    else:
        generation = newest_generation(record.name for record in facts.records)
    follows = head.older is not None and head.older.generation + 1 == generation
    return generation, head.older.digest if head.older is not None and follows else None


def _field_documents(fields: Mapping[str, Field]) -> dict[str, dict[str, str]]:
    return {
        name: {"type": field.type} if field.extension is None else {"type": field.type, "extension": field.extension}
        for name, field in fields.items()
    }


def _held(facts: _Facts) -> set[str]:
    """Return the names of fields that indexes hold; all of them where no index is left."""
    names = {name for shard in facts.found if shard.index is not None for name in shard.index.names}
    return names or set(facts.fields)


def _class_names(facts: _Facts) -> tuple[list[str], str]:
    """Return class names by what indexes tell: the folders of the sources, or numbers; and what is to be said of it."""
    if "label" not in facts.fields:
        return [], ""
    folders: dict[int, set[str]] = {}
    most = -1
    for shard in facts.found:
        if shard.index is None or shard.index.labels is None:
            continue
        for label, source in zip(shard.index.values("label"), shard.index.values("source"), strict=True):
            if label >= 0:
                folders.setdefault(label, set()).add(source.partition("/")[0] if "/" in source else "")
            most = max(most, label)
    names = {label: next(iter(one)) for label, one in folders.items() if len(one) == 1 and one != {""}}
    if names.keys() == folders.keys() and len(set(names.values())) == len(names):
        known = [names.get(label, f"class-{label}") for label in range(most + 1)]
        return known, "its class names are lost, and the folders of the sources stand for them (or give --classes FILE)"
    return [str(label) for label in range(most + 1)], "its class names are lost; give them with --classes FILE"
