"""Writing one shard: images checked, packed side by side, indexed, and put in place whole. Runs in worker processes."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from feeder.shards.errors import BadImageError, DestinationError, SourceError, StorageError
from feeder.shards.formats import SHARD_FORMATS, ShardFormat
from feeder.shards.images import FORMATS, MAX_IMAGE_BYTES, ImageHeader, check_image
from feeder.shards.index import bytes_columns, encode_index, image_columns, index_name
from feeder.shards.names import key_of, readable
from feeder.shards.samples import DigestedFile, Sample
from feeder.shards.storage import read_regular_file, staged_file, unreadable

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """What one shard is to be made of.

    Attributes:
        folder, name: where it goes.
        format: its name in `feeder.shards.formats.SHARD_FORMATS`.
        root, paths, sizes, labels: the files in order, with the sizes that the plan was made with (bytes; negative for
            what was no regular file) and label numbers (−1 for none).
        max_pixels: images with more are bad.
        fail: raise on the first bad image.
    """

    folder: str
    name: str
    format: str
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
            packer = _Packer(DigestedFile(file), SHARD_FORMATS[task.format], labelled=task.labels[0] >= 0)
            bad = []
            for source, size, label in zip(task.paths, task.sizes, task.labels, strict=True):
                try:
                    packer.add(source, *_checked_read(task, source, size), label)
                except BadImageError as error:
                    bad.append(_set_aside(task, source, error))
                advance(1)
            columns = packer.close()
        if not packer.samples:
            path.unlink()
            return WrittenShard(name=task.name, samples=0, size_bytes=0, digest="", index_digest="", bad=bad)
        digest = packer.file.hexdigest()
        index_digest = write_index(path, columns, digest)
    except StorageError:
        raise  # an OSError, too, but of the source
    except OSError as error:
        raise cannot_write(path, error) from error
    return WrittenShard(
        name=task.name,
        samples=packer.samples,
        size_bytes=packer.file.tell(),
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
    """Appends samples to a shard and gathers the columns of its index."""

    def __init__(self, file: DigestedFile, shard_format: ShardFormat, *, labelled: bool) -> None:
        self.file = file
        self.samples = 0
        self._writer = shard_format.writer(file, labelled)
        names = ("key", "source", "image.width", "image.height", "image.format", *(("label",) if labelled else ()))
        self._columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(self, source: str, image: bytes, header: ImageHeader, label: int) -> None:
        """Append a sample."""
        sample = Sample(key=key_of(source), source=readable(source), image=image, header=header, label=label)
        self._writer.add(sample)
        self.samples += 1
        row = (sample.key, sample.source, header.width, header.height, FORMATS.index(header.format), label)
        for column, value in zip(self._columns.values(), row, strict=False):
            column.append(value)

    def close(self) -> dict[str, pa.Array]:
        """Write what is left of the shard; return the columns of its index, in their order."""
        columns = self._columns | dict(self._writer.close())
        types = {"key": pa.string(), "source": pa.string()} | image_columns("image")
        if "label.offset" in columns:
            types |= bytes_columns("label")
        if "label" in columns:
            types["label"] = pa.int64()
        return {name: pa.array(columns[name], kind) for name, kind in types.items()}


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
