"""Lists of keys: text with one key a line, and the samples that they name."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.errors import SourceError


def read_keys(path: str | os.PathLike[str]) -> list[str]:
    """Return the keys that a file lists, one a line; empty lines do not count.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        return listed_keys(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        words = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SourceError(f"cannot read the keys in {path}: {words}; expected text with one key a line") from error


def listed_keys(text: str) -> list[str]:
    """Return the keys in a text, one a line; empty lines do not count."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def find_keys(runs: Iterable[pa.Array], keys: Sequence[str]) -> tuple[NDArray[np.bool_], list[str]]:
    """Return bool[N], whether the key of a sample is in the list, and the keys that none has.

    Args:
        runs: the column ``key``, in arrays of many rows: of the list a hash table is made for each.
        keys: the list, without repetition.
    """
    wanted = pa.array(keys, pa.string())
    there = np.zeros(len(keys), np.bool_)
    found = []
    for run in runs:
        places = pc.index_in(run, value_set=wanted)
        found.append(np.asarray(pc.is_valid(places).to_numpy(zero_copy_only=False), np.bool_))
        there[places.drop_null().to_numpy(zero_copy_only=False)] = True
    missing = [keys[number] for number in np.flatnonzero(~there).tolist()]
    return np.concatenate(found), missing
