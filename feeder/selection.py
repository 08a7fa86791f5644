"""Which samples of a dataset are trained on, and how often: the table of copies that a user's arguments ask for.

The arguments apply in this order: ``where``, ``exclude``, ``limit``, then ``sample_weights`` or ``balance``. The result
depends on the dataset and the arguments alone, never on the seed of a run: the same limit gives the same samples in
every run, and a smaller limit gives some of them.

It is computed once and kept in the user's cache folder, in a file named by dataset digest and canonical arguments,
which appears whole and is mapped by all processes of a machine; one that is damaged is computed again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from feeder.arguments import as_integer
from feeder.copies import Copies, copies_of, encoded_copies, map_copies
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, derive_key, draw
from feeder.shards.columns.cached_files import keep_cached
from feeder.shards.columns.computing import plain
from feeder.shards.columns.consolidated import ROWS_A_BATCH, Column, joined_runs
from feeder.shards.columns.expressions import SHORT_NAMES, ExpressionError, parse_expression
from feeder.shards.columns.key_lists import find_keys, read_keys
from feeder.shards.columns.selections import Columns, column_values, reader_columns, select
from feeder.shards.reading.rows import Reader
from feeder.weighting import balanced_copies, weighted_copies

Exclude = str | os.PathLike[str] | Sequence[str] | Sequence[int] | NDArray[Any]
Weights = str | Sequence[float] | NDArray[Any]

_VERSION = 1  # of what the arguments mean: another one finds none of the older files
_FOLDER = "copies"
_NAMED = 3  # keys in a sentence


def choose(
    reader: Reader,
    *,
    where: str | None = None,
    exclude: Exclude | None = None,
    limit: float | None = None,
    sample_weights: Weights | None = None,
    balance: str | None = None,
) -> Copies | None:
    """Return how often each sample occurs in an epoch, or None for once each when no argument is given.

    Args:
        reader: the open dataset.
        where: an expression over the columns (`feeder.shards.columns.expressions`): samples for which it holds.
        exclude: leaves out samples for which an expression holds, with these ids, with these keys, or with the keys
            in a text file, one a line, given as a `pathlib.Path`.
        limit: at most so many samples, or with a float in (0, 1] that fraction of them, chosen by a draw for each id:
            the same ones whatever the seed, a smaller limit some of a larger one's.
        sample_weights: mean copies an epoch (1.0 is once): a column of numbers, or one weight for each sample of the
            dataset, finite, at least 0. The length of an epoch is their sum, rounded.
        balance: a column of integers, texts or truth values: each of its values has the same share of an epoch, whose
            length remains the number of selected samples.

    Raises:
        ConfigError: an argument cannot be, contradicts another, or leaves no sample.
        ShardError: a column, or an index that it is made from, is missing, cut or altered.
        StorageError: the storage answered with an error.
    """
    given = (where, exclude, limit, sample_weights, balance)
    if all(argument is None for argument in given):
        return None
    columns = reader_columns(reader)
    request = _checked(columns, reader.url, *given)
    key = request.key(columns.manifest.digest)
    path = columns.cache / _FOLDER / f"{key}.copies"
    found = map_copies(path, about=key)
    if found is not None:
        return found
    copies = request.computed(columns, reader.url)
    if keep_cached(path, encoded_copies(copies, key), "which samples are selected"):
        return map_copies(path, about=key) or copies
    return copies


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The arguments in canonical form: expressions as texts, ids ascending, keys sorted, weights as float64."""

    where: str | None
    exclude: str | NDArray[np.int64] | list[str] | None
    limit: float | None
    weights: str | NDArray[np.float64] | None
    balance: str | None

    def key(self, dataset: str) -> str:
        """Return what the result is kept under."""
        exclude: Any = self.exclude
        if isinstance(exclude, np.ndarray):
            exclude = ["ids", _digest(exclude)]
        elif isinstance(exclude, list):
            exclude = ["keys", xxhash.xxh3_128_hexdigest(json.dumps(exclude).encode("ascii"))]
        weights = ["array", _digest(self.weights)] if isinstance(self.weights, np.ndarray) else self.weights
        text = json.dumps([_VERSION, dataset, self.where, exclude, self.limit, weights, self.balance])
        return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()

    def computed(self, columns: Columns, url: str) -> Copies:
        """Evaluate the arguments."""
        total = columns.manifest.num_samples
        chosen = np.ones(total, np.bool_) if self.where is None else select(columns, self.where).mask()
        if not chosen.any():
            raise ConfigError(f"where={self.where!r} holds for none of the {total} samples of {url}; check its values")
        if self.exclude is not None:
            before = int(chosen.sum())
            chosen &= ~_excluded(columns, self.exclude, url)
            if not chosen.any():
                raise ConfigError(f"exclude leaves none of {before} samples of {url}; exclude fewer")
        if self.limit is not None:
            _limit(chosen, self.limit)
        weights = self.weights
        if self.balance is not None:
            classes = _whole_column(columns, self.balance, chosen, "balance")
            return balanced_copies(self.balance, lambda: _texts_and_numbers(classes), chosen)
        if isinstance(weights, str):
            column = _whole_column(columns, weights, chosen, "sample_weights")
            return weighted_copies(lambda: _floats(column), chosen)
        if weights is not None:
            starts = range(0, total, ROWS_A_BATCH)
            return weighted_copies(lambda: ((start, weights[start : start + ROWS_A_BATCH]) for start in starts), chosen)
        return copies_of(chosen.view(np.uint8))


def _digest(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(little).data)


# Arguments -----------------------------------------------------------------------------------------------------------


def _checked(columns: Columns, url: str, where: Any, exclude: Any, limit: Any, weights: Any, balance: Any) -> _Request:
    """Return the arguments in canonical form; ConfigError says what cannot be."""
    if weights is not None and balance is not None:
        raise ConfigError("sample_weights and balance are both given, and each says how often samples occur; give one")
    for name, value in (("where", where), ("balance", balance)):
        if value is not None and not isinstance(value, str):
            expected = "an expression, such as 'label < 10'" if name == "where" else "the name of a column"
            raise ConfigError(f"{name} is {value!r}; it must be {expected}")
    if isinstance(weights, str):
        weights = _column_name(columns, url, weights, "sample_weights")
    elif weights is not None:
        weights = _checked_weights(weights, columns.manifest.num_samples, url)
    return _Request(
        where=None if where is None else parse_expression(where, columns.types).text,
        exclude=None if exclude is None else _checked_exclude(columns, url, exclude),
        limit=None if limit is None else _checked_limit(limit),
        weights=weights,
        balance=None if balance is None else _column_name(columns, url, balance, "balance"),
    )


def _checked_limit(limit: Any) -> int | float:
    number = as_integer(limit)
    if number is not None and number >= 1:
        return number
    if number is None and isinstance(limit, float | np.floating) and 0 < limit <= 1:
        return float(limit)
    raise ConfigError(
        f"limit is {limit!r}; it must be a number of samples of at least 1, or a fraction of them, a float above 0 and"
        " up to 1.0"
    )


def _checked_weights(weights: Any, num_samples: int, url: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"sample_weights is {type(weights).__name__}; it must be the name of a column, or an array of numbers"
        ) from error
    if array.shape != (num_samples,):
        raise ConfigError(
            f"sample_weights has the shape {list(array.shape)}; it must be [{num_samples}], one weight for each sample"
            f" of {url} in the order of their ids"
        )
    return array


def _checked_exclude(columns: Columns, url: str, exclude: Any) -> str | NDArray[np.int64] | list[str]:
    """Return an expression, ids, or keys."""
    if isinstance(exclude, str):
        try:
            return parse_expression(exclude, columns.types).text
        except ExpressionError as error:
            if os.path.isfile(exclude):
                raise ConfigError(
                    f"exclude={exclude!r} is a text, and so an expression, but also the name of a file; for the keys in"
                    " that file write exclude=pathlib.Path(…)"
                ) from error
            raise
    if isinstance(exclude, os.PathLike):
        return sorted(set(read_keys(exclude)))
    try:
        array = np.asarray(exclude if isinstance(exclude, Sequence | np.ndarray) else None)
    except ValueError:  # lists of unequal lengths
        array = np.asarray(None)
    if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
        ids = np.unique(array).astype(np.int64)
        outside = ids[(ids < 0) | (ids >= columns.manifest.num_samples)]
        if outside.size:
            raise ConfigError(
                f"exclude names sample {outside[0]}, which {url} does not have; ids are from 0 to"
                f" {columns.manifest.num_samples - 1}"
            )
        return ids
    if array.ndim == 1 and array.dtype.kind == "U":
        return sorted(set(array.tolist()))
    raise ConfigError(
        f"exclude is {type(exclude).__name__}; it must be an expression, ids as integers, keys as texts, or the"
        " pathlib.Path of a file with one key a line"
    )


def _column_name(columns: Columns, url: str, name: str, argument: str) -> str:
    """Return the whole name of a column of numbers, or for `balance` of one that is no float."""
    types = columns.types
    full = name if name in types else SHORT_NAMES.get(name, name)
    if full not in types:
        raise ConfigError(f"{argument}={name!r} is no column of {url}; there are {', '.join(sorted(types))}")
    if argument == "balance" and pa.types.is_floating(types[full]):
        raise ConfigError(f"balance={name!r} is a column of floats; classes are integers, texts or truth values")
    if argument != "balance" and pa.types.is_string(types[full]):
        raise ConfigError(f"{argument}={name!r} is a column of texts; weights are numbers or truth values")
    return full


# Evaluation ----------------------------------------------------------------------------------------------------------


def _excluded(columns: Columns, exclude: str | NDArray[np.int64] | list[str], url: str) -> NDArray[np.bool_]:
    """Return bool[N], which samples are left out."""
    if isinstance(exclude, str):
        return select(columns, exclude).mask()
    if isinstance(exclude, np.ndarray):
        mask = np.zeros(columns.manifest.num_samples, np.bool_)
        mask[exclude] = True
        return mask
    chunks = columns.open(["key"])["key"].chunks
    mask, missing = find_keys(joined_runs(chunks, len(exclude)), exclude)
    if missing:
        named = ", ".join(map(repr, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
        raise ConfigError(
            f"{len(missing)} of {len(exclude)} keys of exclude are of no sample of {url}: {named}; correct them, or"
            " leave them out"
        )
    return mask


def _limit(chosen: NDArray[np.bool_], limit: float) -> None:
    """Keep, of the chosen samples, those with the lowest draws, in place.

    Draws are made anew for each pass instead of kept, which for 45.5 million samples would take 364 MB.
    """
    count = int(chosen.sum())
    kept = min(limit, count) if isinstance(limit, int) else max(1, round(limit * count))
    key = derive_key("selection.limit")
    starts = range(0, len(chosen), ROWS_A_BATCH)

    def draws(start: int) -> UInt64Array:
        return draw(key, start + np.flatnonzero(chosen[start : start + ROWS_A_BATCH]))

    shift = np.uint64(48)
    counts = np.zeros(1 << 16, np.int64)
    for start in starts:
        counts += np.bincount((draws(start) >> shift).astype(np.int64), minlength=len(counts))
    last = int(np.searchsorted(np.cumsum(counts), kept))
    near = [drawn[drawn >> shift == np.uint64(last)] for drawn in map(draws, starts)]
    highest = np.sort(np.concatenate(near))[kept - 1 - int(counts[:last].sum())]
    for start in starts:
        ids = start + np.flatnonzero(chosen[start : start + ROWS_A_BATCH])
        chosen[ids[draw(key, ids) > highest]] = False


def _whole_column(columns: Columns, name: str, chosen: NDArray[np.bool_], argument: str) -> Column:
    """Return a column; refuse one that has no value for a chosen sample."""
    column = columns.open([name])[name]
    missing = 0
    for start, values in _texts_and_numbers(column):
        if values.null_count:
            missing += int((np.asarray(pc.is_null(values)) & chosen[start : start + len(values)]).sum())
    if missing:
        raise ConfigError(
            f"the column {name!r} has no value for {missing} of {int(chosen.sum())} selected samples, and {argument}"
            f" needs one for each; leave them out with exclude=\"column('{name}') is None\""
        )
    return column


def _texts_and_numbers(column: Column) -> Iterator[tuple[int, pa.Array]]:
    """Yield the first sample id and the values of each batch of a column."""
    for start in range(0, len(column), ROWS_A_BATCH):
        yield start, plain(column_values(column, start, min(start + ROWS_A_BATCH, len(column))))


def _floats(column: Column) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the first sample id and the values of each batch of a column of numbers or truth values, 0 for none."""
    for start, values in _texts_and_numbers(column):
        yield start, pc.cast(values, pa.float64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
