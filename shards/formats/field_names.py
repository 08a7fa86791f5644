"""Names of fields beside each other: none may be a column that the index has of another, nor two be one tar member.

An index has ``image.width`` of an image, ``caption.size`` of a text (`feeder.shards.formats.index`). A field of such a
name gets ``_`` behind it when a source is read, as reserved names do: columns ``image.width``, as
`pandas.json_normalize` makes them, become ``image.width_``. So does the extension of a field's member where another
field has it already: bytes in a column ``cls``, beside a label, are ``KEY.cls_``.
"""

import dataclasses
from collections.abc import Mapping

from feeder.shards.errors import SourceError
from feeder.shards.fields import Field
from feeder.shards.formats.index import SCALARS, bytes_columns, image_columns
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.formats.tar import member_extension
from feeder.shards.images.headers import EXTENSIONS
from feeder.shards.names import readable
from feeder.shards.table import SampleTable

_PATH = "path"  # the column of a group of files, which names each


def settled_names(fields: Mapping[str, Field]) -> dict[str, str]:
    """Return the name that each field gets, by the name it would have: with ``_`` behind it until it is no other's."""
    names = {name: name for name in fields}
    while True:
        columns = _columns({names[name]: field for name, field in fields.items()})
        clashes = [name for name, new in names.items() if new in columns]
        if not clashes:
            return names
        for name in clashes:
            names[name] += "_"
            while list(names.values()).count(names[name]) > 1:
                names[name] += "_"


def settled_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return fields whose members all have extensions of their own; of two, images, labels and texts keep theirs."""
    settled: dict[str, Field] = {}
    taken: set[str] = set()
    types = ("image", "int64", "string")
    for name, field in sorted(fields.items(), key=lambda item: item[1].type not in types):
        own = field
        while own.type != "image" and _extensions(name, own) & taken:
            own = dataclasses.replace(own, extension=_extensions(name, own).pop() + "_")
        taken |= _extensions(name, own)
        settled[name] = own
    return {name: settled[name] for name in fields}


def settled_table(table: SampleTable) -> SampleTable:
    """Return a table with the names and extensions that its fields get."""
    names = settled_names(table.fields)
    fields = settled_fields({names[name]: field for name, field in table.fields.items()})
    if fields == table.fields:
        return table
    return dataclasses.replace(
        table,
        fields=fields,
        stored={names[name]: places for name, places in table.stored.items()},
        values={names[name]: column for name, column in table.values.items()},
    )


def check_field_names(fields: Mapping[str, Field], where: str, shard_format: str = "tar") -> None:
    """Raise `SourceError` if an index could not tell the columns of these fields apart.

    Args:
        fields: of the dataset as it would be.
        where: what gives them, for the message.
        shard_format: of the dataset: one whose shards are groups of files has the column ``path``, too.
    """
    columns = _columns(fields) | ({_PATH} if SHARD_FORMATS[shard_format].files else set())
    if clash := next((name for name in fields if name in columns), None):
        owner = clash.rpartition(".")[0]
        what = f"of the field {owner!r}" if owner in fields else "of its own"
        raise SourceError(
            f"{readable(where)} would have a field {clash!r}, but its index has a column {what} with that name; rename "
            "the field, or leave it out"
        )


def _columns(fields: Mapping[str, Field]) -> set[str]:
    """Return the columns that an index may have beside the values of fields."""
    columns = {"key", "source", *bytes_columns(SCALARS)}
    for name, field in fields.items():
        columns |= image_columns(name).keys() if field.type == "image" else bytes_columns(name).keys()
    return columns


def _extensions(name: str, field: Field) -> set[str]:
    """Return the extensions that members of a field may have; none of scalars, which share one member.

    An image of unknown format is ``bin``: only a build that keeps bad images has such, so that the bytes of other
    programs may keep that extension.
    """
    if field.type == "image":
        return {member_extension(name, field, image_format) for image_format in EXTENSIONS}
    if field.stored or field.type == "string" or name == "label":
        return {member_extension(name, field)}
    return set()
