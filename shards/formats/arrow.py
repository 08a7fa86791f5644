"""Arrow shards: the samples as rows of an uncompressed Arrow IPC file, which pyarrow, polars and datasets read.

==================  ============  ==========================================================================
column              type          content
==================  ============  ==========================================================================
``key``             string        as in the index (`feeder.shards.formats.index`), like those below
``source``          string
``label``           int64         in shards with labels
``C``               any           each other column field C
``F.width``         int32         of each image field F
``F.height``        int32
``F.format``        string        one of `feeder.shards.images.headers.FORMATS`, or "" if unknown
``F.crc32c``        uint32        of each stored field F; null where a sample has none
``F``               large_binary  the bytes of each stored field F, the image last; null where there are none
==================  ============  ==========================================================================

The bytes come last, so that those of one field in a record batch lie side by side in its end: the index knows where
each one is, and it is read like one in a tar shard, without Arrow.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feeder.errors import FeederError
from feeder.shards.errors import ShardError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.formats.index import ShardIndex, column_type
from feeder.shards.formats.index import index_columns as arranged
from feeder.shards.formats.samples import DigestedFile, PlaceColumns, Sample
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.images.headers import FORMATS, UNKNOWN_FORMAT

ROWS_A_BATCH = 16  # ARCHITECTURE.md, "Arrow shards", says what was measured
_BYTES_A_BATCH = 64 << 20  # of stored fields: a batch is put together in memory
_ALIGNMENT = 8  # bytes: of the buffers of a batch, as pyarrow writes them
_VERSION = "1"
_MAGIC = b"ARROW1\0\0"  # begins an Arrow IPC file; what follows is a stream, and then the footer
_FOOTER_END = 10  # bytes that end the file: the length of the footer, and the magic once more


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
    """Writes an Arrow shard; see `feeder.shards.formats.known.ShardWriter`. Holds the samples of one record batch."""

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


class _Stream(io.RawIOBase):
    """A shard read onwards, for pyarrow; it remembers its last read, in which the buffers of a batch lie."""

    def __init__(self, shard: SequentialShard) -> None:
        super().__init__()
        self._shard = shard
        self._position = len(_MAGIC)
        self.last = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        rest = self._shard.size_bytes - self._position
        wanted = rest if size is None or size < 0 else min(size, rest)  # a damaged length must not ask for memory
        self.last = self._shard.read(self._position, wanted)
        self._position += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._position

    def offset(self, buffer: pa.Buffer) -> int:
        """Return where in the shard a buffer starts that lies in the last read."""
        return int(buffer.address) - int(pa.py_buffer(self.last).address) + self._position - len(self.last)


def index_batches(shard: SequentialShard, fields: Mapping[str, Field]) -> Iterator[dict[str, pa.Array]]:
    """Yield the columns of the index of an Arrow shard, in their order, one record batch of the shard at a time.

    The shard is read onwards, without its footer: of one that is cut, the batches before the cut are yielded.

    Raises:
        ShardError: the shard is cut, damaged, or not one that a build writes.
    """
    try:
        stream = _Stream(shard)
        if shard.read(0, len(_MAGIC)) != _MAGIC:
            raise pa.ArrowInvalid("it does not begin as one does")
        with pa.ipc.open_stream(pa.PythonFile(stream, mode="r")) as reader:
            if not reader.schema.equals(_schema(fields)):
                names = ", ".join(map(repr, reader.schema.names))
                raise ShardError(
                    f"{shard.where} has the columns {names}, which are not those of a shard; build it again"
                )
            for batch in reader:
                batch.validate(full=True)
                yield _batch_columns(batch, fields, stream)
        _check_footer(shard, stream.tell())
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, FeederError):
            raise
        raise ShardError(f"{shard.where} is not a whole Arrow file ({error}); copy it again from its origin") from error


def _check_footer(shard: SequentialShard, start: int) -> None:
    """Raise `ValueError` unless a footer begins at an offset and fills the rest of the file."""
    footer = shard.read(start, max(0, shard.size_bytes - start))
    length = int.from_bytes(footer[-_FOOTER_END : -_FOOTER_END + 4], "little")
    if not footer.endswith(_MAGIC.rstrip(b"\0")) or length != len(footer) - _FOOTER_END:
        raise ValueError(f"no footer stands from byte {start} to its end")


def index_columns(shard: SequentialShard, fields: Mapping[str, Field]) -> dict[str, pa.Array]:
    """Return the columns of the index of an Arrow shard, in their order; errors as in `index_batches`."""
    batches = list(index_batches(shard, fields))
    if not batches:
        raise ShardError(f"{shard.where} holds no samples; copy it again from its origin")
    return {name: pa.concat_arrays([batch[name] for batch in batches]) for name in batches[0]}


def _batch_columns(batch: pa.RecordBatch, fields: Mapping[str, Field], stream: _Stream) -> dict[str, pa.Array]:
    """Return the columns of the index for one record batch, which was just read."""
    stored = _stored(fields)
    columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names if name not in stored}
    for name in stored:
        columns |= _places(batch.column(name), name, stream)
        columns[f"{name}.crc32c"] = columns[f"{name}.crc32c"].fill_null(0)
        if fields[name].type == "image":
            formats = columns[f"{name}.format"].to_pylist()
            columns[f"{name}.format"] = [FORMATS.index(f) if f in FORMATS else UNKNOWN_FORMAT for f in formats]
            for part in ("width", "height"):
                columns[f"{name}.{part}"] = columns[f"{name}.{part}"].fill_null(0)
    return arranged(fields, columns)


def _places(column: pa.Array, name: str, stream: _Stream) -> dict[str, Any]:
    """Return the offsets and sizes of a stored field."""
    _, starts, content = column.buffers()
    bounds = np.frombuffer(starts, np.int64, len(column) + 1)
    valid = np.asarray(column.is_valid())
    first = stream.offset(content) if content is not None else 0
    return {
        f"{name}.offset": np.where(valid, bounds[:-1] + first, 0),
        f"{name}.size": np.where(valid, np.diff(bounds), ABSENT),
    }


def check_rows(
    shard: SequentialShard, index: ShardIndex, fields: Mapping[str, Field], *, dropped: int, own: bool = True
) -> Iterator[str]:
    """Yield a problem if the rows of an Arrow shard are not those of its index; see `feeder.shards.formats.known`."""
    kept = pa.array(index.values("key") if dropped else [], pa.string())
    found = total = 0
    difference: str | None = None
    try:
        for batch in index_batches(shard, fields):
            if different := sorted(batch.keys() ^ set(index.names)):
                yield f"{shard.where} or its index lacks the column {different[0]!r}, which the other has"
                return
            total += len(batch["key"])
            columns = batch
            if dropped:
                rows = pc.is_in(batch["key"], value_set=kept)
                columns = {name: column.filter(rows) for name, column in batch.items()}
            difference = difference or _different(columns, index, found)
            found += len(columns["key"])
    except ShardError as error:
        yield str(error)
        return
    if found != index.num_samples:
        yield f"{shard.where} holds {found} samples, but its index has {index.num_samples}"
    elif difference:
        yield f"{shard.where} {difference}"
    elif total - found != dropped:
        yield (
            f"{shard.where} holds {total - found} samples that its index leaves out, but the manifest says {dropped}"
        )


def _different(columns: Mapping[str, pa.Array], index: ShardIndex, first: int) -> str | None:
    """Say where columns differ from the rows of an index from `first` on, as far as it has them."""
    count = min(len(columns["key"]), index.num_samples - first)
    for name, column in columns.items():
        got, expected = column[:count], index.column(name).slice(first, count)
        if got.equals(expected):
            continue
        for row, (one, other) in enumerate(zip(got.to_pylist(), expected.to_pylist(), strict=True), first):
            if one != other and not (one != one and other != other):  # NaN is NaN
                return f"holds {one!r} as {name} of sample {row} where its index has {other!r}"
    return None
