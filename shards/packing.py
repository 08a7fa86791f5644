"""Writing one shard: images checked, packed side by side, indexed, and put in place whole. Runs in worker processes.

The shard comes first, then the list of its bad samples if there are any, then its index: the record that the shard is
finished (`feeder.shards.resuming`). Of a shard without a good sample there is the list alone.
"""

import dataclasses
import os
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from feeder.shards.bad_samples import BadImage, bad_lines, bad_list_name
from feeder.shards.destinations.protocol import Destination
from feeder.shards.errors import BadImageError, SourceError
from feeder.shards.fetching import Fetched, fetch
from feeder.shards.formats import SHARD_FORMATS
from feeder.shards.images import FORMATS, NO_HEADER, UNKNOWN_FORMAT, ImageHeader, check_image, parsed_header
from feeder.shards.index import encode_index, index_columns, index_name
from feeder.shards.names import readable
from feeder.shards.recoding import FILTERED, NO_RULES, ImageRules, apply_to_sample
from feeder.shards.samples import DigestedFile, Sample
from feeder.shards.shard_table import ShardRecord, segment_starts
from feeder.shards.table import SampleTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """What one shard is to be made of.

    Attributes:
        folder, name: where it goes; the name has its split before it, as in ``train/shard-000000.tar``.
        format: its name in `feeder.shards.formats.SHARD_FORMATS`.
        table: its samples, in order.
        max_pixels: images with more are bad.
        images: what is done to images, and which are left out.
        on_error: what becomes of bad samples: ``"skip"`` leaves them out, ``"keep"`` takes them as they are where their
            bytes can be read, ``"fail"`` raises on the first. Samples that ``images`` filters are left out anyway.
    """

    folder: Destination
    name: str
    format: str
    table: SampleTable
    max_pixels: int
    images: ImageRules = NO_RULES
    on_error: str = "skip"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A shard in place, or None where no sample was good and nothing was written; and what was set aside."""

    shard: ShardRecord | None
    bad: list[BadImage]

    @property
    def planned(self) -> int:
        """The samples that the plan put into it, good and bad."""
        return len(self.bad) + (self.shard.samples if self.shard else 0)


class Advance(Protocol):
    """Takes how far a build is: samples done since the last call, and the bytes that they have in the source."""

    def __call__(self, samples: int, /, *, size_bytes: int) -> None: ...


def no_progress(samples: int, /, *, size_bytes: int) -> None:
    """Take progress that nobody asked for."""


def write_shard(task: ShardTask, advance: Advance = no_progress) -> WrittenShard:
    """Write a shard, the list of its bad samples and its index.

    Raises:
        SourceError: a file has changed since the plan was made, or a sample is bad and the task says to fail.
        StorageError: the machine or the mount fails, not one file.
        DestinationError: the shard cannot be written.
    """
    folder, name = task.folder, task.name
    try:
        with folder.staged(name) as file:
            packer = _Packer(DigestedFile(file), task)
            for row, fetched in enumerate(fetch(task.table)):
                packer.add(row, fetched)
                advance(1, size_bytes=sum(len(data) for data in fetched.values() if isinstance(data, bytes)))
            columns = packer.close()
            if not packer.samples:
                raise _NothingGoodError(packer.bad)
    except _NothingGoodError as nothing:
        folder.put(bad_list_name(name), bad_lines(nothing.bad))
        return WrittenShard(shard=None, bad=nothing.bad)
    if packer.bad:
        folder.put(bad_list_name(name), bad_lines(packer.bad))
    digest = packer.file.hexdigest()
    record = ShardRecord(
        name=name.rpartition("/")[2],
        samples=packer.samples,
        size_bytes=packer.file.tell(),
        digest=digest,
        index_digest=write_index(folder, name, columns, digest),
        segments=segment_starts(sample_ends(columns), packer.file.tell()),
    )
    return WrittenShard(shard=record, bad=packer.bad)


class _NothingGoodError(Exception):
    """No sample of a shard is good: there will be no shard."""

    def __init__(self, bad: list[BadImage]) -> None:
        super().__init__()
        self.bad = bad


def sample_ends(columns: dict[str, pa.Array]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return int64[n]: where the last byte of each sample ends in its shard, by the columns of the shard's index."""
    # A field of values may be called x.offset, too; only what is stored has a CRC-32C.
    stored = [name.removesuffix(".crc32c") for name in columns if name.endswith(".crc32c")]
    stored = [name for name in stored if {f"{name}.offset", f"{name}.size"} <= columns.keys()]
    ends = [
        np.asarray(columns[f"{name}.offset"], np.int64) + np.maximum(np.asarray(columns[f"{name}.size"], np.int64), 0)
        for name in stored
    ]
    return np.maximum.accumulate(np.maximum.reduce(ends))


def write_index(folder: Destination, shard: str, columns: dict[str, pa.Array], shard_digest: str) -> str:
    """Write the index of a shard beside it; return the index's own digest."""
    data = encode_index(columns, shard_digest)
    folder.put(index_name(shard), data)
    return xxhash.xxh3_128_hexdigest(data)


class _Packer:
    """Appends the samples of a task to a shard, and gathers the columns of its index and what is bad."""

    def __init__(self, file: DigestedFile, task: ShardTask) -> None:
        self.file = file
        self.samples = 0
        self.bad: list[BadImage] = []
        self._task = task
        self._table = table = task.table
        writer = SHARD_FORMATS[task.format].writer
        if writer is None:
            raise ValueError(f"format {task.format!r} is only adopted, never written")
        self._writer = writer(file, table.fields)
        self._images = [name for name, field in table.fields.items() if field.type == "image"]
        self._values = {name: column.to_pylist() for name, column in table.values.items()}
        headers = [f"{name}.{part}" for name in self._images for part in ("width", "height", "format")]
        labels = ["label"] if table.labelled else []
        self._columns: dict[str, list[Any]] = {name: [] for name in ("key", "source", *headers, *labels, *self._values)}

    def add(self, row: int, fetched: Fetched) -> None:
        """Append a sample, or set it aside."""
        table = self._table
        try:
            stored, headers = self._checked(fetched)
        except BadImageError as error:
            self.bad.append(self._set_aside(row, error))
            return
        sample = Sample(
            key=table.key(row),
            source=table.name(row),
            stored=stored,
            headers=headers,
            label=int(table.labels[row]),
            values={name: column[row] for name, column in self._values.items()},
        )
        self._writer.add(sample)
        self.samples += 1
        self._note(sample)

    def close(self) -> dict[str, pa.Array]:
        """Write what is left of the shard; return the columns of its index, in their order."""
        return index_columns(self._table.fields, self._columns | dict(self._writer.close()))

    def _checked(self, fetched: Fetched) -> tuple[dict[str, bytes], dict[str, ImageHeader]]:
        """Return the bytes of each field and the headers of images, or raise `BadImageError`."""
        stored, headers = {}, {}
        for name, data in fetched.items():
            try:
                if isinstance(data, BadImageError):
                    raise data
                if name in self._images:
                    headers[name] = self._header(data)
            except BadImageError as error:
                raise error if name == "image" else BadImageError(error.cause, f"its {name}: {error.reason}") from error
            stored[name] = data
        if "image" not in stored:
            raise BadImageError("missing", "it has no image")
        return self._ruled(stored, headers)

    def _ruled(
        self, stored: dict[str, bytes], headers: dict[str, ImageHeader]
    ) -> tuple[dict[str, bytes], dict[str, ImageHeader]]:
        """Return the sample's fields and headers after the rules for images, or raise `BadImageError`."""
        try:
            images, headers = apply_to_sample(self._task.images, {name: stored[name] for name in headers}, headers)
        except BadImageError as error:
            if self._task.on_error != "keep" or error.cause in FILTERED:
                raise
            return stored, headers
        return stored | images, headers

    def _header(self, image: bytes) -> ImageHeader:
        if self._task.on_error == "keep":
            return parsed_header(image)
        return check_image(image, self._task.max_pixels)

    def _note(self, sample: Sample) -> None:
        columns = self._columns
        columns["key"].append(sample.key)
        columns["source"].append(sample.source)
        for name in self._images:
            header = sample.headers.get(name, NO_HEADER)
            columns[f"{name}.width"].append(header.width)
            columns[f"{name}.height"].append(header.height)
            columns[f"{name}.format"].append(FORMATS.index(header.format) if header.format else UNKNOWN_FORMAT)
        if "label" in columns:
            columns["label"].append(sample.label)
        for name, value in sample.values.items():
            columns[name].append(value)

    def _set_aside(self, row: int, error: BadImageError) -> BadImage:
        name = self._table.name(row)
        if self._task.on_error == "fail" and error.cause not in FILTERED:
            path = os.path.join(readable(self._table.root), name)
            raise SourceError(
                f"bad image {path}: {error.reason}; repair or remove it, or set bad images aside with --on-error skip"
            ) from error
        return BadImage(source=name, cause=error.cause, reason=error.reason)
