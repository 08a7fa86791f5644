"""The columns of a list or a Parquet file: which plays which part, and those that become fields.

Found by name where nothing is said: the image in the first of `IMAGE_COLUMNS` that there is, the label in ``label`` or
``class``, the key in ``key``, the split in ``split``. Of all others, integers become int64 fields, floating-point
numbers float64, truth values bool, text (dates and times, too) string; nulls are kept. A column of text whose values
all end like image files, and of which at least one is there, is a further image field, called after it without
``_path``, ``_file`` or ``_url``. What names of fields cannot hold becomes ``_``, and a name that an index has of
another field gets ``_`` behind it (`feeder.shards.field_names`). Lists, structs and bytes are refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from feeder.shards.images import FILE_EXTENSIONS
from feeder.shards.member_fields import field_name
from feeder.shards.names import readable
from feeder.shards.sources.options import SourceOptions
from feeder.shards.table import SPLITS

IMAGE_COLUMNS = ("path", "image_path", "image", "img", "file_name", "filename", "file", "url")
LABEL_COLUMNS = ("label", "class")
KEY_COLUMNS = ("key",)
SPLIT_COLUMNS = ("split",)

_IMAGE_ENDINGS = ("_path", "_file", "_url")
_IMAGE_NAME = r"(?i)\.(" + "|".join(sorted(extension[1:] for extension in FILE_EXTENSIONS)) + r")([?#]|$)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which column plays which part.

    Attributes:
        image: the column with the image.
        images: the columns of further image fields, by the field's name.
        label, key, split: columns, or None where there is none.
        further: columns that become fields, in order.
    """

    image: str
    images: Mapping[str, str]
    label: str | None
    key: str | None
    split: str | None
    further: tuple[str, ...]


def assign_roles(columns: Sequence[str], options: SourceOptions, where: str, image: str | None = None) -> Roles:
    """Return the roles of columns.

    Args:
        columns: all names.
        options: what the user says of them.
        where: the list, for messages.
        image: the column with the image, where the file itself tells.

    Raises:
        SourceError: there is no image column, or a column that was named.
    """

    def named(wanted: str | None, usual: Sequence[str], option: str) -> str | None:
        if wanted is None:
            return next((name for name in usual if name in columns), None)
        return _present(wanted, columns, option, where)

    found = named(options.image_column, (image,) if image else IMAGE_COLUMNS, "--image-column")
    if found is None:
        raise SourceError(
            f"{readable(where)} has no column with images: it has {_listed(columns)}, expected one of "
            f"{', '.join(IMAGE_COLUMNS)}; name it with --image-column"
        )
    images = {name: _present(column, columns, "--image-field", where) for name, column in options.image_columns.items()}
    label = named(options.label_column, LABEL_COLUMNS, "--label-column")
    key = named(options.key_column, KEY_COLUMNS, "--key-column")
    split = named(options.split_column, SPLIT_COLUMNS, "--split-column")
    used = {found, label, key, split, *images.values()}
    further: Sequence[str] = [name for name in columns if name not in used]
    if options.columns is not None:
        further = [_present(name, columns, "--columns", where) for name in options.columns if name not in used]
    return Roles(image=found, images=images, label=label, key=key, split=split, further=tuple(further))


def _present(name: str, columns: Sequence[str], option: str, where: str) -> str:
    if name not in columns:
        raise SourceError(
            f"{readable(where)} has no column {name!r}: it has {_listed(columns)}; name one of them with {option}"
        )
    return name


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20])
    return f"{shown}, …" if len(columns) > 20 else shown


def value_column(name: str, column: pa.ChunkedArray, where: str) -> tuple[str, pa.ChunkedArray]:
    """Return the type of the field that a column becomes, and its values as that type.

    Raises:
        SourceError: values that no column field holds, or an integer beyond 64 bits.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        if pa.types.is_integer(kind):
            return "int64", column.cast(pa.int64())
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return "float64", column.cast(kind).cast(pa.float64())
        if pa.types.is_boolean(kind):
            return "bool", column.cast(pa.bool_())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return "string", column.cast(kind)
        if pa.types.is_null(kind) or pa.types.is_temporal(kind):
            return "string", column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise SourceError(f"the column {name!r} of {readable(where)} has a number beyond 64 bits ({error})") from error
    raise SourceError(
        f"the column {name!r} of {readable(where)} holds {kind}, which no field can be; expected numbers, truth values "
        "or text: choose the further columns to keep with --columns"
    )


def value_fields(
    columns: Mapping[str, pa.ChunkedArray], taken: Sequence[str], where: str
) -> tuple[dict[str, Field], dict[str, pa.Array]]:
    """Return the fields that columns become, and their values.

    Args:
        columns: by name, in order.
        taken: names of other fields.
        where: for messages.

    Raises:
        SourceError: as `value_column`, or two columns would become one field.
    """
    fields: dict[str, Field] = {}
    values: dict[str, pa.Array] = {}
    origins = {name.lower(): name for name in taken}  # extensions of members are in lower case
    for column, data in columns.items():
        name = field_name(column, taken={"image", "label"})
        if name.lower() in origins:
            raise SourceError(
                f"the columns {origins[name.lower()]!r} and {column!r} of {readable(where)} would both be the field "
                f"{name!r}; rename one of them, or choose the columns to keep with --columns"
            )
        origins[name.lower()] = column
        kind, converted = value_column(column, data, where)
        fields[name] = text_field(name) if kind == "string" else Field(type=kind)
        values[name] = combined(converted)
    return fields, values


def text_field(name: str) -> Field:
    """Return a field of text; a caption's member has the extension that webdataset's users expect."""
    return Field(type="string", extension="txt" if name == "caption" else None)


def combined(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; text of more than 2 GiB needs the type with offsets of 64 bits."""
    if pa.types.is_string_view(column.type) or (pa.types.is_string(column.type) and column.nbytes >= 2**31 - 1):
        column = column.cast(pa.large_string())
    if pa.types.is_large_string(column.type) and column.nbytes < 2**31 - 1:
        column = column.cast(pa.string())
    if column.num_chunks == 0:
        return pa.array([], column.type)
    return pa.concat_arrays(column.chunks) if column.num_chunks > 1 else column.chunk(0)


def names_images(name: str, column: pa.ChunkedArray) -> bool:
    """Say whether a column of text looks like one of paths of images."""
    if name in IMAGE_COLUMNS or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return False
    found = pc.match_substring_regex(column, _IMAGE_NAME)
    return column.null_count < len(column) and bool(pc.all(found).as_py())


def image_field_name(column: str) -> str:
    """Return the name of the image field that a column of paths becomes."""
    ending = next((ending for ending in _IMAGE_ENDINGS if column.endswith(ending) and column != ending), "")
    return field_name(column.removesuffix(ending), taken={"image", "label"})


def split_numbers(column: pa.ChunkedArray, where: str) -> tuple[list[int], tuple[str, ...]]:
    """Return the number in `SPLITS` of each sample's split.

    Raises:
        SourceError: a name that is none of `SPLITS`, or a sample without one.
    """
    kind, column = value_column("split", column, where)
    names = pc.unique(column).to_pylist()
    strangers = [name for name in names if name not in SPLITS]
    if kind != "string" or strangers:
        raise SourceError(
            f"{readable(where)} puts samples into the split {strangers[0] if strangers else names[0]!r}, expected "
            f"{', '.join(SPLITS)}; rename it, or name another column with --split-column"
        )
    return pc.index_in(column, value_set=pa.array(SPLITS, column.type)).to_pylist(), SPLITS
