"""Reading lists of samples: CSV, TSV, JSON Lines and Parquet, in blocks, into columns of text and numbers.

CSV and TSV (RFC 4180; fields may be quoted and then hold line breaks; the first row names the columns) have no types:
a column becomes int64, float64 or bool if all its values read as such, else text. A number with leading zeros is text
(``00042`` is a name), and so are integers beyond 64 bits, which float64 would round; an empty field is null, a quoted
empty one is text. JSON Lines has one object a line; a name that an object lacks is null; text that looks like a date
stays text.
"""

import contextlib
import io
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from feeder.errors import FeederError
from feeder.shards.errors import SourceError
from feeder.shards.names import readable
from feeder.shards.storage import RemoteFolder, is_remote, local_path, unreadable

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

_BLOCK_BYTES = 16 << 20  # of text read at a time: a line must fit
_ROW = re.compile(r"[Rr]ow #?(\d+)")
_LEADING_ZERO = r"^[-+]?0[0-9]"
_INTEGER = r"^[-+]?[0-9]+$"


def read_list(where: str, as_text: Collection[str] = ()) -> pa.Table:
    """Return the columns of a list at a path or URL, told by its extension.

    Args:
        where: the list.
        as_text: columns of CSV and TSV that stay text, whatever their values look like.

    Raises:
        SourceError: no such list, one without rows, or a row that cannot be read, by its number.
        StorageError: the storage does not give the bytes.
    """
    with open_binary(where) as file:
        if where.endswith((".csv", ".tsv")):
            table = _read_csv(file, where, "\t" if where.endswith(".tsv") else ",", as_text)
        elif where.endswith(".parquet"):
            table = _read_parquet(file, where)
        else:
            table = _read_json_lines(file, where)
    names = table.column_names
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise SourceError(f"{readable(where)} has two columns {doubled[0]!r}; rename one of them")
    if not table.num_rows:
        raise SourceError(f"{readable(where)} has no rows; expected one sample a row")
    return table


@contextlib.contextmanager
def open_binary(where: str) -> Iterator[BinaryIO]:
    """Open a local or remote file to read; what storage raises in the block, too, is mapped.

    Raises:
        SourceError: there is no such file.
        StorageError: it cannot be read.
    """
    try:
        if is_remote(where):
            filesystem = RemoteFolder(where.rpartition("/")[0]).filesystem()
            with filesystem.open(where, "rb", block_size=_BLOCK_BYTES) as file:
                yield file
        else:
            with open(local_path(where), "rb") as file:
                yield file
    except FileNotFoundError as error:
        raise SourceError(f"no such source: {readable(where)}; check the path") from error
    except (FeederError, pa.ArrowException):
        raise
    except Exception as error:
        raise unreadable(readable(where), error) from error


def _read_csv(file: BinaryIO, where: str, delimiter: str, as_text: Collection[str]) -> pa.Table:
    from pyarrow import csv

    def opened(names: list[str]) -> Any:
        file.seek(0)
        return csv.open_csv(
            file,
            read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),  # threads know no row numbers
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )

    try:
        table = opened(opened([]).schema.names).read_all()
    except pa.ArrowInvalid as error:
        raise _bad_row(where, str(error), "the first row names the columns, and every other has as many") from error
    columns = [
        column if name in as_text else _typed(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, names=table.column_names)


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text as numbers or truth values, if all its values read as such."""
    if column.null_count == len(column) or pc.any(pc.match_substring_regex(column, _LEADING_ZERO)).as_py():
        return column
    with contextlib.suppress(pa.ArrowInvalid):
        return column.cast(pa.int64())
    if pc.all(pc.match_substring_regex(column, _INTEGER)).as_py():
        return column
    for kind in (pa.float64(), pa.bool_()):
        with contextlib.suppress(pa.ArrowInvalid):
            return column.cast(kind)
    return column


def _read_json_lines(file: BinaryIO, where: str) -> pa.Table:
    blocks, line, rest = [], 1, b""
    while data := file.read(_BLOCK_BYTES):
        lines, newline, rest_after = (rest + data).rpartition(b"\n")
        if newline:
            blocks.append(_json_block(lines, line, where))
            line += lines.count(b"\n") + 1
        rest = rest_after
    if rest.strip():
        blocks.append(_json_block(rest, line, where))
    if not blocks:
        return pa.table({})
    try:
        return pa.concat_tables(blocks, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{readable(where)} has values of different types under one name ({error}); use one"
        ) from error


def _json_block(lines: bytes, first: int, where: str) -> pa.Table:
    """Return the columns of whole lines, the first of which has a number."""
    from pyarrow import json as arrow_json

    if not lines.strip():
        return pa.table({})

    def parsed(schema: pa.Schema | None) -> pa.Table:
        return arrow_json.read_json(
            io.BytesIO(lines),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema),
        )

    try:
        table = parsed(None)
        dates = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
        return parsed(pa.schema([(name, pa.string()) for name in dates])) if dates else table
    except pa.ArrowInvalid as error:
        raise _bad_line(lines, first, where, str(error)) from error


def _bad_line(lines: bytes, first: int, where: str, message: str) -> SourceError:
    """Return the error for the first line that is no object, or whose values have other types than those before."""
    for number, line in enumerate(lines.split(b"\n"), first):
        reason = ""
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                reason = "it is no object"
        except ValueError as error:
            reason = str(error)
        if reason:
            return SourceError(
                f"{readable(where)} cannot be read in line {number}: {reason}; expected one JSON object a line, such "
                'as {"path": "a.jpg", "label": "cat"}'
            )
    if doubled := re.search(r"Column\(/?(.*)\) was specified twice", message):
        return SourceError(
            f"{readable(where)} has an object that gives {doubled[1]!r} twice, from line {first} on; give it once"
        )
    return SourceError(
        f"{readable(where)} has values of different types under one name ({message}, from line {first} on); use one"
    )


def _bad_row(where: str, message: str, expected: str) -> SourceError:
    row = _ROW.search(message)
    at = f" in row {row[1]}" if row else ""
    reason = message.rpartition(f"{row[0]}: ")[2] if row else message
    return SourceError(f"{readable(where)} cannot be read{at}: {reason}; {expected}")


def _read_parquet(file: BinaryIO, where: str) -> pa.Table:
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{readable(where)} is no whole Parquet file ({error}); copy it again") from error
