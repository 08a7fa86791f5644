"""The index of a shard of our own, made again from the shard: all of it that the shard holds.

An Arrow shard holds its whole index. A tar shard holds all but the column ``source``, and columns of scalars where a
field takes the member that these would share (`feeder.shards.formats.tar`). Of a shard that is cut or damaged, what
stands before the damage is found: whole record batches, and whole samples of a tar but the last, which may lack
    members.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import pyarrow as pa

from feeder.shards.archives.members import split_name
from feeder.shards.errors import ShardError, SourceError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.formats.arrow import index_batches
from feeder.shards.formats.index import SCALARS, column_type, index_columns
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.formats.tar import (
    END,
    SCALARS_EXTENSION,
    UNKNOWN_EXTENSION,
    member_extension,
    scalar_names,
)
from feeder.shards.formats.tar_walk import LOCAL_READ_BYTES, TarFile, walk_tar
from feeder.shards.images.headers import EXTENSIONS, FORMATS, NO_HEADER, UNKNOWN_FORMAT, parsed_header

_IMAGE_EXTENSIONS = (*EXTENSIONS.values(), UNKNOWN_EXTENSION)
_PLACE = {"offset": 0, "size": ABSENT, "crc32c": 0}
_HEADER = {"width": 0, "height": 0, "format": UNKNOWN_FORMAT}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RebuiltIndex:
    """What a shard says of its samples.

    Attributes:
        columns: as in an index, but ``source`` and scalars where a shard does not hold them; empty without samples.
        extensions: of a tar, the extension of each sample's image.
        damage: what is wrong with the shard, a sentence; empty if nothing is.
    """

    columns: dict[str, pa.Array]
    extensions: list[str]
    damage: str

    def __len__(self) -> int:
        return len(self.columns["key"]) if self.columns else 0


def rebuild_index(shard: SequentialShard, shard_format: str, fields: Mapping[str, Field]) -> RebuiltIndex:
    """Return the index of a shard, as far as the shard can be read.

    Args:
        shard: read from its beginning; what the damage leaves unread stays unread.
        shard_format: ``"tar"`` or ``"arrow"``.
        fields: what a sample of this shard holds.

    Raises:
        StorageError: the storage does not give the bytes.
    """
    if shard_format == "arrow":
        return _from_batches(shard, fields)
    rows = _Rows(fields)
    damage, last_is_whole = "", False
    try:
        end = rows.take(shard)
        if end + len(END) != shard.size_bytes:
            last_is_whole = end + len(END) > shard.size_bytes  # cut within the zero blocks after it
            damage = f"{shard.where} is not a whole tar archive: it ends at byte {end} of {shard.size_bytes}"
    except (ShardError, SourceError) as error:
        damage = str(error)
    return rows.finish(damage, last_is_whole=last_is_whole)


def _from_batches(shard: SequentialShard, fields: Mapping[str, Field]) -> RebuiltIndex:
    batches: list[dict[str, pa.Array]] = []
    damage = ""
    try:
        batches += index_batches(shard, fields)
    except (ShardError, SourceError) as error:
        damage = str(error)
    columns = {name: pa.concat_arrays([batch[name] for batch in batches]) for name in (batches[0] if batches else ())}
    return RebuiltIndex(columns=columns, extensions=[], damage=damage)


class _Rows:
    """Gathers the members of a tar shard: a row a sample."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self._scalars = scalar_names(fields)
        self._by_extension = dict(_extensions(fields))
        self._rows: list[dict[str, Any]] = []
        self._extensions: list[str] = []

    def take(self, shard: SequentialShard) -> int:
        """Take the members of a shard; return where the blocks that end it begin.

        Raises:
            ShardError: a member is none that a build writes.
            SourceError: the archive is cut or damaged; what stands before was taken.
        """
        walk = walk_tar(TarFile(shard.where, shard.size_bytes, shard.read, LOCAL_READ_BYTES))
        while True:
            try:
                member = next(walk)
            except StopIteration as stop:
                return int(stop.value)
            self._add(member.name, member.offset, shard.read(member.offset, member.size))

    def _add(self, name: str, offset: int, data: bytes) -> None:
        key, extension = split_name(name) or ("", "")
        field = self._by_extension.get(extension)
        if field is None:
            raise ShardError(f"it holds {name!r}, which is no field of a sample")
        if not self._rows or self._rows[-1]["key"] != key:
            self._rows.append({"key": key})
            self._extensions.append("")
        row = self._rows[-1]
        if f"{field}.offset" in row:
            raise ShardError(f"it holds two members for the field {field} of {key!r}")
        row |= {f"{field}.offset": offset, f"{field}.size": len(data), f"{field}.crc32c": google_crc32c.value(data)}
        if field == "image":
            self._extensions[-1] = extension
        self._add_content(row, field, data)

    def _add_content(self, row: dict[str, Any], field: str, data: bytes) -> None:
        """Take what a member says beyond its place."""
        try:
            if field == SCALARS:
                values = json.loads(data)
                row |= {name: values.get(name) for name in self._scalars}
            elif self._is_image(field):
                header = parsed_header(data)
                code = FORMATS.index(header.format) if header is not NO_HEADER else UNKNOWN_FORMAT
                row |= {f"{field}.width": header.width, f"{field}.height": header.height, f"{field}.format": code}
            elif field == "label":
                row["label"] = int(data)
            elif not self._fields[field].stored:
                row[field] = data.decode("utf-8")
        except (ValueError, AttributeError) as error:
            raise ShardError(f"it holds no value in the member for {field} of {row['key']!r} ({error})") from error

    def _is_image(self, member: str) -> bool:
        return member != SCALARS and self._fields[member].type == "image"

    def finish(self, damage: str, *, last_is_whole: bool) -> RebuiltIndex:
        """Return the rows of whole samples as columns."""
        rows, extensions = self._rows, self._extensions
        if damage and not last_is_whole:
            rows, extensions = rows[:-1], extensions[:-1]
        if strange := next((row["key"] for row in rows if "image.offset" not in row), None):
            damage = damage or f"its sample {strange!r} has no image"
            extensions = [one for row, one in zip(rows, extensions, strict=True) if "image.offset" in row]
            rows = [row for row in rows if "image.offset" in row]
        if not rows:
            return RebuiltIndex(columns={}, extensions=[], damage=damage or "it holds no samples")
        try:
            columns = {
                name: pa.array([row.get(name, default) for row in rows], kind)
                for name, (default, kind) in self._columns().items()
            }
        except (pa.ArrowException, OverflowError) as error:  # a value that is none of its field
            return RebuiltIndex(columns={}, extensions=[], damage=damage or f"its scalars cannot be read ({error})")
        return RebuiltIndex(columns=index_columns(self._fields, columns), extensions=extensions, damage=damage)

    def _columns(self) -> dict[str, tuple[Any, pa.DataType | None]]:
        """Return the columns that the shard holds: what stands where a sample has none, and their types."""
        columns: dict[str, tuple[Any, pa.DataType | None]] = {"key": ("", pa.string())}
        types = {"crc32c": pa.uint32(), "width": pa.int32(), "height": pa.int32(), "format": pa.uint8()}
        for member in dict.fromkeys(self._by_extension.values()):
            places = _PLACE | _HEADER if self._is_image(member) else _PLACE
            columns |= {f"{member}.{end}": (value, types.get(end, pa.int64())) for end, value in places.items()}
        for name, field in self._fields.items():
            if name == "label":
                columns[name] = (-1, pa.int64())
            elif not field.stored and (field.type == "string" or name in self._scalars):
                columns[name] = (None, column_type(field))
        return columns


def _extensions(fields: Mapping[str, Field]) -> Iterator[tuple[str, str]]:
    """Yield each extension that a member may have, and its field."""
    if scalar_names(fields):
        yield SCALARS_EXTENSION, SCALARS
    for name, field in fields.items():
        if field.type == "image":
            prefix = "" if name == "image" else f"{name.lower()}."
            yield from ((prefix + extension, name) for extension in _IMAGE_EXTENSIONS)
        elif field.stored or field.type == "string" or name == "label":
            yield member_extension(name, field), name
