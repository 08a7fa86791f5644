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
from feeder.shards.fields import ABSENT
from feeder.shards.formats import SHARD_FORMATS
from feeder.shards.index import ShardIndex
from feeder.shards.manifest import (
    Manifest,
    encode_manifest,
    locate_manifest,
    parse_manifest,
    read_manifest_bytes,
)
from feeder.shards.reading import check_size, load_column, load_index
from feeder.shards.storage import Folder, open_folder

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
    folder, name = locate_manifest(source)
    where = folder.where(name)
    data = read_manifest_bytes(folder, name)
    manifest = parse_manifest(data, where)
    problems = [*_check_manifest_text(data, manifest, where), *_check_columns(folder, manifest)]
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
        self._data = folder if manifest.origin is None else open_folder(manifest.origin)
        self._manifest = manifest
        self._level = level
        self._decode = decode

    def __call__(self, number: int) -> list[str]:
        """Return the problems of a shard."""
        problems = []
        index = None
        files = SHARD_FORMATS[self._manifest.format].files
        try:
            if not files:
                check_size(self._data, self._manifest, number)
        except (ShardError, StorageError) as error:
            problems.append(str(error))
        try:
            index = load_index(self._folder, self._manifest, number)
            problems += self._check_labels(number, index)
        except (ShardError, StorageError) as error:
            problems.append(str(error))
        if files and index is not None:
            problems += self._check_files(index)
        elif self._level != "quick" and not files:
            problems += self._check_content(number, index, size_is_right=not problems)
        return problems

    def _check_labels(self, number: int, index: ShardIndex) -> Iterator[str]:
        if index.labels is not None and index.num_samples:
            lowest, highest, classes = min(index.labels), max(index.labels), len(self._manifest.classes)
            if lowest < -1 or highest >= classes:
                where = self._folder.where(self._manifest.shards.index(number))
                yield f"index {where} has label {lowest if lowest < -1 else highest}, expected 0 to {classes - 1}"

    def _check_content(self, number: int, index: ShardIndex | None, *, size_is_right: bool) -> Iterator[str]:
        """Yield what is wrong with the bytes of a shard."""
        manifest = self._manifest
        name = manifest.shards.names[number]
        where = self._data.where(name)
        try:
            data = self._data.read(name)
        except FileNotFoundError:
            return  # said when its size was looked at
        except StorageError as error:
            if size_is_right:
                yield str(error)
            return
        expected = manifest.shards.digests[number]
        if (digest := xxhash.xxh3_128_hexdigest(data)) != expected:
            yield f"shard {where} was cut or altered after the build: digest {digest}, expected {expected}"
        if index is None:
            return
        yield from _check_fields(data, index, where)
        if check := SHARD_FORMATS[manifest.format].check:
            complete = number not in manifest.shards.dropped
            yield from check(data, index, manifest.fields, where, complete=complete, own=not manifest.adopted)
        if self._level == "deep" and self._decode is not None:
            yield from _check_images(data, index, where, self._decode)

    def _check_files(self, index: ShardIndex) -> Iterator[str]:
        """Yield what is wrong with the files of a group that was adopted in place."""
        paths = index.strings("path")
        for row in range(index.num_samples):
            where = self._data.where(paths[row])
            size, expected = -1, index.image.sizes[row]
            try:
                data = b"" if self._level == "quick" else self._data.read(paths[row])
                size = self._data.size(paths[row]) if self._level == "quick" else len(data)
            except FileNotFoundError:
                yield f"file {where} is missing, but the index lists it; copy it again from its origin"
                continue
            except StorageError as error:
                yield str(error)
                continue
            if size != expected:
                yield f"file {where} has {size} bytes, but the index says {expected}; copy it again from its origin"
            elif self._level != "quick" and (crc := google_crc32c.value(data)) != index.image.crcs[row]:
                yield f"file {where} was altered: CRC-32C {crc:08x}, expected {index.image.crcs[row]:08x}"
            elif self._level == "deep" and self._decode is not None:
                header = (index.image.widths or [0])[row], (index.image.heights or [0])[row]
                for reason in self._decode([data], [header]).values():
                    yield f"image {where} {reason}"


def _check_columns(folder: Folder, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the files that hold a field of all samples."""
    for field in manifest.columns:
        try:
            load_column(folder, manifest, field)
        except (ShardError, StorageError) as error:
            yield str(error)


def _check_fields(data: bytes, index: ShardIndex, where: str) -> Iterator[str]:
    """Yield a problem if fields of samples do not have their CRC-32C."""
    damaged: dict[int, None] = {}
    for field in index.stored_fields:
        stored = index.stored(field)
        for row, (offset, size, crc) in enumerate(zip(stored.offsets, stored.sizes, stored.crcs, strict=True)):
            if size != ABSENT and google_crc32c.value(data[offset : offset + size]) != crc:
                damaged[row] = None
    if damaged:
        keys = ", ".join(repr(index.keys[row]) for row in sorted(damaged)[:3])
        yield (
            f"{len(damaged)} of {index.num_samples} samples of {where} are damaged "
            f"({keys}{', …' if len(damaged) > 3 else ''})"
        )


def _check_images(data: bytes, index: ShardIndex, where: str, decode: Decode) -> Iterator[str]:
    """Yield a problem for each image that cannot be decoded."""
    for field in index.stored_fields:
        stored = index.stored(field)
        if stored.widths is None or stored.heights is None:
            continue
        present = [row for row in range(index.num_samples) if stored.sizes[row] != ABSENT]
        for start in range(0, len(present), _DECODED_AT_ONCE):
            rows = present[start : start + _DECODED_AT_ONCE]
            images = [data[stored.offsets[row] : stored.offsets[row] + stored.sizes[row]] for row in rows]
            failed = decode(images, [(stored.widths[row], stored.heights[row]) for row in rows])
            for position, reason in failed.items():
                yield f"{field} {index.keys[rows[position]]!r} of {where} {reason}"
