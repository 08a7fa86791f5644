"""Arrow shards: the samples as rows of an uncompressed Arrow IPC file, which pyarrow, polars and datasets read.

==================  ============  ===========================================================
column              type          content
==================  ============  ===========================================================
``key``             string        as in the index (`feeder.shards.index`), like those below
``source``          string
``label``           int64         in shards with labels
``image.width``     int32
``image.height``    int32
``image.format``    string        one of `feeder.shards.images.FORMATS`
``image.crc32c``    uint32
``image``           large_binary  the encoded image
==================  ============  ===========================================================

Nothing is null. The images come last, so that those of a record batch are its last bytes and lie side by side: the
index knows where each one is, and it is read like one in a tar shard, without Arrow.
"""

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from feeder.shards.errors import ShardError
from feeder.shards.images import FORMATS
from feeder.shards.index import ShardIndex, image_columns
from feeder.shards.samples import DigestedFile, Sample

ROWS_A_BATCH = 16  # ARCHITECTURE.md, "Arrow shards", says what was measured
_BYTES_A_BATCH = 64 << 20  # of images: a batch is put together in memory
_ALIGNMENT = 8  # bytes: of the buffers of a batch, as pyarrow writes them
_VERSION = "1"


def _schema(labelled: bool) -> pa.Schema:
    types = {
        "key": pa.string(),
        "source": pa.string(),
        **({"label": pa.int64()} if labelled else {}),
        "image.width": pa.int32(),
        "image.height": pa.int32(),
        "image.format": pa.string(),
        "image.crc32c": pa.uint32(),
        "image": pa.large_binary(),
    }
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    return pa.schema(fields, metadata={"shardfeed.arrow": _VERSION})


class ArrowWriter:
    """Writes an Arrow shard; see `feeder.shards.formats.ShardWriter`. Holds the samples of one record batch."""

    def __init__(self, file: DigestedFile, labelled: bool) -> None:
        self._file = file
        self._schema = _schema(labelled)
        options = pa.ipc.IpcWriteOptions(compression=None)
        self._writer = pa.ipc.new_file(file, self._schema, options=options)
        self._waiting: list[tuple[Sample, int]] = []
        self._waiting_bytes = 0
        self._places: dict[str, list[int]] = {f"image.{column}": [] for column in ("offset", "size", "crc32c")}

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        if self._waiting and self._waiting_bytes + len(sample.image) > _BYTES_A_BATCH:
            self._write_batch()
        crc = google_crc32c.value(sample.image)
        self._waiting.append((sample, crc))
        self._waiting_bytes += len(sample.image)
        self._places["image.size"].append(len(sample.image))
        self._places["image.crc32c"].append(crc)
        if len(self._waiting) == ROWS_A_BATCH:
            self._write_batch()

    def close(self) -> dict[str, list[int]]:
        """Write what is left; return where each image lies."""
        if self._waiting:
            self._write_batch()
        self._writer.close()
        return self._places

    def _write_batch(self) -> None:
        samples = [sample for sample, _ in self._waiting]
        columns: dict[str, list[Any]] = {
            "key": [sample.key for sample in samples],
            "source": [sample.source for sample in samples],
            "label": [sample.label for sample in samples],
            "image.width": [sample.header.width for sample in samples],
            "image.height": [sample.header.height for sample in samples],
            "image.format": [sample.header.format for sample in samples],
            "image.crc32c": [crc for _, crc in self._waiting],
            "image": [sample.image for sample in samples],
        }
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        offset = self._file.tell() - self._waiting_bytes - -self._waiting_bytes % _ALIGNMENT
        for sample in samples:
            self._places["image.offset"].append(offset)
            offset += len(sample.image)
        self._waiting, self._waiting_bytes = [], 0


def index_columns(data: bytes, where: str) -> dict[str, pa.Array]:
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
    if all(not table.schema.equals(_schema(labelled)) for labelled in (False, True)):
        names = ", ".join(map(repr, table.schema.names))
        raise ShardError(f"{where} has the columns {names}, which are not those of a shard; build it again")
    offsets, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for images in table.column("image").chunks:
        _, starts, content = images.buffers()
        bounds = np.frombuffer(starts, np.int64, len(images) + 1)
        offsets.append(bounds[:-1] + (content.address - buffer.address))
        sizes.append(np.diff(bounds))
    columns = {name: table.column(name).combine_chunks() for name in table.schema.names if name != "image"}
    codes = [FORMATS.index(name) if name in FORMATS else len(FORMATS) for name in columns["image.format"].to_pylist()]
    columns |= {
        "image.offset": pa.array(np.concatenate(offsets), pa.int64()),
        "image.size": pa.array(np.concatenate(sizes), pa.int64()),
        "image.format": pa.array(codes, pa.uint8()),
    }
    order = ("key", "source", *image_columns("image"), "label")
    return {name: columns[name] for name in order if name in columns}


def check_rows(data: bytes, index: ShardIndex, where: str) -> Iterator[str]:
    """Yield a problem if the rows of an Arrow shard are not those of its index."""
    try:
        columns = index_columns(data, where)
    except ShardError as error:
        yield str(error)
        return
    if (rows := len(columns["key"])) != index.num_samples:
        yield f"{where} holds {rows} samples, but its index has {index.num_samples}"
        return
    if different := sorted(columns.keys() ^ set(index.names)):
        yield f"{where} or its index lacks the column {different[0]!r}, which the other has"
        return
    for name, column in columns.items():
        for row, (got, expected) in enumerate(zip(column.to_pylist(), index.values(name), strict=True)):
            if got != expected:
                yield f"{where} holds {got!r} as {name} of sample {row} where its index has {expected!r}"
                return
