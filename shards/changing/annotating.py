"""Adding columns to a dataset from a table with keys: scores, captions, flags.

A new column stands in ``columns/`` alone: shards and indexes stay as they are, and a reader takes the values from there
(`feeder.shards.reading.opening.ShardReader.values`). So an annotation of 45.5 million samples writes one file a column.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feeder.shards.changing.generations import Change, change_dataset
from feeder.shards.columns.consolidated import (
    BATCH_BYTES,
    MAX_RUN,
    ColumnWriter,
    column_runs,
    consolidated_types,
    place_columns,
)
from feeder.shards.dataset.loading import load_index
from feeder.shards.dataset.manifest import ColumnFile, Manifest
from feeder.shards.errors import SourceError
from feeder.shards.fields import FIELD_NAME, RESERVED, Field
from feeder.shards.formats.field_names import check_field_names
from feeder.shards.formats.index import COLUMN_TYPES
from feeder.shards.sources.columns import combined, value_column
from feeder.shards.sources.list_files import EXTENSIONS, read_list

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
        typed = {column: _typed(rows, column, name) for column in _chosen(rows, on, columns, name)}
        _refuse_existing(change, list(typed), replace=replace)
        counts = _Counts(seen=np.zeros(len(keys), np.bool_))
        kinds = {column: kind for column, (kind, _) in typed.items()}
        values = {column: array for column, (_, array) in typed.items()}
        added = {column: Field(type=kind) for column, kind in kinds.items()}
        check_field_names({**manifest.fields, **added}, change.folder.url, manifest.format)
        _refuse_other_types(change, kinds, name)
        written = place_columns(change.out, lambda place: _write(change, on, keys, kinds, values, counts, place))
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
        SourceError: an extension that says nothing, or what `feeder.shards.sources.list_files.read_list` refuses.
        StorageError: the storage does not give the bytes.
    """
    text = os.fspath(path)
    if not text.endswith(EXTENSIONS):
        raise SourceError(f"{text} is no table by its name; expected one that ends in {', '.join(EXTENSIONS)}")
    return read_list(text, as_text=(on,))


def _keys(rows: pa.Table, on: str, kind: pa.DataType | None, name: str, change: Change) -> pa.Array:
    """Return the keys of a table, of the type that the dataset's column has."""
    if kind is None or not (pa.types.is_string(kind) or kind == pa.int64()):
        raise SourceError(
            f"{change.folder.url} has no column {on!r} of text or whole numbers to join on; expected key or another"
        )
    if on not in rows.column_names:
        raise SourceError(f"{name} has no column {on!r}; it has {', '.join(rows.column_names)}; name one with --on")
    given = rows.column(on)
    if pa.types.is_dictionary(given.type):
        given = given.cast(given.type.value_type)
    keys = combined(given)
    try:
        keys = keys if pa.types.is_large_string(keys.type) and pa.types.is_string(kind) else keys.cast(kind)
    except pa.ArrowException as error:
        raise SourceError(f"column {on!r} of {name} has the type {keys.type}, expected {kind}: {error}") from error
    if keys.null_count:
        raise SourceError(f"column {on!r} of {name} lacks {keys.null_count} values; every row needs one")
    if len(keys.unique()) < len(keys):
        counts = keys.value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
        raise SourceError(f"{name} has {on} {twice!r} more than once; keep one row of each")
    return keys


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


def _typed(rows: pa.Table, column: str, name: str) -> tuple[str, pa.Array]:
    """Return the type of the field that a column of a table becomes, and its values."""
    kind, values = value_column(column, rows.column(column), name)
    return kind, combined(values)


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
    change: Change,
    on: str,
    keys: pa.Array,
    kinds: Mapping[str, str],
    values: Mapping[str, pa.Array],
    counts: _Counts,
    place: Path,
) -> dict[str, ColumnFile]:
    """Write the new columns, in the order of the samples, and count."""
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ColumnWriter(name, COLUMN_TYPES[kind], place)) for name, kind in kinds.items()
        }
        at_once = {name: _rows_at_once(array) for name, array in values.items()}
        for run in column_runs(change.parent, change.folder, on, len(keys)):
            found = pc.index_in(run.cast(keys.type), value_set=keys)
            there = found.drop_null()
            counts.seen[there.to_numpy(zero_copy_only=False)] = True
            counts.matched += len(there)
            for name, writer in writers.items():
                for start in range(0, len(found), at_once[name]):
                    writer.append(values[name].take(found.slice(start, at_once[name])))
        return {name: writer.finish() for name, writer in writers.items()}


def _rows_at_once(values: pa.Array) -> int:
    """Return how many values can be taken into one array: positions in one of strings have 32 bits."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return MAX_RUN
    return max(1, BATCH_BYTES // max(1, pc.max(pc.binary_length(values)).as_py() or 0))
