"""Checking a dataset for damage. Three levels, each with all that the lower ones do:

- *quick*: the manifest, the earlier generations' manifests, the consolidated columns, and of each shard its presence,
  its size and its whole index. Reads no image: a cut at any length is found, a flipped bit in a shard is not.
- *full*: every byte. The digest of each shard, its own headers or rows against its index, and the CRC-32C of every
  field: every flipped bit is found, and the samples are named that have one.
- *deep*: every image is decoded, which also finds those that were bad when the dataset was built.

All problems are collected, not the first alone. A manifest that cannot be read ends the check at once: nothing else
means anything without it. Notes are no damage: an earlier generation that is missing, and files that no generation
names, which an interrupted command may have left.

A shard is read once, onwards, in pieces of a few MiB: memory does not grow with its size.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import xxhash

from feeder.errors import ConfigError
from feeder.shards.dataset.contents import Generation, generation_name, list_files, named_files, read_generations
from feeder.shards.dataset.manifest import (
    COLUMNS_FOLDER,
    MANIFEST_NAME,
    MARKER_NAME,
    Manifest,
    encode_manifest,
    locate_manifest,
    parse_manifest,
    read_manifest_bytes,
)
from feeder.shards.errors import ShardError, SourceError, StorageError
from feeder.shards.formats.index import ShardIndex
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.reading.opening import check_size, load_column, load_index
from feeder.shards.repairing.content_check import ContentCheck, Decode
from feeder.shards.storage import STAGED, Folder, open_folder

LEVELS = ("quick", "full", "deep")

_NAMED_SAMPLES = 3  # in a sentence
_OURS = re.compile(
    rf"shard-\d{{6,}}(\.g\d{{6}})?\.({'|'.join(SHARD_FORMATS)})|.*\.idx\.arrow|{COLUMNS_FOLDER}/.*\.arrow"
)
_OURS_AMONG_OTHERS = re.compile(rf".*\.g\d{{6}}\.idx\.arrow|{COLUMNS_FOLDER}/[^/]*\.[0-9a-f]{{8}}\.arrow")
_MARKERS = (MARKER_NAME, ".changing")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a check found.

    Attributes:
        level: one of `LEVELS`.
        manifest: that of the dataset.
        problems: one sentence each, in the order of the shards; empty when all is well.
        notes: what is no damage and still worth knowing, one sentence each.
    """

    level: str
    manifest: Manifest
    problems: list[str]
    notes: list[str]


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
        source: the folder or URL of a dataset, or of an earlier generation of it.
        level: one of `LEVELS`.
        decode: decodes images at the level deep.
        threads: shards checked at once; each takes 40 MB at the levels full and deep.
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
    problems = list(_check_manifest_text(data, manifest, where))
    notes: list[str] = []
    if name == MANIFEST_NAME:
        _check_folder(folder, manifest, problems, notes)
    problems += _check_columns(folder, manifest)
    count = len(manifest.shards)
    advance = start(count) if start else None
    check = _ShardVerifier(folder, manifest, level, decode if level == "deep" else None)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(check, range(count)):
            problems += found
            if advance:
                advance(1)
    return VerifyReport(level=level, manifest=manifest, problems=problems, notes=notes)


def _check_manifest_text(data: bytes, manifest: Manifest, where: str) -> Iterator[str]:
    """Yield a problem if the manifest's text is not byte for byte what its content is written as."""
    if encode_manifest(manifest) != data:
        yield f"manifest {where} was altered after the build, though its content is right: its text differs"


def _check_folder(folder: Folder, manifest: Manifest, problems: list[str], notes: list[str]) -> None:
    """Look at the earlier generations, and at files that none names."""
    try:
        files = list_files(folder)
    except StorageError as error:  # some servers give files and list none
        notes.append(f"earlier generations and files of none were not looked for: {error}")
        return
    generations = list(read_generations(folder, files))
    problems += [generation.problem for generation in generations if generation.problem]
    problems += _check_parent(folder, manifest, generations)
    notes += _note_parent(folder, manifest, generations)
    for marker in _MARKERS:
        if marker in files:
            notes.append(f"{folder.where(marker)} says that a command writes here, or was interrupted")
    if not any(generation.problem for generation in generations):  # else it is not known what they name
        named = named_files(manifest)
        for generation in generations:
            named |= named_files(generation.manifest) if generation.manifest else set()
        notes += _note_files(folder, manifest, (name for name in files if name not in named))


def _check_parent(folder: Folder, manifest: Manifest, generations: list[Generation]) -> Iterator[str]:
    """Yield a problem if the generation before is not the one that a manifest names."""
    for one in generations:
        older = one.manifest if one.name == generation_name(manifest.generation - 1) else None
        if older is not None and older.digest != manifest.parent:
            yield (
                f"{folder.where(one.name)} has the digest {older.digest}, but the generation after it names "
                f"{manifest.parent}; copy it again from the dataset's origin"
            )


def _note_parent(folder: Folder, manifest: Manifest, generations: list[Generation]) -> Iterator[str]:
    if manifest.generation == 0:
        return
    name = generation_name(manifest.generation - 1)
    if name not in (generation.name for generation in generations):
        yield f"{folder.where(name)} is missing: what the dataset held before generation {manifest.generation} is gone"


def _note_files(folder: Folder, manifest: Manifest, names: Iterable[str]) -> Iterator[str]:
    """Yield files of ours that no generation names; among the files of others, only what none but us writes."""
    adopted = manifest.adopted or manifest.origin is not None
    ours = _OURS_AMONG_OTHERS if adopted else _OURS
    for name in names:
        plain = name.removesuffix(STAGED)
        if plain != name and (not adopted or plain == MANIFEST_NAME or ours.fullmatch(plain)):
            yield f"{folder.where(name)} was never finished; remove it if no command is writing here"
        elif ours.fullmatch(name):
            yield f"{folder.where(name)} is of no generation; remove it if no command is writing here"


def _check_columns(folder: Folder, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the files that hold a field of all samples."""
    for field in manifest.columns:
        try:
            load_column(folder, manifest, field)
        except (ShardError, StorageError) as error:
            yield str(error)


class _ShardVerifier:
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
            problems += self._check_files(number, index)
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
        contents = None if index is None else ContentCheck(index, self._decode)
        try:
            watch = contents.take if contents else _pass_by
            shard = SequentialShard(self._data, manifest.shards.names[number], watch)
            layout = list(self._check_layout(number, shard, index))
            digest = shard.finish()
        except FileNotFoundError:
            return  # said when its size was looked at
        except StorageError as error:
            if size_is_right:
                yield str(error)
            return
        except SourceError as error:
            yield str(error)
            return
        if digest != (expected := manifest.shards.digests[number]):
            yield f"shard {shard.where} was cut or altered after the build: digest {digest}, expected {expected}"
        if index is not None and contents is not None:
            yield from _damaged_samples(index, contents.finish(), shard.where)
            yield from layout
            for row, field, reason in contents.undecodable:
                yield f"{field} {index.keys[row]!r} of {shard.where} {reason}"

    def _check_layout(self, number: int, shard: SequentialShard, index: ShardIndex | None) -> Iterator[str]:
        """Yield where a shard's own headers or rows contradict its index."""
        manifest = self._manifest
        check = SHARD_FORMATS[manifest.format].check
        if check and index is not None:
            dropped = manifest.shards.dropped.get(number, 0)
            # what an annotation added is neither in the shard nor in its index
            fields = {name: field for name, field in manifest.fields.items() if field.stored or name in index}
            yield from check(shard, index, fields, dropped=dropped, own=not manifest.adopted)

    def _check_files(self, number: int, index: ShardIndex) -> Iterator[str]:
        """Yield what is wrong with the files of a group that was adopted in place."""
        paths = index.strings("path")
        digest = xxhash.xxh3_128()
        whole = True
        for row in range(index.num_samples):
            where = self._data.where(paths[row])
            size, expected = -1, index.image.sizes[row]
            data = b""
            try:
                if self._level == "quick":
                    size = self._data.size(paths[row])
                else:
                    data = self._data.read(paths[row])
                    size = len(data)
            except FileNotFoundError:
                whole = False
                yield f"file {where} is missing, but the index lists it; copy it again from its origin"
                continue
            except StorageError as error:
                whole = False
                yield str(error)
                continue
            digest.update(data)
            if size != expected:
                whole = False
                yield f"file {where} has {size} bytes, but the index says {expected}; copy it again from its origin"
            elif self._level != "quick" and (crc := google_crc32c.value(data)) != index.image.crcs[row]:
                whole = False
                yield f"file {where} was altered: CRC-32C {crc:08x}, expected {index.image.crcs[row]:08x}"
            elif self._decode is not None:
                header = (index.image.widths or [0])[row], (index.image.heights or [0])[row]
                for reason in self._decode([data], [header]).values():
                    yield f"image {where} {reason}"
        table = self._manifest.shards
        if self._level == "quick" or not whole or number in table.dropped:
            return
        if (got := digest.hexdigest()) != table.digests[number]:
            name = self._data.where(table.names[number])
            yield f"the files of {name} are not those that were adopted: digest {got}, expected {table.digests[number]}"


def _pass_by(start: int, piece: bytes) -> None:
    """Take the bytes of a shard that nothing is known to be in."""


def _damaged_samples(index: ShardIndex, rows: set[int], where: str) -> Iterator[str]:
    """Yield a problem if contents of samples do not have their CRC-32C."""
    if rows:
        keys = ", ".join(repr(index.keys[row]) for row in sorted(rows)[:_NAMED_SAMPLES])
        yield (
            f"{len(rows)} of {index.num_samples} samples of {where} are damaged "
            f"({keys}{', …' if len(rows) > _NAMED_SAMPLES else ''})"
        )
