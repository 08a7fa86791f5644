"""Writing one shard: images checked, packed side by side, indexed, and put in place whole. Runs in worker processes."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import pyarrow as pa
import xxhash

from feeder.shards.errors import BadImageError, DestinationError, SourceError, StorageError
from feeder.shards.images import EXTENSIONS, FORMATS, MAX_IMAGE_BYTES, ImageHeader, check_image
from feeder.shards.index import bytes_columns, encode_index, image_columns, index_name, number_arrays
from feeder.shards.names import key_of, readable
from feeder.shards.storage import read_regular_file, staged_file, unreadable
from feeder.shards.tar import END, member_header, padding

# These say nothing about one file: setting aside what they met would lose good images in silence.
_FAILURES_OF_THE_MACHINE = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}

LABEL_EXTENSION = "cls"  # the class number as text, as webdataset's users expect it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """What one shard is to be made of.

    Attributes:
        folder, name: where it goes.
        root, paths, sizes, labels: the files in order, with the sizes that the plan was made with (bytes; negative for
            what was no regular file) and label numbers (−1 for none).
        max_pixels: images with more are bad.
        fail: raise on the first bad image.
    """

    folder: str
    name: str
    root: str
    paths: list[str]
    sizes: list[int]
    labels: list[int]
    max_pixels: int
    fail: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadImage:
    """An image that was set aside: its path in the source, one of `feeder.shards.images.CAUSES`, and what is wrong."""

    source: str
    cause: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A shard in place; with no samples, nothing was written."""

    name: str
    samples: int
    size_bytes: int
    digest: str
    index_digest: str
    bad: list[BadImage]


def write_shard(task: ShardTask, advance: Callable[[int], None] = lambda images: None) -> WrittenShard:
    """Write a shard and its index; bad images are left out and returned.

    Raises:
        SourceError: a file has changed since the plan was made, or an image is bad and the task says to fail.
        StorageError: the machine or the mount fails, not one file.
        DestinationError: the shard cannot be written.
    """
    path = Path(task.folder, task.name)
    try:
        with staged_file(path) as file:
            packer = _Packer(file, labelled=task.labels[0] >= 0)
            bad = []
            for source, size, label in zip(task.paths, task.sizes, task.labels, strict=True):
                try:
                    packer.add(source, *_checked_read(task, source, size), label)
                except BadImageError as error:
                    bad.append(_set_aside(task, source, error))
                advance(1)
            packer.write(END)
        if not packer.keys:
            path.unlink()
            return WrittenShard(name=task.name, samples=0, size_bytes=0, digest="", index_digest="", bad=bad)
        digest = packer.digest.hexdigest()
        index_digest = write_index(path, packer.arrays(), digest)
    except StorageError:
        raise  # an OSError, too, but of the source
    except OSError as error:
        raise cannot_write(path, error) from error
    return WrittenShard(
        name=task.name,
        samples=len(packer.keys),
        size_bytes=packer.offset,
        digest=digest,
        index_digest=index_digest,
        bad=bad,
    )


def write_index(shard: Path, columns: dict[str, pa.Array], shard_digest: str) -> str:
    """Write the index of a shard beside it; return the index's own digest."""
    data = encode_index(columns, shard_digest)
    with staged_file(shard.with_name(index_name(shard.name))) as file:
        file.write(data)
    return xxhash.xxh3_128_hexdigest(data)


def rename_shard(folder: Path, shard: WrittenShard, name: str) -> WrittenShard:
    """Give a shard that is in place, and its index, another name."""
    os.replace(folder / shard.name, folder / name)
    os.replace(folder / index_name(shard.name), folder / index_name(name))
    return dataclasses.replace(shard, name=name)


def cannot_write(path: str | os.PathLike[str], error: OSError) -> DestinationError:
    """Return the error for a destination that does not take bytes."""
    return DestinationError(
        f"cannot write {os.fspath(path)}: {error.strerror or error}; nothing of this build was kept, free space or "
        "choose another destination and run it again"
    )


class _Packer:
    """Appends samples to a tar archive and gathers the columns of its index."""

    def __init__(self, file: BinaryIO, *, labelled: bool) -> None:
        self.digest = xxhash.xxh3_128()
        self.offset = 0
        self.keys: list[str] = []
        self.sources: list[str] = []
        self.labels: list[int] = []
        self._labelled = labelled
        self._file = file
        self._types = image_columns("image") | (bytes_columns("label") if labelled else {})
        self._columns: dict[str, list[int]] = {name: [] for name in self._types}

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def add(self, source: str, image: bytes, header: ImageHeader, label: int) -> None:
        """Append a sample: its members sorted by extension."""
        key = key_of(source)
        members = [(EXTENSIONS[header.format], "image", image)]
        if self._labelled:
            members.append((LABEL_EXTENSION, "label", b"%d" % label))
            self.labels.append(label)
        for extension, field, data in sorted(members):
            self.write(member_header(f"{key}.{extension}", len(data)))
            self._append(field, offset=self.offset, size=len(data), crc32c=google_crc32c.value(data))
            self.write(data)
            self.write(padding(len(data)))
        self._append("image", width=header.width, height=header.height, format=FORMATS.index(header.format))
        self.keys.append(key)
        self.sources.append(readable(source))

    def _append(self, field: str, **values: int) -> None:
        for name, value in values.items():
            self._columns[f"{field}.{name}"].append(value)

    def arrays(self) -> dict[str, pa.Array]:
        """Return the columns of the index, in its order."""
        columns = {"key": pa.array(self.keys, pa.string()), "source": pa.array(self.sources, pa.string())}
        columns |= number_arrays(self._columns, self._types)
        return columns | ({"label": pa.array(self.labels, pa.int64())} if self._labelled else {})


def _checked_read(task: ShardTask, source: str, size: int) -> tuple[bytes, ImageHeader]:
    """Return the bytes and the header of an image, or raise `BadImageError`."""
    if size > MAX_IMAGE_BYTES:
        raise BadImageError("too large", f"it has {size} bytes, more than the {MAX_IMAGE_BYTES} allowed")
    path = os.path.join(task.root, source)
    try:
        image = read_regular_file(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and size >= 0:
            raise SourceError(
                f"{readable(path)} vanished while the dataset was built; run the build again when the source is at rest"
            ) from error
        if error.errno in _FAILURES_OF_THE_MACHINE:
            raise unreadable(readable(path), error) from error
        raise BadImageError("unreadable", f"it cannot be read: {error.strerror or error}") from error
    if len(image) != size:
        raise SourceError(
            f"{readable(path)} changed while the dataset was built: it had {size} bytes and now has {len(image)}; run "
            "the build again when the source is at rest"
        )
    return image, check_image(image, task.max_pixels)


def _set_aside(task: ShardTask, source: str, error: BadImageError) -> BadImage:
    if task.fail:
        path = readable(os.path.join(task.root, source))
        raise SourceError(
            f"bad image {path}: {error.reason}; repair or remove it, or set bad images aside with --on-error skip"
        ) from error
    return BadImage(source=readable(source), cause=error.cause, reason=error.reason)
