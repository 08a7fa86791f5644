"""Fields of samples beside image and label, as entries of batches.

=========================  ========================================================================================
type in the dataset        entry of the batch
=========================  ========================================================================================
string, json, bytes        a list of B values: ``str``, what the JSON says, ``bytes``; None where there is none
float64                    float64 (B,), NaN where there is none
int64, bool                int64 (B,), bool (B,); a missing value is an error, since no number could stand for it
image (a mask)             uint8 (B, H, W), or (B, V, H, W): stored values with the geometry of the image, filter
                           nearest; with `feeder.Views` one for each group, as ``global.mask``
=========================  ========================================================================================

Rows that are padded or masked hold zeros, or None in a list. What ``map_fields`` makes of values is stacked where all
results are numbers or arrays of one shape, else kept as a list.
"""

import json
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.program import IMAGE, OURS, TAKEN, Program
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.reading.rows import Reader
from feeder.tensors.samples import array_of, held, is_tensor

_DTYPES: Mapping[str, type[np.generic]] = {"int64": np.int64, "float64": np.float64, "bool": np.bool_}
_TAKEN = frozenset({"image", "label"})  # are in every batch
_OF_GROUPS = ("crop", "flip")  # entries of each group of views


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which fields a batch holds, checked against a dataset; made by `choose_fields`.

    Attributes:
        types: of the fields whose values are read, by name.
        masks: fields of type image.
        functions: what values pass through, by field.
    """

    types: Mapping[str, str]
    masks: tuple[str, ...]
    functions: Mapping[str, Any]


def choose_fields(manifest: Manifest, url: str, fields: Sequence[str], functions: Mapping[str, Any]) -> Fields:
    """Check the fields that a user asks for.

    Args:
        manifest, url: of the dataset.
        fields: names; those of functions are added.
        functions: by field, what its values pass through.

    Raises:
        ConfigError: the dataset has no such field, or it is in every batch anyway.
    """
    if isinstance(fields, str) or not isinstance(fields, Iterable):
        raise ConfigError(f"fields is {fields!r}; give a list of names, such as [{str(fields)!r}]")
    if not isinstance(functions, Mapping):
        raise ConfigError(f"map_fields is {functions!r}; give functions by field, as in {{'caption': tokenize}}")
    names = list(dict.fromkeys([*fields, *functions]))
    for name in names:
        if name in _TAKEN:
            raise ConfigError(f"fields names {name!r}, which is in every batch anyway; leave it out")
        if name not in manifest.fields:
            known = ", ".join(name for name in manifest.fields if name not in _TAKEN)
            raise ConfigError(f"{url} has no field {name!r}; it has {known or 'none beside image and label'}")
    kinds = {name: manifest.fields[name].type for name in names}
    masks = tuple(name for name in names if kinds[name] == "image")
    if mapped := [name for name in masks if name in functions]:
        raise ConfigError(f"map_fields has a function for {mapped[0]!r}, which is an image; map values of other fields")
    return Fields(
        types={name: kind for name, kind in kinds.items() if kind != "image"}, masks=masks, functions=dict(functions)
    )


def check_entries(fields: Fields, program: Program | None) -> None:
    """Raise ConfigError unless batches have room for fields beside what a program makes of images."""
    views = () if program is None else program.views
    groups = [view.name for view in views if len(views) > 1 or view.name != IMAGE]  # whose names masks stand under
    taken = TAKEN | OURS | {view.name for view in views} | {f"{group}.{end}" for group in groups for end in _OF_GROUPS}
    for name in (*fields.types, *fields.masks):
        entries = {f"{group}.{name}" for group in groups if name in fields.masks} or {name}
        if entries & taken:
            raise ConfigError(
                f"fields names {name!r}, and batches have another entry of that name; give views another name, or"
                " 'feeder annotate' the dataset with the field's values under another"
            )
        taken |= entries
    whole = next((view for view in views if view.geometry is None), None)
    if fields.masks and whole is not None:
        raise ConfigError(
            f"fields names {fields.masks[0]!r}, an image, which gets the crop that the engine cuts for {whole.name!r},"
            " and there it cuts none: begin the transforms with one that it executes, such as"
            " feeder.RandomResizedCrop(224), or leave the field out"
        )


def read_values(reader: Reader, kind: str, ids: NDArray[np.int64], name: str) -> list[Any]:
    """Return the values of a field that is no image, None where a sample has none."""
    if kind not in ("bytes", "json"):
        return reader.values(ids, name)
    _, stored = reader.read(ids, name)
    return list(stored) if kind == "bytes" else [json.loads(data) if data else None for data in stored]


def stack_values(fields: Fields, name: str, values: list[Any], valid: NDArray[np.bool_], keys: list[str]) -> Any:
    """Return the entry of a batch: values of B rows, those that are not valid left out of account."""
    rows = np.flatnonzero(valid).tolist()
    if name in fields.functions:
        return _stack_results(values, rows)
    dtype = _DTYPES.get(fields.types[name])
    if dtype is None:
        return values
    if dtype is not np.float64 and (missing := [keys[row] for row in rows if values[row] is None]):
        raise ConfigError(
            f"sample {missing[0]!r} has no value of {name!r}, and no number stands for none; leave such samples out"
            f" with where='{name} is not None', or give map_fields={{{name!r}: a function that takes None}}"
        )
    array = np.zeros(len(values), dtype)
    for row in rows:
        array[row] = np.nan if values[row] is None else values[row]
    return array


def _stack_results(values: list[Any], rows: list[int]) -> Any:
    """Return what a function made of values as one array with zeros in the other rows, or as the list it is."""
    arrays = [array for row in rows if (array := _as_array(values[row])) is not None]
    if len(arrays) < len(rows) or not rows or len({(array.shape, array.dtype) for array in arrays}) != 1:
        return values
    stacked = np.zeros((len(values), *arrays[0].shape), arrays[0].dtype)
    stacked[rows] = arrays
    return stacked


def _as_array(value: Any) -> NDArray[Any] | None:
    """Return a number, an array or a tensor as an array, None for anything else, which no array of a batch can hold."""
    if is_tensor(value):
        value = array_of(value)
    return held(np.asarray(value)) if isinstance(value, numbers.Number | np.generic | np.ndarray) else None
