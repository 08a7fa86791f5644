"""A plain folder of images, adopted in memory behind the reader that shards have.

Nothing is written. Groups of consecutive files stand for shards, so that orders, windows and lanes mean the same as
over real ones. The dataset digest covers the relative path, the size and the label of every file; contents are not
read. A million files take about 100 MB: one run of path bytes, three numbers a file, no objects.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.shards.dataset.manifest import Manifest
from feeder.shards.dataset.shard_table import ShardTable
from feeder.shards.errors import ShardError, SourceError
from feeder.shards.images.headers import HEADER_BYTES, NO_HEADER, ImageHeader, parsed_header
from feeder.shards.names import readable
from feeder.shards.reading.rows import Rows, checked_ids, no_such_field
from feeder.shards.sources import scan_source
from feeder.shards.storage import read_regular_file, unreadable
from feeder.shards.table import UNREADABLE, SampleTable

FILES_PER_GROUP = 512  # as many images of 110 kB as a shard of 64 MiB holds; ids of samples depend on it


class FolderReader:
    """The reader of plain image folders; see `feeder.shards.reading.rows.Reader` for what it promises. Keys are
    relative paths.

    Raises:
        SourceError: no images, several splits, or a name that is no regular file.
        StorageError: a folder cannot be listed.
    """

    def __init__(self, path: str) -> None:
        self._files = _single_split(path)
        self._sizes = self._files.stored["image"].sizes
        self.url = self._files.root
        self.manifest = _manifest(self._files)

    def describe(self, ids: NDArray[np.int64]) -> Rows:
        """Return the rows of samples; the header of each file is read. A header that cannot be parsed gives size 0 × 0.

        Raises:
            StorageError: a file cannot be read.
            IndexError: an id is outside the dataset.
        """
        numbers = checked_ids(ids, len(self._files)).tolist()
        return self._rows(numbers, [parsed_header(self._beginning(number)) for number in numbers])

    def read(self, ids: NDArray[np.int64], field: str = "image") -> tuple[Rows, list[bytes]]:
        """Return the rows of samples and the bytes of their files.

        Raises:
            ShardError: a file has not the size any more that it had when the folder was opened.
            StorageError, IndexError: as in `describe`.
            ConfigError: another field than the image.
        """
        if field != "image":
            raise no_such_field(self, field)
        numbers = checked_ids(ids, len(self._files)).tolist()
        images = [self._read_whole(number) for number in numbers]
        return self._rows(numbers, [parsed_header(image) for image in images]), images

    def values(self, ids: NDArray[np.int64], field: str) -> list[Any]:
        """Return the values of a column: the label is the only one."""
        if field != "label" or field not in self.manifest.fields:
            raise no_such_field(self, field)
        return list(self._files.labels[checked_ids(ids, len(self._files))].tolist())

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples, in order; no file is read."""
        return map(readable, self._files.names)

    def sizes(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sizes in bytes that files had when the folder was opened."""
        return np.asarray(self._sizes[checked_ids(ids, len(self._files))])

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _read(self, number: int, limit: int = -1) -> bytes:
        path = os.path.join(self._files.root, self._files.names[number])
        try:
            return read_regular_file(path, limit)
        except OSError as error:
            raise unreadable(readable(path), error) from error

    def _read_whole(self, number: int) -> bytes:
        """Return the bytes of a file, of the size that is part of the dataset's digest."""
        data = self._read(number)
        if len(data) != (size := int(self._sizes[number])):
            path = os.path.join(readable(self._files.root), readable(self._files.names[number]))
            raise ShardError(
                f"{path} changed since the folder was opened: it had {size} bytes and now has {len(data)}; open the"
                " dataset again, which then has another digest"
            )
        return data

    def _beginning(self, number: int) -> bytes:
        """Return the first bytes of a file that its header needs: all of them, where it is unusually long."""
        data = self._read(number, HEADER_BYTES)
        if len(data) == HEADER_BYTES and parsed_header(data) is NO_HEADER:
            data = self._read(number)
        return data

    def _rows(self, numbers: list[int], headers: list[ImageHeader]) -> Rows:
        return Rows(
            keys=[readable(self._files.names[number]) for number in numbers],
            labels=self._files.labels[numbers],
            widths=np.array([header.width for header in headers], np.int32),
            heights=np.array([header.height for header in headers], np.int32),
            formats=[header.format for header in headers],
        )


def _single_split(path: str) -> SampleTable:
    found = scan_source(path)
    if found[0].split is not None:
        choices = " or ".join(readable(files.root) for files in found)
        raise SourceError(f"{path} holds several splits, expected one image folder; open {choices}")
    files = found[0]
    wrong = np.flatnonzero(files.stored["image"].sizes == UNREADABLE)
    if wrong.size:
        name = readable(files.names[int(wrong[0])])
        raise SourceError(
            f"{os.path.join(readable(files.root), name)} is named as an image but is no regular file (a dangling "
            "link, a pipe or a device); remove it"
        )
    return files


def _manifest(files: SampleTable) -> Manifest:
    """Return the manifest of groups of files; a group's digest covers the paths, sizes and labels of its files."""
    sizes = files.stored["image"].sizes
    starts = range(0, len(files), FILES_PER_GROUP)
    ends = [min(start + FILES_PER_GROUP, len(files)) for start in starts]
    whole: Any = hashlib.blake2b(digest_size=16)
    digests = []
    for start, end in zip(starts, ends, strict=True):
        group = hashlib.blake2b(digest_size=16)
        for number in range(start, end):
            encoded = files.names.encoded(number)
            group.update(len(encoded).to_bytes(8, "little") + encoded)
        group.update(sizes[start:end].astype("<i8").tobytes())
        group.update(files.labels[start:end].astype("<i8").tobytes())
        whole.update(group.digest())
        digests.append(group.hexdigest())
    whole.update("\0".join(files.classes).encode())
    return Manifest(
        digest=whole.hexdigest(),
        format="folder",
        classes=files.classes,
        split=None,
        fields=files.fields,
        shuffled=False,
        shuffle_seed=None,
        build={},
        shards=ShardTable(
            names=[f"files-{number:06d}" for number in range(len(digests))],
            samples=np.array([end - start for start, end in zip(starts, ends, strict=True)], np.int64),
            size_bytes=np.array([sizes[s:e].sum() for s, e in zip(starts, ends, strict=True)], np.int64),
            digests=digests,
            index_digests=[""] * len(digests),
        ),
    )
