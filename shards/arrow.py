"""Arrow shards: the samples as rows of an uncompressed Arrow IPC file, which pyarrow, polars and datasets read.

==================  ============  ==========================================================================
column              type          content
==================  ============  ==========================================================================
``key``             string        as in the index (`feeder.shards.index`), like those below
``source``          string
``label``           int64         in shards with labels
``C``               any           each other column field C
``F.width``         int32         of each image field F
``F.height``        int32
``F.format``        string        one of `feeder.shards.images.FORMATS`, or "" if unknown
``F.crc32c``        uint32        of each stored field F; null where a sample has none
``F``               large_binary  the bytes of each stored field F, the image last; null where there are none
==================  ============  ==========================================================================

The bytes come last, so that those of one field in a record batch lie side by side in its end: the index knows where
each one is, and it is read like one in a tar shard, without Arrow.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from feeder.shards.errors import ShardError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.images import FORMATS, UNKNOWN_FORMAT
from feeder.shards.index import ShardIndex, column_type
from feeder.shards.index import index_columns as arranged
from feeder.shards.samples import DigestedFile, PlaceColumns, Sample

ROWS_A_BATCH = 16  # ARCHITECTURE.md, "Arrow shards", says what was measured
_BYTES_A_BATCH = 64 << 20  # of stored fields: a batch is put together in memory
_ALIGNMENT = 8  # bytes: of the buffers of a batch, as pyarrow writes them
_VERSION = "1"


def _schema(fields: Mapping[str, Field]) -> pa.Schema:
    columns = [(name, field) for name, field in fields.items() if not field.stored and name != "label"]
    stored = _stored(fields)
    arrow = [pa.field("key", pa.string(), nullable=False), pa.field("source", pa.string(), nullable=False)]
    if "label" in fields:
        arrow.append(pa.field("label", pa.int64(), nullable=False))
    arrow += [pa.field(name, column_type(field)) for name, field in columns]
    for name in stored:
        required = name == "image"
        if fields[name].type == "image":
            arrow += [
                pa.field(f"{name}.{end}", kind, nullable=not required)
                for end, kind in (("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()))
            ]
        arrow.append(pa.field(f"{name}.crc32c", pa.uint32(), nullable=not required))
    arrow += [pa.field(name, pa.large_binary(), nullable=name != "image") for name in stored]
    return pa.schema(arrow, metadata={"shardfeed.arrow": _VERSION})


def _stored(fields: Mapping[str, Field]) -> list[str]:
    """Return the stored fields in the order of their bytes: the image last."""
    return sorted((name for name, field in fields.items() if field.stored), key=lambda name: name == "image")


class ArrowWriter:
    """Writes an Arrow shard; see `feeder.shards.formats.ShardWriter`. Holds the samples of one record batch."""

    def __init__(self, file: DigestedFile, fields: Mapping[str, Field]) -> None:
        self._file = file
        self._fields = fields
        self._stored = _stored(fields)
        self._schema = _schema(fields)
        options = pa.ipc.IpcWriteOptions(compression=None)
        self._writer = pa.ipc.new_file(file, self._schema, options=options)
        self._waiting: list[Sample] = []
        self._waiting_bytes = 0
        self._places = PlaceColumns(self._stored)

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        size = sum(map(len, sample.stored.values()))
        if self._waiting and self._waiting_bytes + size > _BYTES_A_BATCH:
            self._write_batch()
        self._waiting.append(sample)
        self._waiting_bytes += size
        if len(self._waiting) == ROWS_A_BATCH:
            self._write_batch()

    def close(self) -> dict[str, list[int]]:
        """Write what is left; return where the bytes of each field lie."""
        if self._waiting:
            self._write_batch()
        self._writer.close()
        return self._places.columns

    def _write_batch(self) -> None:
        samples = self._waiting
        crcs: dict[str, list[int | None]] = {
            name: [None if (data := s.stored.get(name)) is None else google_crc32c.value(data) for s in samples]
            for name in self._stored
        }
        columns = self._columns(samples, crcs)
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        end = self._file.tell()
        for name in reversed(self._stored):
            end = self._place(name, samples, crcs[name], end)
        self._waiting, self._waiting_bytes = [], 0

    def _columns(self, samples: list[Sample], crcs: dict[str, list[int | None]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            "key": [sample.key for sample in samples],
            "source": [sample.source for sample in samples],
            "label": [sample.label for sample in samples],
        }
        for name, field in self._fields.items():
            if field.type == "image":
                headers = [sample.headers.get(name) for sample in samples]
                for part in ("width", "height", "format"):
                    columns[f"{name}.{part}"] = [header and getattr(header, part) for header in headers]
            if field.stored:
                columns[f"{name}.crc32c"] = crcs[name]
                columns[name] = [sample.stored.get(name) for sample in samples]
            elif name != "label":
                columns[name] = [sample.values[name] for sample in samples]
        return columns

    def _place(self, name: str, samples: list[Sample], crcs: list[int | None], end: int) -> int:
        """Note where the bytes of a field lie, in a batch in which they end at `end`; return where their column starts.

        A column is its validity (if a value is null), its n + 1 offsets of 64 bits, and its bytes, each of them padded.
        """
        sizes = [len(sample.stored.get(name) or b"") for sample in samples]
        offset = start = end - _padded(sum(sizes))
        for size, crc in zip(sizes, crcs, strict=True):
            if crc is None:
                self._places.add_absent(name)
            else:
                self._places.add(name, offset, size, crc)
            offset += size
        validity = _padded((len(samples) + 7) // 8) if None in crcs else 0
        return start - _padded(8 * (len(samples) + 1)) - validity


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def index_columns(data: bytes, fields: Mapping[str, Field], where: str) -> dict[str, pa.Array]:
    """Return the columns of the index of an Arrow shard, in their order, read from the shard itself.

    Raises:
        ShardError: the shard is cut, damaged, or not one that a build writes.
    """
    buffer = pa.py_buffer(data)
    try:
        with pa.ipc.open_file(buffer) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ShardError(f"{where} is not a whole Arrow file ({error}); copy it again from its origin") from error
    if not table.schema.equals(_schema(fields)):
        names = ", ".join(map(repr, table.schema.names))
        raise ShardError(f"{where} has the columns {names}, which are not those of a shard; build it again")
    columns: dict[str, Any] = {
        name: table.column(name).combine_chunks() for name in table.schema.names if name not in _stored(fields)
    }
    for name in _stored(fields):
        columns |= _places(table.column(name), buffer.address, name)
        columns[f"{name}.crc32c"] = columns[f"{name}.crc32c"].fill_null(0)
        if fields[name].type == "image":
            formats = columns[f"{name}.format"].to_pylist()
            columns[f"{name}.format"] = [FORMATS.index(f) if f in FORMATS else UNKNOWN_FORMAT for f in formats]
            for part in ("width", "height"):
                columns[f"{name}.{part}"] = columns[f"{name}.{part}"].fill_null(0)
    return arranged(fields, columns)


def _places(column: pa.ChunkedArray, address: int, name: str) -> dict[str, Any]:
    """Return the offsets and sizes of a stored field, in a file whose first byte is at a memory address."""
    offsets, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for chunk in column.chunks:
        _, starts, content = chunk.buffers()
        bounds = np.frombuffer(starts, np.int64, len(chunk) + 1)
        valid = np.asarray(chunk.is_valid())
        offsets.append(np.where(valid, bounds[:-1] + (content.address - address if content is not None else 0), 0))
        sizes.append(np.where(valid, np.diff(bounds), ABSENT))
    return {f"{name}.offset": np.concatenate(offsets), f"{name}.size": np.concatenate(sizes)}


def check_rows(
    data: bytes, index: ShardIndex, fields: Mapping[str, Field], where: str, *, complete: bool, own: bool = True
) -> Iterator[str]:
    """Yield a problem if the rows of an Arrow shard are not those of its index; see `feeder.shards.formats`."""
    try:
        columns = index_columns(data, fields, where)
    except ShardError as error:
        yield str(error)
        return
    if different := sorted(columns.keys() ^ set(index.names)):
        yield f"{where} or its index lacks the column {different[0]!r}, which the other has"
        return
    if not complete:
        kept = set(index.values("key"))
        rows = pa.array([row for row, key in enumerate(columns["key"].to_pylist()) if key in kept], pa.int64())
        columns = {name: column.take(rows) for name, column in columns.items()}
    if (count := len(columns["key"])) != index.num_samples:
        yield f"{where} holds {count} samples, but its index has {index.num_samples}"
        return
    for name, column in columns.items():
        for row, (got, expected) in enumerate(zip(column.to_pylist(), index.values(name), strict=True)):
            if got != expected and not (got != got and expected != expected):  # NaN is NaN
                yield f"{where} holds {got!r} as {name} of sample {row} where its index has {expected!r}"
                return
