"""Adding columns to a dataset from a table with keys: scores, captions, flags.

A new column stands in ``columns/`` alone: shards and indexes stay as they are, and a reader takes the values from there
(`feeder.shards.reading.ShardReader.values`). So an annotation of 45.5 million samples writes one file a column.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from feeder.shards.columns import ColumnWriter, column_runs, consolidated_types, place_columns
from feeder.shards.errors import SourceError
from feeder.shards.field_names import check_field_names
from feeder.shards.fields import FIELD_NAME, RESERVED, Field
from feeder.shards.generations import Change, change_dataset
from feeder.shards.manifest import ColumnFile, Manifest
from feeder.shards.reading import load_index
from feeder.shards.storage import open_folder

_EXTENSIONS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".ndjson": None, ".parquet": None}
_NAMED = 3  # keys in a sentence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateReport:
    """What an annotation did.

    Attributes:
        manifest: the current generation.
        columns: the columns that were added or replaced, with their types.
        matched: samples that the table has a row for.
        missing: samples that it has none for; their values are missing.
        unknown: keys of the table that no sample has.
    """

    manifest: Manifest
    columns: Mapping[str, str]
    matched: int
    missing: int
    unknown: int


def annotate(
    dataset: str | os.PathLike[str],
    table: str | os.PathLike[str] | pa.Table,
    *,
    on: str = "key",
    columns: Sequence[str] | None = None,
    replace: bool = False,
    strict: bool = False,
) -> AnnotateReport:
    """Add columns to a dataset, and commit the generation that has them.

    Args:
        dataset: the folder or URL of one dataset: of one split.
        table: a table, or the path or URL of one: CSV, TSV, JSON lines or Parquet. It is held in memory.
        on: the column of both that says which rows belong to which samples: ``key``, or any other one of text or whole
            numbers. Several samples may have one value, the table has each once.
        columns: of the table; all others when None.
        replace: columns that the dataset has get new values for all samples; else they are refused.
        strict: keys of the table that no sample has are refused.

    Raises:
        SourceError: the table cannot be read or has no such column, keys twice, types that no field has, or columns
            that the dataset has already.
        DestinationError: another process is changing the dataset, or it cannot be written.
    """
    name = "the table" if isinstance(table, pa.Table) else os.fspath(table)
    rows = table if isinstance(table, pa.Table) else read_table(table, on)
    with change_dataset(dataset) as change:
        manifest = change.parent
        keys = _keys(rows, on, consolidated_types(manifest.fields).get(on), name, change)
        values = {column: _values(rows, column, name) for column in _chosen(rows, on, columns, name)}
        _refuse_existing(change, list(values), replace=replace)
        counts = _Counts(seen=np.zeros(len(keys), np.bool_))
        kinds = {column: field_type(array.type) for column, array in values.items()}
        added = {column: Field(type=kind) for column, kind in kinds.items()}
        check_field_names({**manifest.fields, **added}, change.folder.url, manifest.format)
        _refuse_other_types(change, kinds, name)
        written = place_columns(change.out, lambda place: _write(change, on, keys, values, counts, place))
        unknown = int(len(keys) - counts.seen.sum())
        if unknown and strict:
            examples = keys.filter(pa.array(~counts.seen)).slice(0, _NAMED).to_pylist()
            raise SourceError(
                f"{unknown} of the {len(keys)} keys of {name} are of no sample of {change.folder.url}: "
                f"{', '.join(map(repr, examples))}{', …' if unknown > _NAMED else ''}; correct them, or omit --strict"
            )
        fields = dict(manifest.fields)
        for column, kind in kinds.items():  # the extension is that of the members that shards have
            fields[column] = dataclasses.replace(fields.get(column, Field(type=kind)), type=kind)
        committed = change.commit(manifest.shards, fields=fields, columns={**manifest.columns, **written})
    return AnnotateReport(
        manifest=committed,
        columns=kinds,
        matched=counts.matched,
        missing=manifest.num_samples - counts.matched,
        unknown=unknown,
    )


@dataclasses.dataclass(slots=True, kw_only=True)
class _Counts:
    """How well a table fits: bool[rows], whether a sample has the key of a row; samples that a row was found for."""

    seen: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
    matched: int = 0


def read_table(path: str | os.PathLike[str], on: str = "key") -> pa.Table:
    """Read a table from a CSV, TSV, JSON lines or Parquet file; in CSV and TSV the column `on` is read as text.

    Raises:
        SourceError: no such file, an extension that says nothing, or a file that is no table.
    """
    text = os.fspath(path)
    extension = os.path.splitext(text)[1].lower()
    if extension not in _EXTENSIONS:
        raise SourceError(f"{text} is no table by its name; expected one that ends in {', '.join(_EXTENSIONS)}")
    above, _, name = text.rpartition("/")
    try:
        data = pa.py_buffer(open_folder(above or ("/" if text.startswith("/") else ".")).read(name))
    except FileNotFoundError as error:
        raise SourceError(f"no such table: {text}") from error
    try:
        if extension == ".parquet":
            return pyarrow.parquet.read_table(pa.BufferReader(data))
        if (separator := _EXTENSIONS[extension]) is None:
            return pyarrow.json.read_json(pa.BufferReader(data))
        return pyarrow.csv.read_csv(
            pa.BufferReader(data),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types={on: pa.string()}, strings_can_be_null=False),
        )
    except (pa.ArrowException, ValueError, OSError) as error:
        raise SourceError(f"table {text} cannot be read: {error}; correct it, or write it as Parquet") from error


def field_type(kind: pa.DataType) -> str:
    """Return the type of a field for values of an Arrow type; `TypeError` where there is none."""
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_floating(kind):
        return "float64"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    raise TypeError(f"no field is made of {kind}")


_TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}


def _keys(rows: pa.Table, on: str, kind: pa.DataType | None, name: str, change: Change) -> pa.Array:
    """Return the keys of a table, of the type that the dataset's column has."""
    if kind is None or not (pa.types.is_string(kind) or kind == pa.int64()):
        raise SourceError(
            f"{change.folder.url} has no column {on!r} of text or whole numbers to join on; expected key or another"
        )
    if on not in rows.column_names:
        raise SourceError(f"{name} has no column {on!r}; it has {', '.join(rows.column_names)}; name one with --on")
    keys = _plain(rows.column(on))
    try:
        keys = keys.cast(kind)
    except pa.ArrowException as error:
        raise SourceError(f"column {on!r} of {name} has the type {keys.type}, expected {kind}: {error}") from error
    if keys.null_count:
        raise SourceError(f"column {on!r} of {name} lacks {keys.null_count} values; every row needs one")
    if len(keys.unique()) < len(keys):
        counts = keys.value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
        raise SourceError(f"{name} has {on} {twice!r} more than once; keep one row of each")
    return keys


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece, a dictionary spelled out."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _chosen(rows: pa.Table, on: str, columns: Sequence[str] | None, name: str) -> list[str]:
    """Return the columns of a table that become fields."""
    chosen = [column for column in rows.column_names if column != on] if columns is None else list(columns)
    if absent := [column for column in chosen if column not in rows.column_names]:
        raise SourceError(f"{name} has no column {absent[0]!r}; it has {', '.join(rows.column_names)}")
    if not chosen:
        raise SourceError(f"{name} has no column but {on!r}; expected at least one to add")
    if len(set(chosen)) < len(chosen):
        raise SourceError(f"{name} has two columns of one name; rename one of them")
    for column in chosen:
        if not FIELD_NAME.fullmatch(column) or column in RESERVED:
            raise SourceError(
                f"column {column!r} of {name} cannot be a field: expected letters, digits, _, - and dots between them, "
                f"and none of {', '.join(sorted(RESERVED))}; rename it, or choose others with --columns"
            )
    return chosen


def _values(rows: pa.Table, column: str, name: str) -> pa.Array:
    """Return a column of a table as a field has it."""
    values = _plain(rows.column(column))
    try:
        return values.cast(_TYPES[field_type(values.type)])
    except (TypeError, pa.ArrowException) as error:
        raise SourceError(
            f"column {column!r} of {name} has the type {values.type}, which is not text, a number or a truth value of "
            "64 bits or less; convert it, or choose others with --columns"
        ) from error


def _refuse_existing(change: Change, columns: list[str], *, replace: bool) -> None:
    """Raise `SourceError` for columns that are there already, or can never be columns."""
    fields = change.parent.fields
    for column in columns:
        field = fields.get(column)
        image = column.rpartition(".")[0] in fields and fields[column.rpartition(".")[0]].type == "image"
        if column == "label" or image or (field is not None and field.stored):
            raise SourceError(
                f"{column!r} of {change.folder.url} is part of its shards and cannot be replaced by an annotation; "
                "rename the column, or choose others with --columns"
            )
        if field is not None and not replace:
            raise SourceError(
                f"{change.folder.url} has a column {column!r} already; give --replace to overwrite it, or rename the "
                "column of the table"
            )


def _refuse_other_types(change: Change, kinds: Mapping[str, str], name: str) -> None:
    """Raise `SourceError` where a column that shards hold would get another type than it has there."""
    index = load_index(change.folder, change.parent, 0)
    for column, kind in kinds.items():
        if column in index and (there := change.parent.fields[column].type) != kind:
            raise SourceError(
                f"column {column!r} of {name} is {kind}, but {there} in the shards of {change.folder.url}; convert "
                "it, or rename it"
            )


def _write(
    change: Change, on: str, keys: pa.Array, values: Mapping[str, pa.Array], counts: _Counts, place: Path
) -> dict[str, ColumnFile]:
    """Write the new columns, in the order of the samples, and count."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(ColumnWriter(name, array.type, place)) for name, array in values.items()]
        for run in column_runs(change.parent, change.folder, on, len(keys)):
            found = pc.index_in(run, value_set=keys)
            there = found.drop_null()
            counts.seen[there.to_numpy(zero_copy_only=False)] = True
            counts.matched += len(there)
            for writer in writers:
                writer.append(values[writer.name].take(found))
        return {writer.name: writer.finish() for writer in writers}
