"""The survey of a shard that others have written: one pass over its bytes, and all that an index needs of them.

A survey is an Arrow IPC file of one record batch, a row a sample, in the order of the shard:

====================================  ===========  =================================================================
column                                type         content
====================================  ===========  =================================================================
``key``                               string       the sample's name in the shard
``path``                              string       of image folders: the file
``P.offset``, ``P.size``, ``P.crc32c``             of each part P: as in an index; size −2 where a sample lacks it
``P.width``, ``P.height``, ``P.format``            of each part that is an image: as in an index
``P.content``                         large_binary of tar members that are values: their bytes
``=C``                                any          values of the column C: of MDS, and of the Parquet file beside a tar
====================================  ===========  =================================================================

The parts of a tar are its members by extension; those of MDS are its fields; an image folder has the part ``image``.
Surveys stand in the destination until the manifest is written, so an adoption that was interrupted goes on from them.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT
from feeder.shards.images import FORMATS, MAX_IMAGE_BYTES, NO_HEADER, UNKNOWN_FORMAT, ImageHeader, parsed_header
from feeder.shards.mds import MdsFields, MdsShard, decode_value, sample_key, walk_mds
from feeder.shards.member_fields import is_value, member_type
from feeder.shards.members import MAX_CONTENT_BYTES, gather_samples, split_name
from feeder.shards.names import readable
from feeder.shards.sequential import SequentialShard
from feeder.shards.storage import Folder, open_folder, staged_file
from feeder.shards.tar_walk import LOCAL_READ_BYTES, Member, TarFile, walk_tar

_VERSION = "1"
_PIECE_BYTES = MAX_CONTENT_BYTES  # of a member read at a time: values of the index are read again, and must be whole
_SIDECAR_COLUMNS = frozenset({"key", "status"})  # by which a Parquet file is known as img2dataset's
_AGAIN = "copy it again from its origin, or if it is still being written, run the command again when it is at rest"
VALUE = "="  # begins the names of columns of values


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SurveyTask:
    """One shard to look through.

    Attributes:
        root, name: where it lies.
        size_bytes: its size when it was found.
        out: the file for its survey.
        mds: of an MDS shard, its record and what its columns become.
        paths: of a group of an image folder, its files relative to the root; `labels` are theirs.
    """

    root: str
    name: str
    size_bytes: int
    out: str
    mds: tuple[MdsShard, MdsFields] | None = None
    paths: Sequence[str] = ()
    labels: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a survey file holds.

    Attributes:
        size_bytes, digest: of the shard; the digest is xxh3-128, and covers the files of a group one after another.
        table: its rows.
    """

    size_bytes: int
    digest: str
    table: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def parts(self) -> list[str]:
        """The names of its parts."""
        return [name.removesuffix(".crc32c") for name in self.table.schema.names if name.endswith(".crc32c")]

    @property
    def values(self) -> dict[str, pa.Array]:
        """The columns of values, by name."""
        names = [name for name in self.table.schema.names if name.startswith(VALUE)]
        return {name.removeprefix(VALUE): self.table.column(name) for name in names}

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers without nulls."""
        return np.asarray(self.table.column(name).to_numpy(zero_copy_only=False))


def survey(task: SurveyTask) -> None:
    """Look through a shard and write its survey. Runs in worker processes; holds one window and one sample at a time.

    Raises:
        SourceError: the shard is cut, compressed, damaged, or changes meanwhile.
        StorageError: the storage does not give its bytes.
        OSError: the survey cannot be written.
    """
    folder = open_folder(task.root)
    if task.paths:
        size_bytes, digest, columns = _survey_files(folder, task)
    else:
        try:
            shard = SequentialShard(folder, task.name)
        except FileNotFoundError as error:
            raise SourceError(f"{folder.where(task.name)} is missing; {_AGAIN}") from error
        if shard.size_bytes != task.size_bytes:
            raise _changed(shard.where, task.size_bytes, shard.size_bytes)
        columns = _survey_mds(shard, *task.mds) if task.mds else _survey_tar(shard, folder, task.name)
        size_bytes, digest = shard.size_bytes, shard.finish()
    metadata = {"survey": _VERSION, "name": task.name, "size_bytes": str(size_bytes), "digest": digest}
    batch = pa.record_batch(list(columns.values()), names=list(columns)).replace_schema_metadata(metadata)
    with staged_file(Path(task.out)) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def load_survey(path: Path, name: str, size_bytes: int) -> Survey | None:
    """Return the survey in a file; None if there is none, or not of a shard of this name and size."""
    try:
        data = path.read_bytes()
        with pa.ipc.open_file(io.BytesIO(data)) as reader:
            batch = reader.get_batch(0)
    except (FileNotFoundError, pa.ArrowException, ValueError):
        return None
    metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
    if metadata.get("survey") != _VERSION or metadata.get("name") != name or metadata["size_bytes"] != str(size_bytes):
        return None
    return Survey(size_bytes=size_bytes, digest=metadata["digest"], table=batch)


def _changed(where: str, expected: int, got: int) -> SourceError:
    return SourceError(f"{where} has {got} bytes, expected {expected}; {_AGAIN}")


class _Part:
    """Gathers the columns of one part, by row."""

    def __init__(self, *, image: bool) -> None:
        self.rows: list[int] = []
        self._columns: dict[str, list[int]] = {"offset": [], "size": [], "crc32c": []}
        self._image = image
        if image:
            self._columns |= {"width": [], "height": [], "format": []}

    def add(self, row: int, offset: int, data: bytes) -> None:
        self.rows.append(row)
        values = [offset, len(data), google_crc32c.value(data)]
        if self._image:
            header = parsed_header(data)
            values += [header.width, header.height, _format_number(header)]
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def arrays(self, name: str, count: int) -> Iterator[tuple[str, pa.Array]]:
        """Yield (column name, array) over all rows."""
        types = {"offset": "<i8", "size": "<i8", "crc32c": "<u4", "width": "<i4", "height": "<i4", "format": "u1"}
        absent = {"size": ABSENT, "format": UNKNOWN_FORMAT}
        for column, values in self._columns.items():
            array = np.full(count, absent.get(column, 0), types[column])
            array[self.rows] = values
            yield f"{name}.{column}", pa.array(array)


def _format_number(header: ImageHeader) -> int:
    return FORMATS.index(header.format) if header.format else UNKNOWN_FORMAT


# Tar -----------------------------------------------------------------------------------------------------------------


def _survey_tar(shard: SequentialShard, folder: Folder, name: str) -> dict[str, pa.Array]:
    """Return the columns of a tar archive, joined with the Parquet file that img2dataset puts beside it."""
    file = TarFile(shard.where, shard.size_bytes, shard.read, LOCAL_READ_BYTES)
    measured: dict[int, tuple[int, ImageHeader]] = {}

    def walk_and_measure() -> Iterator[Member]:
        for member in walk_tar(file):
            if (parts := split_name(member.name)) is not None:
                measured[member.offset] = _measured(shard, member, image=member_type(parts[1]) == "image")
            yield member

    samples = gather_samples(file, walk_and_measure(), shard.where, wanted=is_value)
    keys = pa.array([readable(key) for key in samples.keys], pa.string())
    columns: dict[str, pa.Array] = {"key": keys}
    for extension, sizes in samples.sizes.items():
        offsets = samples.offsets[extension]
        present = np.flatnonzero(sizes != ABSENT)
        found = [measured[offset] for offset in offsets[present].tolist()]
        columns[f"{extension}.offset"], columns[f"{extension}.size"] = pa.array(offsets), pa.array(sizes)
        crcs = np.zeros(len(keys), np.uint32)
        crcs[present] = [crc for crc, _ in found]
        columns[f"{extension}.crc32c"] = pa.array(crcs)
        if member_type(extension) == "image":
            rows = np.zeros((3, len(keys)), np.int32)
            rows[2] = UNKNOWN_FORMAT
            rows[:, present] = np.array([(h.width, h.height, _format_number(h)) for _, h in found]).reshape(-1, 3).T
            for column, values in zip(("width", "height"), rows[:2], strict=True):
                columns[f"{extension}.{column}"] = pa.array(values)
            columns[f"{extension}.format"] = pa.array(rows[2].astype(np.uint8))
        if extension in samples.contents:
            columns[f"{extension}.content"] = samples.contents[extension]
    return columns | _sidecar_columns(folder, name, keys)


def _measured(shard: SequentialShard, member: Member, *, image: bool) -> tuple[int, ImageHeader]:
    """Return the CRC-32C of a member, and of an image its header; held is one piece, if that has the whole header."""
    first = shard.read(member.offset, min(member.size, _PIECE_BYTES))
    header = parsed_header(first) if image else NO_HEADER
    if image and header is NO_HEADER and len(first) < member.size <= MAX_IMAGE_BYTES:
        first = shard.read(member.offset, member.size)
        header = parsed_header(first)
    crc = google_crc32c.value(first)
    for done in range(len(first), member.size, _PIECE_BYTES):
        crc = google_crc32c.extend(crc, shard.read(member.offset + done, min(_PIECE_BYTES, member.size - done)))
    return crc, header


def _sidecar_columns(folder: Folder, name: str, keys: pa.Array) -> dict[str, pa.Array]:
    """Return the columns of img2dataset's Parquet file beside a tar, of the samples in the tar; {} if there is none."""
    sidecar = name.rpartition(".")[0] + ".parquet"
    try:
        data = folder.read(sidecar)
    except FileNotFoundError:
        return {}
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{folder.where(sidecar)}, beside a tar, is no whole Parquet file ({error}); copy it again, or move it away"
        ) from error
    if not set(table.column_names) >= _SIDECAR_COLUMNS:
        return {}
    table = table.combine_chunks()
    rows = pc.index_in(keys, value_set=pc.cast(table.column("key"), pa.string()))
    return {
        f"{VALUE}{column}": _plain(table.column(column).take(rows)) for column in table.column_names if column != "key"
    }


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one of the types that columns of an index have; lists, structs and the like as JSON."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return array
    if pa.types.is_integer(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind):
        return array.cast(pa.float64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    texts = [None if value is None else json.dumps(value, default=str) for value in array.to_pylist()]
    return pa.array(texts, pa.string())


# MDS -----------------------------------------------------------------------------------------------------------------


def _survey_mds(shard: SequentialShard, record: MdsShard, fields: MdsFields) -> dict[str, pa.Array]:
    """Return the columns of an MDS shard."""
    stored = {name: _Part(image=field.type == "image") for name, field in fields.fields.items() if field.stored}
    values: dict[str, list[Any]] = {name: [] for name, field in fields.fields.items() if not field.stored}
    for row, sample in enumerate(walk_mds(shard.read, record, shard.where)):
        for name, part in stored.items():
            number = fields.columns[name]
            part.add(row, sample.offsets[number], sample.values[number])
        for name, column in values.items():
            number = fields.columns[name]
            column.append(decode_value(record.columns[number], sample.values[number], shard.where))
    keys = [sample_key(record.name, row) for row in range(record.samples)]
    columns = {"key": pa.array(keys, pa.string())}
    for name, part in stored.items():
        columns |= part.arrays(name, record.samples)
    return columns | {f"{VALUE}{name}": pa.array(column) for name, column in values.items()}


# Image folders -------------------------------------------------------------------------------------------------------


def _survey_files(folder: Folder, task: SurveyTask) -> tuple[int, str, dict[str, pa.Array]]:
    """Return bytes, digest and columns of a group of files."""
    part = _Part(image=True)
    digest = xxhash.xxh3_128()
    size_bytes = 0
    for row, path in enumerate(task.paths):
        try:
            data = folder.read(path)
        except FileNotFoundError as error:
            raise SourceError(
                f"{folder.where(path)} vanished while it was adopted; run the command again when the source is at rest"
            ) from error
        digest.update(data)
        size_bytes += len(data)
        part.add(row, 0, data)
    if size_bytes != task.size_bytes:
        raise _changed(f"a file among {folder.where(task.paths[0])} …", task.size_bytes, size_bytes)
    paths = pa.array(task.paths, pa.string())
    columns = {"key": paths, "path": paths, **dict(part.arrays("image", len(paths)))}
    labels = {f"{VALUE}label": pa.array(task.labels, pa.int64())} if task.labels else {}
    return size_bytes, digest.hexdigest(), columns | labels
