"""Lists of samples: CSV, TSV, JSON Lines or Parquet files that name image files, with labels and anything else.

Paths are relative to the list's folder (or to ``base``), absolute, or URLs of any file system that fsspec knows. A file
that does not exist is a bad sample, not an error: lists outlive files. A sample's name is its path as the list has it;
its key is made of that (`feeder.shards.names.key_of`), or of the list's key column.
"""

import os
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT, LABEL, Field
from feeder.shards.images import FILE_EXTENSIONS
from feeder.shards.names import KEY, MAX_KEY_BYTES, PathTable, key_of, readable
from feeder.shards.sources.columns import (
    Roles,
    assign_roles,
    image_field_name,
    names_images,
    split_numbers,
    value_column,
    value_fields,
)
from feeder.shards.sources.files import file_sizes
from feeder.shards.sources.labels import column_labels
from feeder.shards.sources.list_files import read_list
from feeder.shards.sources.options import SourceOptions
from feeder.shards.splitting import cut_table
from feeder.shards.storage import is_remote, local_path
from feeder.shards.table import Places, SampleTable

_LOOKED_AT = 100  # files of a column that may be one of images: if none of them is there, it is text

_NOT_PLAIN = re.compile(r"^[/.]|://|//|/[.]{1,2}/")


def scan_list(source: str, options: SourceOptions) -> list[SampleTable]:
    """Return the samples of a list: one table a split, or a single one.

    Raises:
        SourceError: what `feeder.shards.sources.list_files.read_list` and `feeder.shards.sources.columns` refuse, a
            sample without a path, or two with the same path and no key.
        StorageError: the storage answered with an error.
    """
    where = source if is_remote(source) else os.path.abspath(local_path(source))
    listed = read_list(where)
    roles = assign_roles(listed.column_names, options, where)
    root = _root(where, options.base)
    names = PathTable(texts(text_column(listed, roles.image, where)))
    fields = {"image": Field(type="image")}
    labels, classes = list_labels(listed, roles.label, options.classes(), where)
    if roles.label is not None:
        fields["label"] = LABEL
    stored = {"image": _places(text_column(listed, roles.image, where), root)}
    further = {name: listed.column(name) for name in roles.further}
    for field, column in {**roles.images, **_image_columns(further, root)}.items():
        further.pop(column, None)
        fields[field] = Field(type="image")
        stored[field] = _places(text_column(listed, column, where, nulls=True), root)
    value_types, values = value_fields(further, tuple(fields), where)
    table = SampleTable(
        root=root,
        names=names,
        keys=_keys(listed, roles, names, where),
        labels=labels,
        classes=classes,
        fields=fields | value_types,
        stored=stored,
        values=values,
    )
    return cut_by_column(table, listed, roles.split, where)


def cut_by_column(table: SampleTable, listed: pa.Table, column: str | None, where: str) -> list[SampleTable]:
    """Return the parts of a table by the column with the names of splits, if there is one."""
    if column is None:
        return [table]
    numbers, splits = split_numbers(listed.column(column), where)
    return cut_table(table, np.array(numbers, np.int64), splits)


def list_labels(
    listed: pa.Table, column: str | None, known: tuple[str, ...] | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return int64[n] labels and the classes; −1 and no classes where no column has them.

    Raises:
        SourceError: the column holds no labels, or one that is not among the classes known.
    """
    if column is None:
        return np.full(listed.num_rows, -1, np.int64), ()
    kind, data = value_column(column, listed.column(column), where)
    if kind == "float64":
        raise SourceError(
            f"the column {column!r} of {readable(where)} holds fractions, expected class names or integers; name "
            "another column with --label-column"
        )
    if kind == "bool":
        data = data.cast(pa.int64())
    return column_labels(data, known, f"column {column!r} of {readable(where)}")


def _places(files: pa.ChunkedArray, root: str) -> Places:
    return Places(
        files=PathTable(local_path(text or "") for text in texts(files)),
        sizes=file_sizes(root, texts(files), absent=ABSENT),
    )


def _root(where: str, base: str | None) -> str:
    if base is None:
        return where.rpartition("/")[0] or "/"
    return base.rstrip("/") if is_remote(base) else os.path.abspath(local_path(base))


def text_column(listed: pa.Table, name: str, where: str, nulls: bool = False) -> pa.ChunkedArray:
    """Return a column that must be text; without `nulls`, every value must be there and not empty.

    Raises:
        SourceError: it is not.
    """
    kind, column = value_column(name, listed.column(name), where)
    if kind != "string":
        column = column.cast(pa.string())  # names like 1, 2, 3
    missing = pc.or_kleene(pc.is_null(column), pc.equal(pc.fill_null(column, ""), ""))
    if not nulls and pc.any(missing).as_py():
        row = pc.index(missing, pa.scalar(True)).as_py() + 1
        raise SourceError(f"sample {row} of {readable(where)} has no {name!r}; give it one, or take it out")
    return column


def texts(column: pa.ChunkedArray) -> Iterator[str]:
    """Yield the texts of a column, without making millions of them at once."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), 65536):
            yield from chunk[start : start + 65536].to_pylist()


def _keys(listed: pa.Table, roles: Roles, names: PathTable, where: str) -> PathTable | None:
    """Return the keys of samples, or None where those made of their names are meant."""
    if roles.key is not None:
        return PathTable(clean_key(text) for text in texts(text_column(listed, roles.key, where)))
    column = text_column(listed, roles.image, where)
    if pc.count_distinct(column).as_py() < len(names):
        counts = pc.value_counts(pa.concat_arrays(column.chunks))
        path = counts.field("values")[int(np.argmax(np.asarray(counts.field("counts")) > 1))].as_py()
        raise SourceError(
            f"{readable(where)} names {path!r} more than once; name a column with keys of samples with --key-column, "
            "or take the others out"
        )
    return plain_keys(names)


def plain_keys(names: PathTable) -> PathTable | None:
    """Return the keys of samples whose names are not all plain relative paths; None where they are."""
    if any(_NOT_PLAIN.search(name) for name in names):
        return PathTable(key_of(plain_path(name)) for name in names)
    return None


def clean_key(text: str) -> str:
    """Return the key of a sample that has a name of its own: that itself if it is a key, or the key made of it.

    A name that ends like an image file is taken for one: ``a/1.jpg`` gives ``a/1``.
    """
    if len(text) <= MAX_KEY_BYTES and KEY.fullmatch(text):
        return text
    path = plain_path(text)
    return key_of(path if os.path.splitext(path)[1].lower() in FILE_EXTENSIONS else path + ".")


def plain_path(path: str) -> str:
    """Return a path or URL as a relative path that keys can be made of: without scheme, dots, doubled slashes."""
    parts = path.replace("://", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def _image_columns(further: dict[str, pa.ChunkedArray], root: str) -> dict[str, str]:
    """Return the columns that are further image fields without having been named, by the field's name."""
    found = {}
    for name, column in further.items():
        if names_images(name, column):
            some = islice((text for text in texts(column) if text), _LOOKED_AT)
            if (file_sizes(root, some) >= 0).any():
                found[image_field_name(name)] = name
    return found
