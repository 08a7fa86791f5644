"""Parquet with images inside, as Hugging Face stores datasets: a column of ``struct<bytes, path>``, or of bytes.

Images lie compressed within pages, where no place can point at. So their bytes are copied once, in order, into one
uncompressed temporary file, the *spool*, and places point into that; whoever gave its place removes it after the build.
Where a row has no bytes but a path, the place is that file, relative to the Parquet file's folder. A path that leads
out of that folder makes a bad sample: such files come from anywhere, and must not name any file of this machine.

``huggingface`` in the schema's metadata tells which column is the image and what classes a ``ClassLabel`` has. Other
columns with images, and columns of bytes, are stored fields; the rest follows `feeder.shards.sources.columns`. Files of
two or more splits (``train-00000-of-00003.parquet``, ``test-…``) become splits. A sample's name is the path in its
struct, where all have one and no two the same; else its file and row (``train-00000-of-00003/000017.jpg``).
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.archives.member_fields import field_name
from feeder.shards.errors import SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.names import PathTable, readable
from feeder.shards.sources.columns import Roles, assign_roles, value_fields
from feeder.shards.sources.list_files import open_binary
from feeder.shards.sources.lists import clean_key, cut_by_column, list_labels, plain_keys, text_column, texts
from feeder.shards.sources.options import SourceOptions
from feeder.shards.sources.parquet_bytes import NAME_EXTENSIONS, EstimatedColumn, Spool, SpooledColumn
from feeder.shards.sources.webdataset import cut_by_file
from feeder.shards.table import SampleTable

_BINARY_IMAGES = frozenset({"image", "img", "jpg", "jpeg", "png", "webp"})  # names of columns of bytes that are images
_ROWS = 64  # decoded at a time: images of a few MiB each must fit


def holds_images(where: str) -> bool:
    """Say whether a Parquet file holds images, rather than naming image files.

    Raises:
        SourceError: no such file, or no whole Parquet file.
        StorageError: it cannot be read.
    """
    return "image" in _binary_columns(_schema(where)).values()


def scan_parquet(files: Sequence[str], root: str, options: SourceOptions, spool: Path | None) -> list[SampleTable]:
    """Return the samples of Parquet files with images inside: one table a split, or a single one.

    Args:
        files: absolute paths or URLs, in order; all have the columns of the first.
        root: what messages name.
        options: which column plays which part.
        spool: a local file to write the images' bytes to; it must stay for as long as samples are read. None: nothing
            is copied, and sizes are estimated.

    Raises:
        SourceError: no whole Parquet file, other columns than in the first, no images, or a value that no field holds.
        DestinationError: the spool cannot be written.
        StorageError: the storage does not give the bytes.
    """
    schema = _schema(files[0])
    roles, stored = _stored_columns(schema, options, files[0])
    parts, columns = _read(files, schema, {field: name for field, (name, _) in stored.items()}, spool)
    listed = pa.concat_tables(parts)
    if not listed.num_rows:
        raise SourceError(f"no samples in {readable(root)}: its {len(files)} Parquet files have no rows")
    numbers = np.repeat(np.arange(len(files)), [part.num_rows for part in parts])
    known = options.classes() or _class_names(schema).get(roles.label or "")
    labels, classes = list_labels(listed, roles.label, known, files[0])
    fields = {field: kind for field, (_, kind) in stored.items()} | ({"label": LABEL} if roles.label else {})
    value_types, values = value_fields({name: listed.column(name) for name in roles.further}, tuple(fields), files[0])
    names = _names(columns["image"], files, numbers)
    table = SampleTable(
        root=root,
        names=names,
        keys=_keys(listed, roles, names, files[0]),
        labels=labels,
        classes=classes,
        fields=fields | value_types,
        stored={field: column.places(files, numbers) for field, column in columns.items()},
        values=values,
        estimated=spool is None,
    )
    if roles.split is not None:
        return cut_by_column(table, listed, roles.split, files[0])
    return cut_by_file(table, files, numbers, root)


def _schema(where: str) -> pa.Schema:
    from pyarrow import parquet

    with open_binary(where) as file, _whole(where):
        return parquet.ParquetFile(file).schema_arrow


@contextlib.contextmanager
def _whole(where: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise SourceError(f"{readable(where)} is no whole Parquet file ({error}); copy it again") from error


def _binary_columns(schema: pa.Schema) -> dict[str, str]:
    """Return ``image`` or ``bytes`` for each column that holds bytes, by name."""
    found = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            if {child.name for child in field.type} == {"bytes", "path"} and _is_binary(field.type.field("bytes").type):
                audio = _features(schema).get(field.name, {}).get("_type") not in (None, "Image")
                found[field.name] = "bytes" if audio else "image"
        elif _is_binary(field.type):
            found[field.name] = "image" if field.name in _BINARY_IMAGES else "bytes"
    return found


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face's metadata says of columns; nothing where there is none, or it is not as expected."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the classes of columns that are class labels, by name."""
    return {
        name: tuple(map(str, feature["names"]))
        for name, feature in _features(schema).items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _stored_columns(
    schema: pa.Schema, options: SourceOptions, where: str
) -> tuple[Roles, dict[str, tuple[str, Field]]]:
    """Return the roles of columns, and of each stored field its column and what it is, ``image`` first."""
    binary = _binary_columns(schema)
    first = next((name for name, kind in binary.items() if kind == "image"), None)
    if first is None and options.image_column is None:
        raise SourceError(
            f"{readable(where)} has no column with images: expected struct<bytes, path>, or bytes under a name such as "
            "'image'; name it with --image-column"
        )
    roles = assign_roles(schema.names, options, where, image=first)
    if roles.label is None and len(labels := list(_class_names(schema))) == 1:
        further = tuple(name for name in roles.further if name != labels[0])
        roles = dataclasses.replace(roles, label=labels[0], further=further)
    stored = {"image": (roles.image, Field(type="image"))}
    stored |= {field: (name, Field(type="image")) for field, name in roles.images.items()}
    for name in roles.further:
        if name in binary:
            field = field_name(name, taken={"image", "label"})
            is_image = binary[name] == "image"
            stored[field] = (name, Field(type="image") if is_image else Field(type="bytes", extension=field.lower()))
    if strangers := [name for name, _ in stored.values() if name not in binary]:
        raise SourceError(
            f"the column {strangers[0]!r} of {readable(where)} holds {schema.field(strangers[0]).type}, expected "
            "images as struct<bytes, path> or bytes"
        )
    return dataclasses.replace(roles, further=tuple(name for name in roles.further if name not in binary)), stored


Columns = Mapping[str, SpooledColumn] | Mapping[str, EstimatedColumn]


def _read(
    files: Sequence[str], schema: pa.Schema, stored: Mapping[str, str], spool: Path | None
) -> tuple[list[pa.Table], Columns]:
    """Return the other columns of each file, and those of bytes by the field that they are."""
    rest = pa.schema([field for field in schema if field.name not in stored.values()])
    if spool is None:
        estimated = {field: EstimatedColumn(name) for field, name in stored.items()}
        return [_estimated(where, schema, rest, list(estimated.values())) for where in files], estimated
    with Spool(spool) as opened:
        spooled = {field: SpooledColumn(name, opened) for field, name in stored.items()}
        parts = [_copied(where, schema, rest, list(spooled.values())) for where in files]
    opened.date(files)
    return parts, spooled


@contextlib.contextmanager
def _opened(where: str, schema: pa.Schema) -> Iterator[Any]:
    """Open a Parquet file that has the columns of the first."""
    from pyarrow import parquet

    with open_binary(where) as file, _whole(where):
        opened = parquet.ParquetFile(file)
        if not opened.schema_arrow.equals(schema):
            raise SourceError(
                f"{readable(where)} has other columns than the files before it: {_listed(opened.schema_arrow)}, "
                f"expected {_listed(schema)}; build them one by one"
            )
        yield opened


def _copied(where: str, schema: pa.Schema, rest: pa.Schema, columns: Sequence[SpooledColumn]) -> pa.Table:
    """Copy the bytes of a file's columns into the spool; return its other columns."""
    batches = []
    rows = 0
    with _opened(where, schema) as opened:
        for batch in opened.iter_batches(_ROWS, use_threads=False):
            for column in columns:
                column.append(batch.column(column.name))
            batches.append(batch.select(rest.names))
            rows += len(batch)
    if not rest.names:
        return pa.table({"": pa.nulls(rows)})
    return pa.Table.from_batches(batches, rest).combine_chunks()


def _estimated(where: str, schema: pa.Schema, rest: pa.Schema, columns: Sequence[EstimatedColumn]) -> pa.Table:
    """Take what a file says of the bytes in some columns; return its other columns."""
    with _opened(where, schema) as opened:
        for column in columns:
            column.append(opened)
        if not rest.names:
            return pa.table({"": pa.nulls(opened.metadata.num_rows)})
        return opened.read(columns=rest.names, use_threads=False).select(rest.names).combine_chunks()


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _names(image: SpooledColumn | EstimatedColumn, files: Sequence[str], numbers: NDArray[np.int64]) -> PathTable:
    """Return the names of samples: their paths if all have one and no two the same, else file and row."""
    paths = image.path_column()
    if not paths.null_count and pc.count_distinct(paths).as_py() == len(paths):
        return PathTable(texts(paths))
    stems = [file.rpartition("/")[2].removesuffix(".parquet") for file in files]
    firsts = np.searchsorted(numbers, np.arange(len(files)))
    rows = np.arange(len(numbers)) - firsts[numbers]
    return PathTable(
        f"{stems[file]}/{row:06d}.{NAME_EXTENSIONS[extension]}"
        for file, row, extension in zip(numbers.tolist(), rows.tolist(), image.extensions, strict=True)
    )


def _keys(listed: pa.Table, roles: Roles, names: PathTable, where: str) -> PathTable | None:
    """Return the keys of samples, or None where those made of their names are meant."""
    if roles.key is not None:
        return PathTable(clean_key(text) for text in texts(text_column(listed, roles.key, where)))
    return plain_keys(names)
