"""Bytes within Parquet: copied out into a spool, or for a preview only estimated.

Images lie compressed within pages, where no place can point at; `feeder.shards.sources.parquet` says what becomes of
them.
"""

import contextlib
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.errors import BadImageError, DestinationError
from feeder.shards.fields import ABSENT
from feeder.shards.images.headers import EXTENSIONS, image_format
from feeder.shards.names import PathTable
from feeder.shards.sources.files import file_sizes, joined
from feeder.shards.storage import is_remote, local_path
from feeder.shards.table import FORBIDDEN, Places

NAME_EXTENSIONS = ("bin", *EXTENSIONS.values())  # of names; the first where the format is unknown
_SNIFFED_BYTES = 32  # of an image, which tell its format


class Spool:
    """The file that bytes are copied into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0

    def __enter__(self) -> Self:
        with self._mapped():
            self._file = self.path.open("wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def date(self, files: Sequence[str]) -> None:
        """Give the file the time of the last change of the local files that it was copied from.

        A build that goes on where one stopped copies again, and takes a file that has changed for another input.
        """
        local = [os.stat(local_path(file)).st_mtime_ns for file in files if not is_remote(file)]
        changed_ns = max(local, default=0)
        os.utime(self.path, ns=(changed_ns, changed_ns))

    def append(self, data: memoryview) -> int:
        """Append bytes; return where they start."""
        start = self._end
        with self._mapped():
            while data:
                written = self._file.write(data)
                self._end += written
                data = data[written:]
        return start

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DestinationError(
                f"cannot write {self.path}, where images are copied out of Parquet: {error.strerror or error}; free "
                "space there, or choose another place"
            ) from error


class SpooledColumn:
    """A column of bytes on its way into the spool: where each row's bytes lie there, or the path of its file."""

    def __init__(self, name: str, spool: Spool) -> None:
        self.name = name
        self._spool = spool
        self.extensions = array("B")  # of each row, a number in `NAME_EXTENSIONS`
        self.paths: list[pa.Array] = []  # of each batch
        self._offsets: list[NDArray[np.int64]] = []
        self._sizes: list[NDArray[np.int64]] = []

    def append(self, column: pa.Array) -> None:
        """Take the rows of a batch."""
        if pa.types.is_struct(column.type):
            binary, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
        else:
            binary, paths = column, pa.nulls(len(column), pa.string())
        binary = binary.cast(pa.large_binary())
        _, ends, data = binary.buffers()
        bounds = np.frombuffer(ends, np.int64)[binary.offset : binary.offset + len(binary) + 1]
        view = memoryview(data if data is not None else b"")
        start = self._spool.append(view[int(bounds[0]) : int(bounds[-1])])
        present = np.asarray(binary.is_valid())
        self._offsets.append(bounds[:-1] - bounds[0] + start)
        self._sizes.append(np.where(present, np.diff(bounds), ABSENT))
        self.paths.append(paths.cast(pa.string()))
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            self.extensions.append(_sniffed(bytes(view[begin : min(end, begin + _SNIFFED_BYTES)])))

    def path_column(self) -> pa.ChunkedArray:
        return pa.chunked_array(self.paths, pa.string())

    def places(self, files: Sequence[str], numbers: NDArray[np.int64]) -> Places:
        """Return where the field lies: in the spool, or in the files that rows without bytes name."""
        sizes, offsets = np.concatenate(self._sizes), np.concatenate(self._offsets)
        paths = self.path_column()
        outside = np.flatnonzero((sizes == ABSENT) & np.asarray(paths.is_valid()))
        named = paths.take(pa.array(outside)).to_pylist()
        wheres = [
            joined(files[int(numbers[row])].rpartition("/")[0], path) if _is_inside(path) else path
            for row, path in zip(outside.tolist(), named, strict=True)
        ]
        found = file_sizes(
            "/", (where if _is_inside(path) else None for where, path in zip(wheres, named, strict=True)), FORBIDDEN
        )
        sizes[outside], offsets[outside] = found, 0
        which = np.zeros(len(sizes), np.int64)
        which[outside] = 1 + np.arange(len(outside))
        return Places(files=PathTable([str(self._spool.path), *wheres]), sizes=sizes, numbers=which, offsets=offsets)


def _is_inside(path: str) -> bool:
    """Say whether a path leads nowhere but below the folder of its Parquet file, whoever wrote that."""
    return not (is_remote(path) or path.startswith(("/", "file://")) or ".." in path.split("/"))


def _sniffed(data: bytes) -> int:
    try:
        return NAME_EXTENSIONS.index(EXTENSIONS[image_format(data)])
    except BadImageError:
        return 0


class EstimatedColumn:
    """A column of bytes for a preview: of each row its path, and its share of what its row group says that all take."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._paths: list[pa.ChunkedArray] = []  # of each file
        self._sizes: list[NDArray[np.int64]] = []  # of each row group

    def append(self, opened: Any) -> None:
        """Take the rows of a `pyarrow.parquet.ParquetFile`; its pages of bytes are not read."""
        metadata = opened.metadata
        if pa.types.is_struct(opened.schema_arrow.field(self.name).type):
            leaf, path = f"{self.name}.bytes", f"{self.name}.path"
            named = opened.read(columns=[path], use_threads=False).column(self.name)
            self._paths.append(pc.struct_field(named, "path").cast(pa.string()))
        else:
            leaf = self.name
            self._paths.append(pa.chunked_array([pa.nulls(metadata.num_rows, pa.string())]))
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            total = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == leaf)
            bounds = np.arange(group.num_rows + 1) * total // max(group.num_rows, 1)
            self._sizes.append(np.diff(bounds).astype(np.int64))

    @property
    def extensions(self) -> bytes:
        """Of each row a number in `NAME_EXTENSIONS`: nothing is known of formats."""
        return bytes(sum(map(len, self._sizes)))

    def path_column(self) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for column in self._paths for chunk in column.chunks], pa.string())

    def places(self, files: Sequence[str], numbers: NDArray[np.int64]) -> Places:
        """Return places with estimated sizes, which name the Parquet files themselves: nothing can be read there."""
        sizes = np.concatenate([*self._sizes, np.zeros(0, np.int64)])
        return Places(files=PathTable(files), sizes=sizes, numbers=numbers)
