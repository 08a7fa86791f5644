"""The record of what an interrupted build was making: its options, its input's fingerprint and its plan.

The file ``.building.plan`` is written before the first shard. Its first line is a JSON object; then comes one byte a
sample, so that of an input that has changed an example can be named. The same command again computes the same record,
or is told what differs. What counts of a sample is its name, its label, its values, and of each stored field the size,
where it starts, and for local files the time of the last change: no byte of the data is read.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from feeder.keyed import UInt64Array, derive_key, draw
from feeder.shards.errors import ResumeError
from feeder.shards.planning import Plan
from feeder.shards.storage import is_remote, local_path
from feeder.shards.table import Places, SampleTable

VERSION = 1

_DIGEST_BYTES = 16
_SHOWN_DIFFERENCES = 4  # of options: more do not make it clearer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedSplit:
    """What a build makes of one split.

    Attributes:
        split: its name, or None.
        kinds: digest of its classes and fields.
        input: digest of its samples.
        plan: digest of their order and cut.
        marks: uint8[n], a byte of each sample's own digest.
    """

    split: str | None
    kinds: str
    input: str
    plan: str
    marks: NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanRecord:
    """What a build makes: the options that decide its bytes, as JSON values, and its splits."""

    options: Mapping[str, Any]
    splits: Sequence[PlannedSplit]

    def encoded(self) -> bytes:
        """Return the bytes of the file."""
        splits = [
            {"split": one.split, "kinds": one.kinds, "input": one.input, "plan": one.plan, "samples": len(one.marks)}
            for one in self.splits
        ]
        line = json.dumps({"version": VERSION, "options": self.options, "splits": splits}, sort_keys=True)
        return b"\n".join([line.encode("ascii"), b"".join(one.marks.tobytes() for one in self.splits)])


def record_of(tables: Sequence[SampleTable], plans: Sequence[Plan], options: Mapping[str, Any]) -> PlanRecord:
    """Return the record of a build.

    Args:
        tables: one a split.
        plans: theirs.
        options: what else decides the bytes: whatever JSON can hold.
    """
    splits = []
    for table, plan in zip(tables, plans, strict=True):
        digests = sample_digests(table)
        kinds = [table.classes, {name: dataclasses.astuple(field) for name, field in table.fields.items()}]
        splits.append(
            PlannedSplit(
                split=table.split,
                kinds=_digest(json.dumps(kinds).encode("ascii")),
                input=_digest(digests.tobytes()),
                plan=_digest(plan.order.tobytes(), plan.starts.tobytes()),
                marks=digests.astype(np.uint8),
            )
        )
    return PlanRecord(options=json.loads(json.dumps(options)), splits=splits)


def parse_record(data: bytes, where: str) -> PlanRecord:
    """Return the record that a file holds.

    Raises:
        ResumeError: it is of another version of shardfeed, or no such record.
    """
    line, _, marks = data.partition(b"\n")
    try:
        document = json.loads(line)
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']}")
        splits, start = [], 0
        for entry in document["splits"]:
            count = entry.pop("samples")
            splits.append(PlannedSplit(**entry, marks=np.frombuffer(marks, np.uint8, count, start)))
            start += count
        return PlanRecord(options=dict(document["options"]), splits=splits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResumeError(
            f"{where} is not the record of a build that this version of shardfeed can go on with ({error}); discard "
            "what was written with --restart"
        ) from error


def refuse_another(found: PlanRecord, now: PlanRecord, tables: Sequence[SampleTable], url: str) -> None:
    """Raise `ResumeError` unless what was begun at `url` is what is asked for now; the sentence names a difference."""
    names = sorted(name for name in found.options.keys() | now.options.keys())
    others = [name for name in names if found.options.get(name) != now.options.get(name)]
    if others:
        said = [f"{name} was {found.options.get(name)!r}, now it is {now.options.get(name)!r}" for name in others]
        said[_SHOWN_DIFFERENCES:] = ["…"] if len(said) > _SHOWN_DIFFERENCES else []
        raise ResumeError(
            f"destination {url} holds an interrupted build with other options: {'; '.join(said)}; run it with the same "
            "options to go on, or discard it with --restart"
        )
    begun, asked = ([one.split or "no split" for one in record.splits] for record in (found, now))
    if begun != asked:
        raise _other_input(url, f"it had {' and '.join(begun)}, now it has {' and '.join(asked)}")
    for before, after, table in zip(found.splits, now.splits, tables, strict=True):
        if before.kinds != after.kinds:
            raise _other_input(url, f"the classes or the fields of {table.root} are others")
        if before.input != after.input:
            raise _other_input(url, _example(before, after, table))
        if before.plan != after.plan:
            raise ResumeError(
                f"destination {url} holds an interrupted build whose shards another version of shardfeed has planned; "
                "finish it with that, or discard it with --restart"
            )


def sample_digests(table: SampleTable) -> UInt64Array:
    """Return uint64[n]: a digest of what each sample is by name, place and values."""
    count = len(table)
    digests = np.fromiter(
        (xxhash.xxh3_64_intdigest(table.names.encoded(row)) for row in range(count)), np.uint64, count
    )
    digests = _mixed(digests, "label", table.labels)
    if table.keys is not None:
        digests = _mixed(digests, "key", _text_digests(table.keys))
    for field, places in table.stored.items():
        digests = _mixed(digests, f"{field}.size", places.sizes)
        if places.offsets is not None:
            digests = _mixed(digests, f"{field}.offset", places.offsets)
        digests = _mixed(digests, f"{field}.changed", _changes(places, table.root))
    for field, column in table.values.items():
        digests = _mixed(digests, field, _text_digests(map(repr, column.to_pylist())))
    return digests


def _mixed(digests: UInt64Array, what: str, numbers: Any) -> UInt64Array:
    return draw(digests ^ np.uint64(derive_key(f"shards.input.{what}")), numbers)


def _text_digests(texts: Any) -> UInt64Array:
    return np.array([xxhash.xxh3_64_intdigest(os.fsencode(text)) for text in texts], np.uint64)


def _changes(places: Places, root: str) -> NDArray[np.int64]:
    """Return int64[n]: when the file of each sample was last changed (ns of Unix time); 0 behind a URL."""
    if is_remote(root):
        return np.zeros(len(places), np.int64)
    times = np.fromiter((_changed(root, file) for file in places.files), np.int64, len(places.files))
    return times if places.numbers is None else times[places.numbers]


def _changed(root: str, file: str) -> int:
    if is_remote(file):
        return 0
    try:
        return os.stat(os.path.join(root, local_path(file))).st_mtime_ns
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return -1


def _example(before: PlannedSplit, after: PlannedSplit, table: SampleTable) -> str:
    """Return a clause that says what is different about the samples of a split."""
    then, now = len(before.marks), len(after.marks)
    counts = "" if then == now else f"{then:,} samples then, {now:,} now; "
    shared = min(then, now)
    differ = np.flatnonzero(before.marks[:shared] != after.marks[:shared])
    row = int(differ[0]) if differ.size else shared
    if row < now:
        return f"{counts}the first that differs is {table.name(row)} in {table.root}"
    if then > now:
        return f"{counts}nothing stands after {table.name(now - 1)} in {table.root} any more"
    return f"one of the {now:,} samples of {table.root} differs"  # in a byte that is the same by accident, one in 256


def _other_input(url: str, how: str) -> ResumeError:
    return ResumeError(
        f"destination {url} holds an interrupted build of other input: {how}; bring the source back to go on, or "
        "discard the build with --restart"
    )


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
