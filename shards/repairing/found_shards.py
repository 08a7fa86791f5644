"""The shards of ours in a folder whose manifest is lost: which there are, what they hold, and their records.

Of shards with one number the newest counts: a later generation put it in the place of the others. The index of a shard
names the digest of its shard, so that the two find each other whatever they are called.
"""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import xxhash

from feeder.shards.archives.member_fields import member_fields
from feeder.shards.archives.members import split_name, walk_samples
from feeder.shards.errors import ShardError, SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.formats.index import SCALARS, ShardIndex, index_name, parse_index
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.formats.tar import BLOCK
from feeder.shards.storage import Folder

_ASKED_SHARDS, _ASKED_ROWS = 8, 3  # headers that tell extensions
UNKNOWN_DIGEST = "0" * 32  # of no file: what is held against it counts as damaged

_SHARD = re.compile(rf"shard-(\d{{6,}})(?:\.g(\d{{6}}))?\.({'|'.join(WRITTEN_FORMATS)})")
_INDEX = re.compile(r"shard-(\d{6,})(?:\.g(\d{6}))?\.idx\.arrow")
_TYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundShard:
    """A shard and its index.

    Attributes:
        name: of the shard.
        index_name, index: of its index; None where none is there that can be read.
        index_digest, shard_digest: of the bytes of the index, and the digest of its shard that it names.
        forgot: an index of a later generation is there and cannot be read: it knew which samples were dropped.
    """

    name: str
    index_name: str | None = None
    index: ShardIndex | None = None
    index_digest: str = UNKNOWN_DIGEST
    shard_digest: str = UNKNOWN_DIGEST
    forgot: bool = False


def shard_number(name: str) -> int:
    """Return the number in the name of a shard; −1 where it has none."""
    match = _SHARD.fullmatch(name)
    return int(match[1]) if match else -1


def newest_generation(files: Iterable[str]) -> int:
    """Return the highest generation that names of shards and indexes tell of."""
    found = (match for name in files if (match := _SHARD.fullmatch(name) or _INDEX.fullmatch(name)))
    return max((int(match[2] or 0) for match in found), default=0)


def find_shards(folder: Folder, files: Iterable[str]) -> tuple[str, list[FoundShard]]:
    """Return the format of the shards in a folder, and the shards by their numbers; "" where there are none.

    Raises:
        StorageError: an index cannot be read.
    """
    newest: dict[tuple[str, int], tuple[int, str]] = {}
    indexes: dict[int, list[tuple[int, str]]] = {}
    for name in files:
        if match := _SHARD.fullmatch(name):
            place = match[3], int(match[1])
            newest[place] = max(newest.get(place, (-1, "")), (int(match[2] or 0), name))
        elif match := _INDEX.fullmatch(name):
            indexes.setdefault(int(match[1]), []).append((int(match[2] or 0), name))
    formats = sorted({shard_format for shard_format, _ in newest}, key=lambda one: -sum(f == one for f, _ in newest))
    if not formats:
        return "", []
    found = {number: name for (shard_format, number), (_, name) in newest.items() if shard_format == formats[0]}
    for number in indexes.keys() - found.keys():
        found[number] = f"{max(indexes[number])[1].removesuffix(index_name(''))}.{formats[0]}"
    return formats[0], [
        _with_index(folder, found[number], sorted(indexes.get(number, []), reverse=True)) for number in sorted(found)
    ]


def _with_index(folder: Folder, name: str, candidates: list[tuple[int, str]]) -> FoundShard:
    """Return a shard with the first of some indexes that is of it; else with the one called as it is."""
    own = index_name(name)
    match = _SHARD.fullmatch(name)
    generation = int(match[2] or 0) if match else 0
    forgot = False
    readable: list[FoundShard] = []
    for number, candidate in candidates:
        data = folder.read(candidate)
        try:
            index, shard_digest = parse_index(data, folder.where(candidate))
        except ShardError:
            forgot = forgot or (number > generation and not readable)
            continue
        readable.append(
            FoundShard(
                name=name,
                index_name=candidate,
                index=index,
                index_digest=xxhash.xxh3_128_hexdigest(data),
                shard_digest=shard_digest,
            )
        )
    if forgot or not readable:
        return FoundShard(name=name, forgot=forgot)
    called = next((one for one in readable if one.index_name == own), readable[0])
    if len({one.shard_digest for one in readable}) == 1:
        return readable[0]
    try:
        digest = SequentialShard(folder, name).finish()
    except FileNotFoundError:
        return called
    return next((one for one in readable if one.shard_digest == digest), called)


# Fields --------------------------------------------------------------------------------------------------------------


def found_fields(folder: Folder, shard_format: str, shards: Iterable[FoundShard]) -> dict[str, Field]:
    """Return the fields of shards, as their indexes tell, or without any index the members of a tar; or none."""
    listed = list(shards)
    indexed = [shard for shard in listed if shard.index is not None]
    if indexed and indexed[0].index is not None:
        extensions = _member_extensions(folder, indexed[:_ASKED_SHARDS]) if shard_format == "tar" else {}
        return _fields_of(indexed[0].index, extensions)
    if shard_format == "tar":
        for shard in listed:
            try:
                samples = walk_samples(folder.where(shard.name), keep_damaged=True)
            except SourceError:
                continue
            if len(samples):
                found = {one.name: one.field for one in member_fields(samples.extensions)}
                return found | ({"label": LABEL} if "label" in found else {})
    return {}


def _fields_of(index: ShardIndex, extensions: Mapping[str, str]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for column in index.names:
        if column.endswith(".offset"):
            field = column.removesuffix(".offset")
            if f"{field}.format" in index:
                fields[field] = Field(type="image")
            elif field not in index and field != SCALARS:
                extension = extensions.get(field)
                fields[field] = Field(type="json" if extension == "json" else "bytes", extension=extension)
    for column in index.names:
        kind = _TYPES.get(index.column(column).type)
        if column == "label":
            fields[column] = LABEL
        elif kind is not None and column not in ("key", "source") and not _describes(column, fields):
            fields[column] = Field(type=kind, extension=extensions.get(column) if kind == "string" else None)
    return fields


def _describes(column: str, fields: Mapping[str, Field]) -> bool:
    """Say whether a column tells of a field or a member, and is none itself."""
    field, _, part = column.rpartition(".")
    return part in ("offset", "size") and bool(field)


def _member_extensions(folder: Folder, shards: Iterable[FoundShard]) -> dict[str, str]:
    """Return the extensions of members of tars, by field: those of most of some headers, as any may be damaged."""
    found: dict[str, Counter[str]] = {}
    for shard in shards:
        if shard.index is not None:
            with contextlib.suppress(FileNotFoundError):
                for field, extension in _headers(folder, shard.name, shard.index):
                    found.setdefault(field, Counter())[extension] += 1
    return {field: counts.most_common(1)[0][0] for field, counts in found.items()}


def _headers(folder: Folder, name: str, index: ShardIndex) -> Iterator[tuple[str, str]]:
    """Yield field and extension by the headers of a few samples of a tar."""
    size_bytes = folder.size(name)
    for field in index.stored_fields:
        present = np.flatnonzero(np.asarray(index.stored(field).sizes) >= 0)
        for row in present[:_ASKED_ROWS].tolist():
            start = index.stored(field).offsets[row] - BLOCK
            if 0 <= start < size_bytes:
                header = folder.read_ranges([(name, start, BLOCK)])[0]
                parts = split_name(header[:100].partition(b"\0")[0].decode("ascii", "replace"))
                if parts is not None and parts[0] == index.keys[row]:
                    yield field, parts[1]
