"""The indexes of adopted shards: made from their surveys, once it is known which fields all of them have."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.field_names import settled_names
from feeder.shards.fields import ABSENT, Field
from feeder.shards.images import UNKNOWN_FORMAT
from feeder.shards.index import column_type, index_columns
from feeder.shards.mds import MdsFields
from feeder.shards.member_fields import MemberField, field_name, member_fields, member_values
from feeder.shards.sources.labels import integer_classes, number_classes
from feeder.shards.surveys import Survey

_PLACE = {"offset": 0, "size": ABSENT, "crc32c": 0}
_HEADER = {"width": 0, "height": 0, "format": UNKNOWN_FORMAT}
_TYPE_NAMES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool"}
_RANDOM_CHANGES = 0.1  # of the changes of label between neighbours that random order has: fewer look sorted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedField:
    """A field of adopted shards.

    Attributes:
        name, field: as in the manifest.
        parts: the parts of surveys that it is; a sample has at most one of them.
        column: the column of values of surveys that it is.
    """

    name: str
    field: Field
    parts: tuple[str, ...] = ()
    column: str | None = None


@dataclasses.dataclass(slots=True)
class FoundFields:
    """What the surveys of a dataset have, gathered one survey after another.

    Attributes:
        parts: of tar members, their extensions; `together` are the pairs that some sample has both of.
        columns: the types of columns of values; `places` names a shard of each.
    """

    parts: set[str] = dataclasses.field(default_factory=set)
    together: set[frozenset[str]] = dataclasses.field(default_factory=set)
    columns: dict[str, pa.DataType] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, survey: Survey, where: str) -> None:
        """Take the survey of a shard.

        Raises:
            SourceError: a column has another type there than in the shards before.
        """
        self.parts |= set(survey.parts)
        present = {part: survey.numbers(f"{part}.size") != ABSENT for part in survey.parts}
        names = sorted(present)
        for number, one in enumerate(names):
            for other in names[:number]:
                pair = frozenset((one, other))
                if pair not in self.together and (present[one] & present[other]).any():
                    self.together.add(pair)
        for name, column in survey.values.items():
            self._add_column(name, column.type, where)

    def _add_column(self, name: str, kind: pa.DataType, where: str) -> None:
        before = self.columns.get(name, pa.null())
        if pa.types.is_null(before) or before == kind:
            self.columns[name] = kind
            self.places[name] = where
        elif {before, kind} == {pa.int64(), pa.float64()}:
            self.columns[name] = pa.float64()
        elif not pa.types.is_null(kind):
            raise SourceError(
                f"the column {name!r} holds {_TYPE_NAMES[kind]} in {where} but {_TYPE_NAMES[before]} in "
                f"{self.places[name]}; adopt them as two datasets, or write one of them again"
            )


def tar_fields(found: FoundFields) -> list[AdoptedField]:
    """Return the fields of tar archives: those of their members, then those of img2dataset's Parquet files.

    A column whose name a member has already is left out: img2dataset writes captions into both. Of two columns that
    would have one name (``a b``, ``a_b``), the one that is called so keeps it, and the other gets ``_`` behind it.
    """
    fields = [
        AdoptedField(name=member.name, field=member.field, parts=member.extensions)
        for member in member_fields(found.parts, found.together)
    ]
    members = {field.name for field in fields}
    columns: dict[str, str] = {}
    for column in sorted(found.columns, key=lambda column: (field_name(column) != column, column)):
        name = field_name(column)
        if name not in members:
            while name in columns:
                name += "_"
            columns[name] = column
    for name, column in sorted(columns.items(), key=lambda item: item[1]):
        kind = _TYPE_NAMES.get(found.columns[column], "string")  # a column that is null everywhere is no number
        fields.append(AdoptedField(name=name, field=Field(type=kind), column=column))
    return _settled(fields)


def mds_fields_adopted(mds: MdsFields) -> list[AdoptedField]:
    """Return the fields of an MDS set."""
    return _settled(
        [
            AdoptedField(name=name, field=field, parts=(name,))
            if field.stored
            else AdoptedField(name=name, field=field, column=name)
            for name, field in mds.fields.items()
        ]
    )


def _settled(fields: Sequence[AdoptedField]) -> list[AdoptedField]:
    """Return fields with names that an index can hold beside each other; extensions are those that shards have."""
    names = settled_names({field.name: field.field for field in fields})
    return [dataclasses.replace(field, name=names[field.name]) for field in fields]


def folder_fields(labelled: bool) -> list[AdoptedField]:
    """Return the fields of an image folder."""
    label = [AdoptedField(name="label", field=Field(type="int64"), column="label")] if labelled else []
    return [AdoptedField(name="image", field=Field(type="image"), parts=("image",)), *label]


class Labels:
    """The labels of all shards, one mapping for all splits."""

    def __init__(self, known: tuple[str, ...] | None) -> None:
        self._known = known
        self._least, self._most = -1, -1
        self._names: dict[str, None] | None = None
        self._classes: tuple[str, ...] = ()

    def add(self, values: pa.Array) -> None:
        """Take the labels of a shard: class names, or numbers."""
        if pa.types.is_string(values.type):
            self._names = (self._names or {}) | dict.fromkeys(pc.unique(values).drop_null().to_pylist())
        elif len(values) > values.null_count:
            bounds = pc.min_max(values)
            self._least = min(self._least, bounds["min"].as_py())
            self._most = max(self._most, bounds["max"].as_py())

    def settle(self, where: str) -> tuple[str, ...]:
        """Return the classes, once all labels are known.

        Raises:
            SourceError: a label that is not among the classes known, or a number that is no label.
        """
        if self._names is None:
            self._classes = integer_classes(np.array([self._least, self._most], np.int64), self._known, where)
        else:
            self._classes = number_classes(self._names, self._known, where)
        return self._classes

    def numbers(self, values: pa.Array) -> NDArray[np.int64]:
        """Return int64[n]: the label of each sample, −1 for none."""
        if pa.types.is_string(values.type):
            values = pc.index_in(values, value_set=pa.array(self._classes, pa.string()))
        return np.asarray(pc.fill_null(values, -1), np.int64)


def column_values(survey: Survey, field: AdoptedField, where: str) -> pa.Array:
    """Return the values of a column field, null where a sample has none; a label may be text.

    Raises:
        SourceError: a member is no such value.
    """
    kind = column_type(field.field)
    if field.column is not None:
        column = survey.values.get(field.column)
        if column is None:
            return pa.nulls(len(survey), kind)
        return column if field.name == "label" else column.cast(kind)
    names = set(survey.table.schema.names)
    contents = {part: survey.table.column(f"{part}.content") for part in field.parts if f"{part}.content" in names}
    if not contents:
        return pa.nulls(len(survey), kind)
    member = MemberField(name=field.name, field=field.field, extensions=field.parts)
    return member_values(member, contents, where, survey.table.column("key").to_pylist())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedIndex:
    """The index of one shard.

    Attributes:
        columns: as `feeder.shards.index.encode_index` takes them.
        samples: how many there are.
        dropped: samples of the shard that have no image.
        unreadable: samples whose image has a header that cannot be parsed.
        ends: int64[n], where the bytes of each sample end.
        labels: int64[n].
    """

    columns: dict[str, pa.Array]
    samples: int
    dropped: int
    unreadable: int
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]


def adopted_index(
    survey: Survey,
    shard: str,
    fields: Sequence[AdoptedField],
    values: Mapping[str, pa.Array],
    labels: Labels,
    prefix: str | None = None,
) -> AdoptedIndex:
    """Return the index of a shard.

    Args:
        survey: that of the shard.
        shard: its name.
        fields: those of the dataset.
        values: of each column field, its `column_values`.
        labels: which have settled.
        prefix: stands before all keys, where two shards hold samples of the same key.
    """
    image = _merged(survey, fields[0].parts, _PLACE | _HEADER)
    rows = np.flatnonzero(image["size"] != ABSENT)
    keys = survey.table.column("key").take(pa.array(rows))
    columns: dict[str, Any] = {"key": keys if prefix is None else pc.binary_join_element_wise(prefix, keys, "/")}
    ends = np.zeros(len(rows), np.int64)
    numbers = np.full(len(rows), -1, np.int64)
    for field in fields:
        if field.parts and (field.field.stored or _has_any(survey, field.parts)):
            merged = _merged(survey, field.parts, _PLACE | (_HEADER if field.field.type == "image" else {}))
            merged = {name: column[rows] for name, column in merged.items()}
            columns |= {f"{field.name}.{name}": pa.array(column) for name, column in merged.items()}
            ends = np.maximum(ends, merged["offset"] + merged["size"])
        if field.name == "label":
            numbers = labels.numbers(values["label"])[rows]
            columns["label"] = pa.array(numbers)
        elif not field.field.stored:
            columns[field.name] = values[field.name].take(pa.array(rows))
    names = set(survey.table.schema.names)
    paths = {"path": survey.table.column("path").take(pa.array(rows))} if "path" in names else {}
    sources = paths.get("path") or pa.array([f"{shard}/{key}" for key in keys.to_pylist()], pa.string())
    ordered = index_columns({field.name: field.field for field in fields}, columns | {"source": sources})
    return AdoptedIndex(
        columns={"key": ordered.pop("key"), "source": ordered.pop("source"), **paths, **ordered},
        samples=len(rows),
        dropped=len(survey) - len(rows),
        unreadable=int((image["format"][rows] == UNKNOWN_FORMAT).sum()),
        ends=ends,
        labels=numbers,
    )


def _has_any(survey: Survey, parts: Iterable[str]) -> bool:
    return any(part in survey.parts for part in parts)


def _merged(survey: Survey, parts: Sequence[str], absent: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Return the columns of a field that is made of several parts, of which a sample has at most one."""
    types = {"offset": "<i8", "size": "<i8", "crc32c": "<u4", "width": "<i4", "height": "<i4", "format": "u1"}
    merged = {name: np.full(len(survey), value, types[name]) for name, value in absent.items()}
    for part in set(parts).intersection(survey.parts):
        present = survey.numbers(f"{part}.size") != ABSENT
        for name, column in merged.items():
            column[present] = survey.numbers(f"{part}.{name}")[present]
    return merged


class SortedLabels:
    """Watches whether labels come in runs, as those of a dataset do that nobody has shuffled."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._changes = 0
        self._last: int | None = None

    def add(self, labels: NDArray[np.int64]) -> None:
        """Take the labels of the next shard."""
        if not labels.size:
            return
        for label, count in zip(*(a.tolist() for a in np.unique(labels, return_counts=True)), strict=True):
            self._counts[label] = self._counts.get(label, 0) + count
        self._changes += int((np.diff(labels) != 0).sum()) + (self._last is not None and self._last != labels[0])
        self._last = int(labels[-1])

    @property
    def look_sorted(self) -> bool:
        """Whether neighbours share a label far more often than in random order."""
        total = sum(self._counts.values())
        expected = total - sum(count * count for count in self._counts.values()) / max(total, 1)
        return len(self._counts) > 1 and expected > len(self._counts) and self._changes < _RANDOM_CHANGES * expected
