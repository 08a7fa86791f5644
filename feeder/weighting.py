"""Weights of samples as quotas of copies: a table of `feeder.copies` from mean copies an epoch, or from equal classes.

Sums are taken over integers alone, so that every machine makes the same table.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.copies import Copies, copies_of
from feeder.errors import ConfigError

FINEST_UNIT = 1 << 24  # a mean is kept to 1 / 2**25 of a copy
_QUOTA_LIMIT = 1 << 32
_AT_ONCE = 1 << 20  # samples: what is computed on the way takes some tens of MiB


def weighted_copies(
    weights: Callable[[], Iterator[tuple[int, NDArray[np.float64]]]], chosen: NDArray[np.bool_]
) -> Copies:
    """Return the table of copies in which samples occur as often as their weights say.

    Whole weights are kept as they are. Of others the sum is rounded to a whole number of rows; the difference, less
    than a copy, is spread over the samples whose weights are not whole.

    Args:
        weights: gives, batch by batch, the first sample id and float64[n] mean copies an epoch; called twice.
        chosen: bool[N], which samples there are; the weights of others do not matter.

    Raises:
        ConfigError: a weight is negative, infinite or not a number, or an epoch would have no sample.
    """
    wrong, example = 0, (0, 0.0)
    most, whole = 0.0, True
    for start, batch in weights():
        mask = chosen[start : start + len(batch)]
        values = batch[mask]
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            if not wrong:
                at = int(np.flatnonzero(bad)[0])
                example = (start + int(np.flatnonzero(mask)[at]), float(values[at]))
            wrong += int(bad.sum())
        elif values.size:
            most = max(most, float(values.max()))
            whole = whole and bool((values == np.floor(values)).all())
    if wrong:
        raise ConfigError(
            f"sample_weights are negative or not finite for {wrong} samples, such as {example[1]} for sample"
            f" {example[0]}; a weight is a finite number of at least 0"
        )
    if most == 0:
        raise ConfigError("sample_weights are 0 for all selected samples, so that an epoch would have none")
    unit = 1 if whole and most < _QUOTA_LIMIT else _unit_for(most, "sample_weights")
    quotas = np.zeros(len(chosen), np.uint32)
    for start, batch in weights():
        part = slice(start, start + len(batch))
        quotas[part] = np.where(chosen[part], np.rint(np.where(chosen[part], batch, 0) * unit), 0).astype(np.uint32)
    total = int(quotas.sum(dtype=np.int64))
    rows = (total + unit // 2) // unit
    if rows == 0:
        raise ConfigError(
            f"sample_weights sum to {total / unit:.3g}, so that an epoch would have no sample; a weight is the mean"
            " number of copies an epoch: multiply them"
        )
    return _settled(quotas, unit, rows)


def balanced_copies(
    column: str, batches: Callable[[], Iterator[tuple[int, pa.Array]]], chosen: NDArray[np.bool_]
) -> Copies:
    """Return the table of copies in which every class has the same share of an epoch as long as there are samples.

    Args:
        column: the name of the column that holds the classes.
        batches: gives, batch by batch, the first sample id and the classes, not missing where chosen; called twice.
        chosen: bool[N], which samples there are.
    """
    counts: Counter[Any] = Counter()
    for start, values in batches():
        found = pc.value_counts(values.filter(pa.array(chosen[start : start + len(values)])))
        counts.update(dict(zip(*(found.field(part).to_pylist() for part in ("values", "counts")), strict=True)))
    rows = counts.total()
    unit = _unit_for(rows / len(counts) / min(counts.values()), f"the weights that balance {column!r}")
    names = sorted(counts)
    shares = np.array([rows * unit // (len(counts) * counts[name]) for name in names], np.uint32)
    quotas = np.zeros(len(chosen), np.uint32)
    wanted = None
    for start, values in batches():
        wanted = pa.array(names, values.type) if wanted is None else wanted
        part = slice(start, start + len(values))
        classes = pc.index_in(values, value_set=wanted).fill_null(0).to_numpy(zero_copy_only=False)
        quotas[part] = np.where(chosen[part], shares[classes], 0)
    return _settled(quotas, unit, rows)


def _unit_for(most: float, what: str) -> int:
    """Return the finest unit, a power of two, in which the greatest quota keeps below the limit when it is rounded."""
    unit = FINEST_UNIT
    while unit > 1 and (most + 1) * unit >= _QUOTA_LIMIT:
        unit //= 2
    if most + 1 >= _QUOTA_LIMIT:
        raise ConfigError(f"{what} go up to {most:.4g}; they must be below 2**32: divide them")
    return unit


def _settled(quotas: NDArray[np.uint32], unit: int, rows: int) -> Copies:
    """Return quotas as a table that sums to a number of rows; those of whole copies are left as they are.

    What the quotas lack or have in excess is given to, or taken from, those between two whole numbers in equal parts,
    none beyond the whole number next to it.
    """
    while lacking := rows * unit - int(quotas.sum(dtype=np.int64)):
        left = abs(lacking)
        open_quotas = sum(int(np.count_nonzero(part % unit)) for part in _parts(quotas))
        share = max(1, left // open_quotas)
        for part in _parts(quotas):
            at = np.flatnonzero(part % unit)[: left // share]
            fractions = part[at] % unit
            given = np.minimum(unit - fractions if lacking > 0 else fractions, share).astype(np.uint32)
            part[at] = part[at] + given if lacking > 0 else part[at] - given
            left -= int(given.sum(dtype=np.int64))
    if unit > 1 and not any((part % unit).any() for part in _parts(quotas)):
        quotas //= np.uint32(unit)
        unit = 1
    return copies_of(quotas, unit)


def _parts(quotas: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
    """Yield views of consecutive quotas."""
    for start in range(0, len(quotas), _AT_ONCE):
        yield quotas[start : start + _AT_ONCE]
