"""What a repair writes, by its plan; `feeder.shards.repairing.repair` says what it promises."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from feeder.shards.building.packing import ShardTask, sample_ends, write_shard
from feeder.shards.changing.claim import nothing_to_check
from feeder.shards.changing.generations import Change
from feeder.shards.columns.consolidated import ColumnWriter, consolidated_types, place_columns
from feeder.shards.dataset.contents import generation_name
from feeder.shards.dataset.manifest import MANIFEST_NAME, ColumnFile, Manifest, encode_manifest, sealed
from feeder.shards.dataset.shard_table import ShardRecord, segment_starts, shard_table
from feeder.shards.destinations.protocol import Destination
from feeder.shards.errors import ShardError, ShardsError
from feeder.shards.fields import Field
from feeder.shards.formats.index import index_name, parse_index
from feeder.shards.images.headers import MAX_PIXELS
from feeder.shards.names import PathTable
from feeder.shards.reading.opening import load_column, load_index
from feeder.shards.repairing.findings import Columns, LostSample, ShardFinding
from feeder.shards.repairing.found_shards import newest_generation
from feeder.shards.storage import Folder
from feeder.shards.table import Places, SampleTable

LOST_NAME = "lost-samples.jsonl"

_DAMAGED = ".damaged"  # ends the name of an earlier generation's manifest that cannot be read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What is wrong with a dataset.

    Attributes:
        folder, files, manifest: of the dataset; `manifest` in the place of one that was lost.
        fields: what its shards hold.
        manifest_sentences: what is wrong with its manifest; empty if nothing is.
        manifest_is_new: it is not the one that was lost.
        older: the newest earlier generation that can be read.
        findings: of each shard.
        generations: manifests of earlier generations to write again; None: to be set aside.
        columns: of damaged consolidated columns, whether indexes have what they held.
        column_sentences: what is wrong with them.
    """

    folder: Folder
    files: Mapping[str, int]
    manifest: Manifest
    fields: Mapping[str, Field]
    manifest_sentences: list[str]
    manifest_is_new: bool
    older: Manifest | None
    findings: list[ShardFinding]
    generations: Mapping[str, bytes | None]
    columns: Mapping[str, bool]
    column_sentences: list[str]

    @property
    def sentences(self) -> list[str]:
        generations = [
            f"{self.folder.where(name)} cannot be read: "
            + ("it is made again, byte for byte" if data is not None else f"it is set aside as {name}{_DAMAGED}")
            for name, data in self.generations.items()
        ]
        shards = [finding.sentence for finding in self.findings if finding.sentence]
        return [*self.manifest_sentences, *generations, *shards, *self.column_sentences]

    @property
    def beyond(self) -> list[str]:
        return [finding.sentence for finding in self.findings if finding.action == "leave"]

    @property
    def has_work(self) -> bool:
        """Whether there is anything to be done."""
        return len(self.sentences) > len(self.beyond)

    @property
    def lost(self) -> list[LostSample]:
        return [sample for finding in self.findings for sample in finding.lost]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """bool[n], which samples of the manifest stay."""
        return np.concatenate([finding.kept for finding in self.findings])


def write_repair(plan: RepairPlan, out: Destination, check: Callable[[], None] = nothing_to_check) -> Manifest:
    """Do what a plan says; return the manifest of the dataset then.

    Args:
        plan: what is to be done.
        out: the dataset itself, or another folder.
        check: raises `DestinationError` if the claim on the dataset was lost.

    Raises:
        DestinationError: the claim was lost, or it cannot be written.
        ShardError: a shard has changed since it was examined.
        StorageError: the storage does not give a file.
    """
    return _Repair(plan, out, check).run()


class _Repair:
    """Does what a plan says, into the dataset itself or into another folder."""

    def __init__(self, plan: RepairPlan, out: Destination, check: Callable[[], None]) -> None:
        self._plan = plan
        self._out = out
        self._check = check
        self._new: list[str] = []  # files that no generation names yet
        changes = any(finding.action in ("index", "rewrite", "remove") for finding in plan.findings)
        self._generation = plan.manifest.generation
        if changes or not plan.kept.all():
            taken = newest_generation(plan.files) if plan.manifest_is_new else 0
            self._generation = max(self._generation, taken) + 1

    def run(self) -> Manifest:
        """Write what the plan says; return the manifest of the dataset then."""
        plan = self._plan
        if plan.lost:
            self._list_lost()
        try:
            records = [record for finding in plan.findings if (record := self._write(finding)) is not None]
            columns = self._columns()
            manifest = self._settled(records, columns)
            self._out.flush()
            self._check()
        except BaseException:
            with contextlib.suppress(ShardsError):
                self._check()
                self._out.remove(self._new)
            raise
        for name, data in plan.generations.items():
            if data is None:
                self._out.put(name + _DAMAGED, plan.folder.read(name))
                self._out.remove([name])
            else:
                self._out.put(name, data)
        self._commit(manifest)
        return manifest

    def _commit(self, manifest: Manifest) -> None:
        plan = self._plan
        self._check()
        if not plan.manifest_is_new and manifest != plan.manifest:
            self._out.put(generation_name(plan.manifest.generation), encode_manifest(plan.manifest))
        if manifest != plan.manifest or plan.manifest_sentences:
            self._out.put(MANIFEST_NAME, encode_manifest(manifest))
        self._out.flush()

    def _settled(self, records: list[ShardRecord], columns: dict[str, ColumnFile]) -> Manifest:
        """Return the manifest of what was written."""
        plan = self._plan
        held = {*plan.fields, *columns}
        fields = {name: field for name, field in plan.manifest.fields.items() if name in held}
        changed = dataclasses.replace(plan.manifest, shards=shard_table(records), columns=columns, fields=fields)
        if plan.manifest_is_new and "label" in fields:
            changed = dataclasses.replace(changed, classes=self._classes())
        if sealed(changed) == plan.manifest:
            return plan.manifest
        parent: str | None
        if not plan.manifest_is_new:
            generation, parent = plan.manifest.generation + 1, plan.manifest.digest
        else:
            generation, parent = self._generation, None
            if plan.older is not None and plan.older.generation + 1 == generation:
                parent = plan.older.digest
        return sealed(dataclasses.replace(changed, generation=generation, parent=parent))

    # shards

    def _write(self, finding: ShardFinding) -> ShardRecord | None:
        """Write what a shard needs; return its record, None if it leaves the dataset."""
        record = finding.record
        if finding.action == "remove":
            return None
        if finding.action == "rewrite":
            return self._rewrite(finding)
        if finding.action not in ("restore", "index"):
            return record
        if finding.action == "restore":
            self._out.put(record.index or index_name(record.name), finding.data)
            return record
        name = self._named(record.name, "idx.arrow")
        self._new.append(name)
        self._out.put(name, finding.data)
        return dataclasses.replace(
            record,
            samples=len(finding.columns["key"]),
            digest=finding.digest,
            size_bytes=finding.size_bytes,
            index=name,
            index_digest=xxhash.xxh3_128_hexdigest(finding.data),
            dropped=finding.dropped,
            segments=segment_starts(sample_ends(finding.columns), finding.size_bytes) if record.segments else (),
        )

    def _rewrite(self, finding: ShardFinding) -> ShardRecord:
        """Write the samples of a damaged shard that are right into a new one."""
        plan = self._plan
        name = self._named(finding.record.name, plan.manifest.format)
        self._new += [name, index_name(name)]
        task = ShardTask(
            folder=self._out,
            name=name,
            format=plan.manifest.format,
            table=_samples(plan, finding),
            max_pixels=MAX_PIXELS,  # not asked with on_error="keep"
            on_error="keep",
        )
        written = write_shard(task)
        if written.shard is None or written.bad:
            raise ShardError(
                f"shard {plan.folder.where(finding.record.name)} changed while it was repaired; run the command again "
                "when it is at rest"
            )
        return written.shard

    def _named(self, name: str, extension: str) -> str:
        change = Change(self._plan.folder, self._out, self._plan.manifest)
        change.generation = self._generation
        return change.named(name, extension)

    # columns

    def _columns(self) -> dict[str, ColumnFile]:
        """Write the consolidated columns that are damaged, or hold samples that are lost; return all that there are."""
        plan = self._plan
        kept = plan.kept
        columns = {name: column for name, column in plan.manifest.columns.items() if plan.columns.get(name, True)}
        stale = {name for name in columns if name in plan.columns or not kept.all()}
        if not stale:
            return columns
        types = consolidated_types(plan.fields)

        def write(place: Path) -> dict[str, ColumnFile]:
            written = {}
            for name in sorted(stale):
                if name in plan.columns:
                    runs, kind = self._runs_of_indexes(name), types[name]
                else:
                    column = load_column(plan.folder, plan.manifest, name)
                    runs, kind = _filtered(column, kept), column.type
                with ColumnWriter(name, kind, place) as writer:
                    for run in runs:
                        writer.append(run)
                    written[name] = writer.finish()
            return written

        before = set(plan.files)
        written = place_columns(self._out, write)
        self._new += [column.file for column in written.values() if column.file not in before]
        return columns | written

    def _runs_of_indexes(self, name: str) -> Iterator[pa.Array]:
        """Yield a column from the indexes as they are after the repair."""
        for number, finding in enumerate(self._plan.findings):
            columns = self._index_columns(number, finding)
            if columns is not None:
                yield columns[name]

    def _index_columns(self, number: int, finding: ShardFinding) -> Columns | None:
        if finding.action in ("remove", "leave"):
            return None
        if finding.columns:
            return finding.columns
        if finding.action == "restore":
            restored, _ = parse_index(finding.data, finding.record.name)
            return {name: restored.column(name) for name in restored.names}
        index = load_index(self._plan.folder, self._plan.manifest, number)
        return {name: index.column(name) for name in index.names}

    def _classes(self) -> tuple[str, ...]:
        """Return the class names, with numbers for the labels beyond them that shards alone told of."""
        classes = self._plan.manifest.classes
        most = max((int(pc.max(run).as_py()) for run in self._runs_of_indexes("label") if len(run)), default=-1)
        return classes + tuple(f"class-{label}" for label in range(len(classes), most + 1))

    # what is lost

    def _list_lost(self) -> None:
        """Add the samples that are lost to the list of the dataset, if they are not in it."""
        plan = self._plan
        lines: dict[bytes, None] = {}
        if LOST_NAME in plan.files:
            lines |= dict.fromkeys(plan.folder.read(LOST_NAME).splitlines())
        for sample in plan.lost:
            document: dict[str, Any] = {"generation": self._generation, **dataclasses.asdict(sample)}
            lines[json.dumps(document, ensure_ascii=True).encode("ascii")] = None
        self._out.put(LOST_NAME, b"".join(line + b"\n" for line in lines))


def _filtered(column: pa.ChunkedArray, kept: NDArray[np.bool_]) -> Iterator[pa.Array]:
    start = 0
    for chunk in column.chunks:
        yield chunk.filter(pa.array(kept[start : start + len(chunk)]))
        start += len(chunk)


def _samples(plan: RepairPlan, finding: ShardFinding) -> SampleTable:
    """Return the samples of a shard that are right as a table of places in it."""
    columns, name = finding.columns, finding.record.name
    count = len(columns["key"])
    fields = plan.fields
    return SampleTable(
        root=plan.folder.url,
        names=PathTable(columns["source"].to_pylist()),
        keys=PathTable(columns["key"].to_pylist()),
        labels=np.asarray(columns["label"]) if "label" in fields else np.full(count, -1, np.int64),
        classes=plan.manifest.classes,
        fields=fields,
        stored={
            field: Places(
                files=PathTable([name]),
                numbers=np.zeros(count, np.int64),
                offsets=np.asarray(columns[f"{field}.offset"]),
                sizes=np.asarray(columns[f"{field}.size"]),
            )
            for field in fields
            if fields[field].stored
        },
        values={field: columns[field] for field in fields if not fields[field].stored and field != "label"},
    )
