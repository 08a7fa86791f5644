"""MosaicML Streaming's MDS: where the columns of its samples lie, read without the package ``streaming``.

A set is ``index.json`` (version 2) beside its shards; folders ``train``, ``val``, … with an ``index.json`` each are
splits. A shard is, all numbers little-endian::

    uint32              n, its samples
    uint32 × (n + 1)    where each sample begins, and where the last one ends
    JSON                the columns, as ``index.json`` has them
    samples             of each: uint32 sizes of its columns without a fixed size, then the columns side by side

What the columns become:

=============================================  =====================================================================
encoding                                       field
=============================================  =====================================================================
jpeg, png; bytes that begin as an image does   an image
str, str_decimal                               a string
int, int8 … int64, uint8 … uint64, str_int     an int64; ``label``, ``class``, ``cls``, ``target`` or ``y`` is the label
float16, float32, float64, str_float           a float64
json                                           JSON, as it is
all else (pkl, ndarray, lists, pil, …)         bytes, as they are; nothing is unpickled
=============================================  =====================================================================

Refused are compressed shards, where no sample can be reached alone, and sets whose only images are ``pil``, raw pixels.
"""

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from feeder.shards.archives.member_fields import field_name
from feeder.shards.errors import BadImageError, SourceError
from feeder.shards.fields import Field
from feeder.shards.images.headers import HEADER_BYTES, image_format
from feeder.shards.names import key_of
from feeder.shards.storage import Folder

INDEX_NAME = "index.json"
LABEL_NAMES = ("label", "class", "cls", "target", "y")  # in the order in which they are looked for
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "x")

_VERSION = 2
_NUMBERS = {
    "int": "<i8",
    **{f"{sign}int{bits}": f"<{sign or 'i'}{bits // 8}" for sign in ("u", "") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
_TEXT_NUMBERS = {"str_int": int, "str_float": float}
_TYPES = {
    "jpeg": "image",
    "png": "image",
    "json": "json",
    "str": "string",
    "str_decimal": "string",
    "str_int": "int64",
    "str_float": "float64",
    **{name: "float64" if name.startswith("float") else "int64" for name in _NUMBERS},
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MdsColumn:
    """A column: its name, its encoding, and the bytes that each value takes, None if that varies."""

    name: str
    encoding: str
    size: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MdsShard:
    """A shard: its path relative to ``index.json``, its bytes, its samples, and their columns."""

    name: str
    size_bytes: int
    samples: int
    columns: tuple[MdsColumn, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MdsFields:
    """What the columns of a set become.

    Attributes:
        fields: ``image`` first, then those of the other columns by their names.
        columns: of each field, the number of its column.
    """

    fields: Mapping[str, Field]
    columns: Mapping[str, int]


def read_mds_index(folder: Folder) -> list[MdsShard]:
    """Return the shards of a set.

    Raises:
        SourceError: the index is damaged, of another version or format, or its shards are compressed.
        FileNotFoundError: there is no index.
        StorageError: the storage does not give it.
    """
    where = folder.where(INDEX_NAME)
    try:
        document = json.loads(folder.read(INDEX_NAME))
        version, records = document["version"], document["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{where} is not the index of an MDS set ({error!r}); copy it again from its origin"
        ) from error
    if version != _VERSION:
        raise SourceError(
            f"{where} has version {version!r}, expected {_VERSION}; write the set with streaming 0.2 or later"
        )
    try:
        shards = [_shard(record, number, where) for number, record in enumerate(records)]
    except SourceError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{where} has a damaged record of a shard ({error}); copy it again from its origin"
        ) from error
    if not shards:
        raise SourceError(f"{where} lists no shards; is the set finished?")
    for shard in shards:
        if shard.columns != shards[0].columns:
            raise SourceError(
                f"shards {shards[0].name} and {shard.name} of {where} have different columns ({_described(shards[0])};"
                f" {_described(shard)}); adopt them as two datasets"
            )
    return shards


def _shard(record: Mapping[str, Any], number: int, where: str) -> MdsShard:
    if record["format"] != "mds":
        raise SourceError(
            f"shard {number} of {where} has the format {record['format']!r}, expected 'mds'; write the set with "
            "MDSWriter"
        )
    if record.get("compression") or record.get("zip_data"):
        raise SourceError(
            f"shard {number} of {where} is compressed ({record.get('compression')}), so no sample in it can be read "
            "alone; write the set again with MDSWriter(compression=None)"
        )
    columns = zip(record["column_names"], record["column_encodings"], record["column_sizes"], strict=True)
    return MdsShard(
        name=str(record["raw_data"]["basename"]),
        size_bytes=int(record["raw_data"]["bytes"]),
        samples=int(record["samples"]),
        columns=tuple(MdsColumn(name=str(name), encoding=str(e), size=size or None) for name, e, size in columns),
    )


def _described(shard: MdsShard) -> str:
    return ", ".join(f"{column.name}: {column.encoding}" for column in shard.columns)


def mds_fields(shard: MdsShard, first: Sequence[bytes], where: str) -> MdsFields:
    """Return what the columns of a set become.

    The image is the column named first in `IMAGE_NAMES`, else the first of them all; other columns of images are image
    fields of their own. Names that no field may have are mended by `feeder.shards.archives.member_fields.field_name`.

    Args:
        shard: any shard of the set.
        first: the values of the columns of its first sample, which tell images among ``bytes``.
        where: the set, for messages.

    Raises:
        SourceError: no column holds encoded images.
    """
    columns = shard.columns
    types = [_type(column, value) for column, value in zip(columns, first, strict=True)]
    images = [number for number, kind in enumerate(types) if kind == "image"]
    if not images:
        if any(column.encoding == "pil" for column in columns):
            raise SourceError(
                f"the images of {where} are raw pixels (encoding 'pil'), ten times the bytes of an encoded image and "
                "nothing that an image decoder reads; write the set again with the encoding 'jpeg' or 'png'"
            )
        raise SourceError(
            f"no column of {where} holds encoded images ({_described(shard)}); expected one with the encoding 'jpeg' "
            "or 'png', or 'bytes' of an image file"
        )
    names = [column.name.lower() for column in columns]
    image = min(images, key=lambda number: (_rank(IMAGE_NAMES, names[number]), number))
    integers = [n for n, kind in enumerate(types) if kind in ("int64", "string") and names[n] in LABEL_NAMES]
    label = min(integers, key=lambda number: _rank(LABEL_NAMES, names[number]), default=None)
    fields, numbers = {"image": Field(type="image")}, {"image": image}
    if label is not None:
        fields["label"], numbers["label"] = Field(type="int64"), label
    for number, column in enumerate(columns):
        if number in (image, label):
            continue
        name = field_name(column.name, fields)
        while name in fields:
            name += "_"
        fields[name], numbers[name] = Field(type=types[number]), number
    return MdsFields(fields=fields, columns=numbers)


def _type(column: MdsColumn, value: bytes) -> str:
    if column.encoding != "bytes":
        return _TYPES.get(column.encoding, "bytes")
    try:
        image_format(value[:HEADER_BYTES])
    except BadImageError:
        return "bytes"
    return "image"


def _rank(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


@dataclasses.dataclass(frozen=True, slots=True)
class MdsSample:
    """A sample of a shard: of each column where it starts in the shard, and its bytes."""

    offsets: list[int]
    values: list[bytes]


def walk_mds(read: Callable[[int, int], bytes], shard: MdsShard, where: str) -> Iterator[MdsSample]:
    """Yield the samples of a shard, in order.

    Args:
        read: returns the bytes at (offset, size) of the shard; short at its end. Offsets grow.
        shard: what the set's index says of it.
        where: the shard, for messages.

    Raises:
        SourceError: the shard is cut, or contradicts the index or itself.
    """
    head = read(0, 4 + 4 * (shard.samples + 1))
    count = int.from_bytes(head[:4], "little")
    if count != shard.samples or len(head) < 4 + 4 * (count + 1):
        raise _damaged(where, f"it says that it holds {count} samples, but {INDEX_NAME} says {shard.samples}")
    bounds = np.frombuffer(head, "<u4", count + 1, 4).astype(np.int64)
    if bounds[0] < len(head) or (np.diff(bounds) < 0).any() or bounds[-1] != shard.size_bytes:
        raise _damaged(where, "the positions of its samples do not lie within it in order")
    varying = [number for number, column in enumerate(shard.columns) if column.size is None]
    sizes = [column.size or 0 for column in shard.columns]
    for row, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        data = read(begin, end - begin)
        if len(data) < end - begin:
            raise _damaged(
                where, f"sample {row} is cut: got {len(data)} bytes at offset {begin}, expected {end - begin}"
            )
        position = 4 * len(varying)
        if position <= len(data):
            for number, size in zip(varying, struct.unpack_from(f"<{len(varying)}I", data), strict=True):
                sizes[number] = size
        if position + sum(sizes) != len(data):
            raise _damaged(where, f"the columns of sample {row} do not fill its {len(data)} bytes at offset {begin}")
        offsets, values = [], []
        for size in sizes:
            offsets.append(begin + position)
            values.append(data[position : position + size])
            position += size
        yield MdsSample(offsets, values)


def _damaged(where: str, reason: str) -> SourceError:
    return SourceError(f"{where} is not a whole MDS shard: {reason}; copy it again from its origin")


def decode_value(column: MdsColumn, data: bytes, where: str) -> str | int | float:
    """Return the value of a column that is no stored field.

    Raises:
        SourceError: the bytes are no such value, or an integer takes more than 64 bits.
    """
    value: str | int | float
    try:
        if column.encoding in _NUMBERS:
            value = np.frombuffer(data, _NUMBERS[column.encoding])[0].item()
        else:
            text = str(data, "utf-8")
            value = _TEXT_NUMBERS[column.encoding](text) if column.encoding in _TEXT_NUMBERS else text
    except (ValueError, IndexError) as error:
        raise _damaged(where, f"a value of column {column.name!r} is no {column.encoding} ({error})") from error
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SourceError(
            f"column {column.name!r} of {where} holds {value}, which does not fit into 64 bits; write it as text"
        )
    return value


def sample_key(shard: str, row: int) -> str:
    """Return the key of a sample: ``shard-00000/000012`` for row 12 of ``shard.00000.mds``."""
    stem = shard.removesuffix(".mds").replace(".", "-")
    return key_of(f"{stem}/{row:06d}.mds")
