"""Taking the names of purged samples out of the lists beside a dataset: of bad images, and of duplicates.

A build writes its lists above the splits. Samples that an older generation has and the current one has not are purged;
a line goes if it names one of them.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feeder.shards.columns.consolidated import column_runs
from feeder.shards.dataset.contents import files_in
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import DUPLICATES_NAME, Destination
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError
from feeder.shards.storage import Folder, is_remote, open_folder

_BAD_LIST = re.compile(r"bad-images(\.g\d{6})?\.jsonl")


def forget_purged(folder: Folder, out: Destination, current: Manifest, gone: Iterable[Manifest]) -> None:
    """Rewrite the lists of a dataset, and of the build that it is a split of, without the samples that are purged.

    Args:
        folder, out: the dataset, to read and to write into.
        current: its current generation.
        gone: the generations that are about to be taken away.

    Raises:
        ShardError: what says which samples a generation has is missing, cut or altered.
        DestinationError: a list cannot be written.
        StorageError: the storage does not give what it holds.
    """
    places: list[tuple[Folder, Destination, str]] = [(folder, out, "")]
    above, _, name = folder.url.rpartition("/")
    if current.split is not None and name == current.split:
        outer = RemoteDestination(above) if is_remote(above) else LocalDestination(Path(above))
        places.append((open_folder(above), outer, f"{current.split}/"))
    lists = [
        (out, file, prefix, _lines(folder, file))
        for folder, out, prefix in places
        for file in sorted(files_in(folder, [""]))
        if file == DUPLICATES_NAME or _BAD_LIST.fullmatch(file)
    ]
    named = [_named(line, prefix, current.split) for _, _, prefix, lines in lists for line, _ in lines]
    purged = {
        column: _purged(folder, column, {text for names in named for text in names[column]}, current, list(gone))
        for column in ("key", "source")
    }
    for place, file, prefix, lines in lists:
        kept = [
            data
            for line, data in lines
            if not any(texts & purged[column] for column, texts in _named(line, prefix, current.split).items())
        ]
        if not kept:
            place.remove([file])
        elif len(kept) < len(lines):
            place.put(file, b"".join(data + b"\n" for data in kept))


def _lines(folder: Folder, name: str) -> list[tuple[dict[str, Any], bytes]]:
    """Return the objects of a list, each with its bytes."""
    try:
        return [(dict(json.loads(line)), line) for line in folder.read(name).splitlines()]
    except (ValueError, TypeError) as error:
        raise DestinationError(
            f"{folder.where(name)} is no list of JSON objects ({error}), so the names in it cannot be purged; repair "
            "or remove it"
        ) from error


def _named(line: dict[str, Any], prefix: str, split: str | None) -> dict[str, set[str]]:
    """Return the keys and the sources that a line names of one split, whose sources have a prefix in the list."""
    source = str(line.get("source", ""))
    return {
        "source": {source.removeprefix(prefix)} if source and source.startswith(prefix) else set(),
        "key": {str(line[of]) for of, where in (("key", "split"), ("kept", "kept_split")) if line.get(where) == split}
        if "kept" in line
        else set(),
    }


def _purged(
    folder: Folder, column: str, texts: set[str], current: Manifest, gone: Iterable[Manifest]
) -> frozenset[str]:
    """Return which texts stand in a column of older generations, and not in that of the current one."""
    if not texts:
        return frozenset()
    values = pa.array(sorted(texts), pa.string())
    before = np.zeros(len(values), bool)
    for manifest in gone:
        before |= _standing(folder, manifest, column, values)
    left = before & ~_standing(folder, current, column, values)
    return frozenset(values.filter(pa.array(left)).to_pylist())


def _standing(
    folder: Folder, manifest: Manifest, column: str, values: pa.Array
) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    there = np.zeros(len(values), bool)
    for run in column_runs(manifest, folder, column, len(values)):
        there[pc.index_in(run, value_set=values).drop_null().to_numpy(zero_copy_only=False)] = True
    return there
