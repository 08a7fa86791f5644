"""Checking a dataset for damage. Three levels, each with all that the lower ones do:

- *quick*: the manifest, and of each shard its presence, its size and its whole index. Reads no image.
- *full*: the digest of each shard, its own headers or columns against its index, and the CRC-32C of every field.
- *deep*: every image is decoded.

All problems are collected, not the first alone. A manifest that cannot be read ends the check at once: nothing else
means anything without it.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import xxhash

from feeder.errors import ConfigError
from feeder.shards.errors import ShardError, StorageError
from feeder.shards.formats import SHARD_FORMATS
from feeder.shards.index import ShardIndex, index_name
from feeder.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    dataset_folder,
    encode_manifest,
    parse_manifest,
    read_manifest_bytes,
)
from feeder.shards.reading import check_size, load_index
from feeder.shards.storage import Folder

LEVELS = ("quick", "full", "deep")

Decode = Callable[[list[bytes], list[tuple[int, int]]], dict[int, str]]
"""Takes encoded images and their (width, height); returns, by position, why those that fail cannot be decoded."""

_DECODED_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a check found.

    Attributes:
        level: one of `LEVELS`.
        manifest: that of the dataset.
        problems: one sentence each, in the order of the shards; empty when all is well.
    """

    level: str
    manifest: Manifest
    problems: list[str]


def verify(
    source: str | os.PathLike[str],
    level: str = "quick",
    *,
    decode: Decode | None = None,
    threads: int = 1,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> VerifyReport:
    """Check a dataset; see the module's text for the levels.

    Args:
        source: the folder or URL of a dataset.
        level: one of `LEVELS`.
        decode: decodes images at the level deep.
        threads: shards checked at once; each takes the memory of a shard at the levels full and deep.
        start: called with the number of shards once it is known; returns what is called with the number of shards done
            since its last call.

    Raises:
        ManifestError: the manifest cannot be read.
        ConfigError: an unknown level, deep without `decode`, or no threads.
    """
    if level not in LEVELS:
        raise ConfigError(f"level is {level!r}, expected one of {', '.join(LEVELS)}")
    if level == "deep" and decode is None:
        raise ConfigError("level deep needs a function that decodes images")
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected at least 1")
    folder = dataset_folder(source)
    where = folder.where(MANIFEST_NAME)
    data = read_manifest_bytes(folder)
    manifest = parse_manifest(data, where)
    problems = list(_check_manifest_text(data, manifest, where))
    count = len(manifest.shards)
    advance = start(count) if start else None
    check = _ShardCheck(folder, manifest, level, decode)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(check, range(count)):
            problems += found
            if advance:
                advance(1)
    return VerifyReport(level=level, manifest=manifest, problems=problems)


def _check_manifest_text(data: bytes, manifest: Manifest, where: str) -> Iterator[str]:
    """Yield a problem if the manifest's text is not byte for byte what its content is written as."""
    if encode_manifest(manifest) != data:
        yield f"manifest {where} was altered after the build, though its content is right: its text differs"


class _ShardCheck:
    """Checks one shard after another, from several threads; call it with a shard's number."""

    def __init__(self, folder: Folder, manifest: Manifest, level: str, decode: Decode | None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._level = level
        self._decode = decode

    def __call__(self, number: int) -> list[str]:
        """Return the problems of a shard."""
        problems = []
        index = None
        try:
            check_size(self._folder, self._manifest, number)
        except (ShardError, StorageError) as error:
            problems.append(str(error))
        try:
            index = load_index(self._folder, self._manifest, number)
            problems += self._check_labels(number, index)
        except (ShardError, StorageError) as error:
            problems.append(str(error))
        if self._level != "quick":
            problems += self._check_content(number, index, size_is_right=not problems)
        return problems

    def _check_labels(self, number: int, index: ShardIndex) -> Iterator[str]:
        if index.labels is not None and index.num_samples:
            lowest, highest, classes = min(index.labels), max(index.labels), len(self._manifest.classes)
            if lowest < 0 or highest >= classes:
                where = self._folder.where(index_name(self._manifest.shards.names[number]))
                yield f"index {where} has label {lowest if lowest < 0 else highest}, expected 0 to {classes - 1}"

    def _check_content(self, number: int, index: ShardIndex | None, *, size_is_right: bool) -> Iterator[str]:
        """Yield what is wrong with the bytes of a shard."""
        name = self._manifest.shards.names[number]
        where = self._folder.where(name)
        try:
            data = self._folder.read(name)
        except FileNotFoundError:
            return  # said when its size was looked at
        except StorageError as error:
            if size_is_right:
                yield str(error)
            return
        expected = self._manifest.shards.digests[number]
        if (digest := xxhash.xxh3_128_hexdigest(data)) != expected:
            yield f"shard {where} was cut or altered after the build: digest {digest}, expected {expected}"
        if index is None:
            return
        yield from _check_fields(data, index, where)
        yield from SHARD_FORMATS[self._manifest.format].check(data, index, where)
        if self._level == "deep" and self._decode is not None:
            yield from _check_images(data, index, where, self._decode)


def _check_fields(data: bytes, index: ShardIndex, where: str) -> Iterator[str]:
    """Yield a problem if fields of samples do not have their CRC-32C."""
    damaged: dict[int, None] = {}
    for field in index.stored_fields:
        columns = (index.numbers(f"{field}.{column}") for column in ("offset", "size", "crc32c"))
        for row, (offset, size, crc) in enumerate(zip(*columns, strict=True)):
            if google_crc32c.value(data[offset : offset + size]) != crc:
                damaged[row] = None
    if damaged:
        keys = ", ".join(repr(index.keys[row]) for row in sorted(damaged)[:3])
        yield (
            f"{len(damaged)} of {index.num_samples} samples of {where} are damaged "
            f"({keys}{', …' if len(damaged) > 3 else ''})"
        )


def _check_images(data: bytes, index: ShardIndex, where: str, decode: Decode) -> Iterator[str]:
    """Yield a problem for each image that cannot be decoded."""
    for start in range(0, index.num_samples, _DECODED_AT_ONCE):
        rows = range(start, min(start + _DECODED_AT_ONCE, index.num_samples))
        images = [data[index.offsets[row] : index.offsets[row] + index.sizes[row]] for row in rows]
        failed = decode(images, [(index.widths[row], index.heights[row]) for row in rows])
        for position, reason in failed.items():
            yield f"image {index.keys[rows[position]]!r} of {where} {reason}"
