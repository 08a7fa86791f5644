"""Which fields the members of samples are, by their extensions: the rule for tars that other programs have written.

The last part of an extension says what it holds; parts before it are a name.

============================================  =======  =================================================
last part                                     type     field
============================================  =======  =================================================
those of `feeder.shards.images.headers`       image    ``image``; with a name before it, that (``mask.png``: ``mask``)
``cls``, else ``class``                       int64    ``label``; with a name before it, that
``cls2 class count index inx id``             int64    that, or the name before it
``txt``                                       string   ``caption``, or the name before it
``text caption transcript``                   string   that, or the name before it
``json jsn``                                  json     that, or the name before it
any other                                     bytes    the whole extension
============================================  =======  =================================================

Where samples have two images without a name (``0001.jpg``, ``0001.png``), the first in the order of `IMAGE_ORDER` is
``image``, and the other is a field of its extension's name. Images of several formats, one a sample, are all ``image``.
What a field name cannot hold becomes ``_``; a name that means something else (``id``, ``key``, ``source``, ``label`` of
what is no number) gets ``_`` behind it.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa

from feeder.shards.errors import SourceError
from feeder.shards.fields import FIELD_NAME, RESERVED, Field
from feeder.shards.formats.index import COLUMN_TYPES
from feeder.shards.images.headers import FILE_EXTENSIONS
from feeder.shards.names import PathTable, readable

IMAGE_ORDER = ("jpg", "jpeg", "jpe", "jfif", "webp", "png", "tif", "tiff", "bmp", "gif", "ppm", "pgm", "pbm")
LABELS = ("cls", "class")  # the first that samples have
INTEGERS = frozenset({"cls", "cls2", "class", "count", "index", "inx", "id"})  # what webdataset decodes as numbers
STRINGS = {"txt": "caption", "text": "text", "caption": "caption", "transcript": "transcript"}
DOCUMENTS = frozenset({"json", "jsn"})

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_SHOWN = 40  # bytes of a content, in a message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemberField:
    """A field that members are made of.

    Attributes:
        name: of the field.
        field: its type, and the extension that its members keep where shards store it.
        extensions: of the members that are it; a sample has at most one of them.
    """

    name: str
    field: Field
    extensions: tuple[str, ...]


def member_type(extension: str) -> str:
    """Return the type of the field that members with an extension are."""
    last = extension.rpartition(".")[2]
    if "." + last in FILE_EXTENSIONS:
        return "image"
    if last in INTEGERS:
        return "int64"
    if last in STRINGS:
        return "string"
    return "json" if last in DOCUMENTS else "bytes"


def is_value(extension: str) -> bool:
    """Say whether the content of a member is a value of the index: what `feeder.shards.archives.members` is to read."""
    return member_type(extension) in COLUMN_TYPES


def member_fields(extensions: Collection[str], together: Collection[frozenset[str]] = ()) -> list[MemberField]:
    """Return the fields of samples with members of some extensions: ``image`` first, ``label`` second, then by name.

    Args:
        extensions: all that there are; their order plays no part.
        together: sets of extensions; what stands in one of them, some sample has both of.

    Raises:
        SourceError: two extensions that some sample has both of would be one field.
    """
    images = _images(extensions, together)
    label = next((extension for extension in LABELS if extension in extensions), None)
    names: dict[str, tuple[str, list[str]]] = {}
    for extension in sorted(extensions, key=_image_rank):
        kind = member_type(extension)
        if extension in images:
            name = "image"
        elif extension == label:
            name = "label"
        else:
            name = _own_name(extension, kind)
        names.setdefault(name, (kind, []))[1].append(extension)
        _refuse_two_in_one(name, names[name], kind, together)
    order = sorted(names, key=lambda name: (name != "image", name != "label", name))
    return [_field(name, *names[name]) for name in order]


def _field(name: str, kind: str, extensions: list[str]) -> MemberField:
    # An image's member has the extension of its format; a label's is the format's own. What only others put into the
    # names of members (a second dot, letters beyond ASCII) no shard of ours has: then the name of the field serves.
    own = None if kind in ("image", "int64") or not FIELD_NAME.fullmatch(extensions[0]) else extensions[0]
    return MemberField(name=name, field=Field(type=kind, extension=own), extensions=tuple(extensions))


def _images(extensions: Collection[str], together: Collection[frozenset[str]]) -> set[str]:
    """Return the extensions that are ``image``: those without a name that never meet in a sample."""
    chosen: set[str] = set()
    for extension in IMAGE_ORDER:
        if extension in extensions and not any(extension in pair and pair & chosen for pair in together):
            chosen.add(extension)
    return chosen


def _image_rank(extension: str) -> tuple[int, str]:
    last = extension.rpartition(".")[2]
    return (IMAGE_ORDER.index(last) if last in IMAGE_ORDER else len(IMAGE_ORDER), extension)


def _own_name(extension: str, kind: str) -> str:
    before, _, last = extension.rpartition(".")
    if kind == "bytes":
        return field_name(extension, taken={"image", "label"})
    return field_name(before or STRINGS.get(last, last), taken=() if before == "image" == kind else {"image", "label"})


def field_name(text: str, taken: Iterable[str] = ()) -> str:
    """Return the name of a field made of any text: what names cannot hold becomes ``_``; what is taken ends in it."""
    parts = [part or "_" for part in _NOT_IN_NAMES.sub("_", text).split(".")]
    name = ".".join(parts)
    return name + "_" if name in RESERVED or name in set(taken) else name


def _refuse_two_in_one(
    name: str, field: tuple[str, list[str]], kind: str, together: Collection[frozenset[str]]
) -> None:
    """Raise `SourceError` if the extensions of a field are of different types, or stand in one sample."""
    first, extensions = field
    if kind != first or any(len(pair.intersection(extensions)) > 1 for pair in together):
        raise SourceError(
            f"members {' and '.join(map(repr, extensions))} would both be the field {name!r} of a sample; pack them "
            "under other extensions"
        )


def member_values(
    field: MemberField, contents: Mapping[str, pa.Array], where: str, keys: Sequence[str] | PathTable
) -> pa.Array:
    """Return the values of a column field in the n samples of an archive: an array of its type, null where absent.

    Args:
        field: of type int64 or string.
        contents: of its extensions (`is_value`), as in `feeder.shards.archives.members.TarSamples`: large_binary[n]
            each.
        where: the archive, for messages.
        keys: of the samples.

    Raises:
        SourceError: a member is no integer of 64 bits, or no text in UTF-8.
    """
    kind = field.field.type
    values: list[int | str | None] = [None] * len(keys)
    for extension in field.extensions:
        for row, data in enumerate(contents[extension].to_pylist() if extension in contents else ()):
            if data is not None:
                try:
                    values[row] = _integer(data) if kind == "int64" else data.decode()
                except ValueError:
                    expected = "an integer of 64 bits" if kind == "int64" else "text in UTF-8"
                    raise SourceError(
                        f"{readable(keys[row])}.{extension} in {readable(where)} holds "
                        f"{data[:_MAX_SHOWN]!r}, expected {expected}; pack it again, or under another extension"
                    ) from None
    return pa.array(values, COLUMN_TYPES[kind])


def _integer(data: bytes) -> int:
    number = int(data)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number
