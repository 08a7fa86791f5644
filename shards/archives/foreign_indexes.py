"""Index files that other loaders want beside tar shards: DALI's ``.idx`` and energon's ``.tar.idx``.

*DALI* (``fn.readers.webdataset(index_paths=…)``): text, as NVIDIA's ``wds2idx`` writes it. The first line is ``v1.2``
and the number of samples; then one line a sample: extension, offset, size and name of each member, spaces between.
Regular files are members; one whose name starts with a dot is left out; members that stand side by side and agree up
to the first dot of their file names are a sample.

*energon* (Megatron): unsigned 64-bit little-endian integers, the offset of the first header of each sample and, last,
where the archive's end begins. Also left out are names without an extension and what is below a folder ``__name__``.
In the folder above all tars, ``.nv-meta`` gets ``.info.json`` (samples of each tar), ``split.yaml`` (tars of each
split) and ``dataset.yaml`` (samples as raw members, class ``CrudeWebdataset``). ``index.sqlite``, for access by key and
for joined datasets, is left to ``energon prepare``.
"""

import dataclasses
import json
import os
import re
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from feeder.shards.errors import DestinationError, SourceError
from feeder.shards.formats.tar_walk import Member, open_tar, walk_tar
from feeder.shards.names import readable
from feeder.shards.storage import staged_file

FOREIGN_TOOLS = ("dali", "energon")
META_FOLDER = ".nv-meta"

_DALI_VERSION = "v1.2"
_ENERGON_NAME = re.compile(r"((?:.*/)?[^.]+)\.[^/]*", re.DOTALL)
_ENERGON_LEFT_OUT = re.compile(r"__[^/]*__($|/)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForeignIndexes:
    """What was written.

    Attributes:
        written: the files, in order.
        kept: files that were there and already say the same, or that hold a user's own choice.
        samples: of each tar as the other tool counts them.
    """

    written: list[Path]
    kept: list[Path]
    samples: dict[str, int]


def write_foreign_indexes(
    splits: Mapping[str, Sequence[str]],
    tool: str,
    *,
    replace: bool = False,
    advance: Callable[[int], None] = lambda tars: None,
) -> ForeignIndexes:
    """Write the index files of another tool beside tars.

    Args:
        splits: local paths of the tars of each split; one without a name is ``train``.
        tool: one of `FOREIGN_TOOLS`.
        replace: overwrite files that say something else.
        advance: called with numbers of tars done.

    Raises:
        SourceError: a tar is cut or empty, or has names that the index cannot hold.
        DestinationError: a file is there that says something else, or one cannot be written.
        StorageError: a tar cannot be read.
    """
    writer = _Writer(replace)
    suffix, encode = _TOOLS[tool]
    samples = {}
    for tar in (tar for tars in splits.values() for tar in tars):
        data, samples[tar] = _index(tar, encode)
        writer.write(Path(tar).with_suffix(suffix), data)
        advance(1)
    if tool == "energon":
        _write_energon_meta(splits, samples, writer)
    return ForeignIndexes(written=writer.written, kept=writer.kept, samples=samples)


class _Writer:
    """Writes files whole or not at all, and none over another that says something else."""

    def __init__(self, replace: bool) -> None:
        self._replace = replace
        self.written: list[Path] = []
        self.kept: list[Path] = []

    def write(self, path: Path, data: bytes, same: Callable[[bytes], bool] | None = None) -> None:
        """Write a file, unless one is there for which `same` says that it says the same (equal bytes, if not given)."""
        try:
            if path.exists():
                found = path.read_bytes()
                if found == data or (same is not None and same(found)):
                    self.kept.append(path)
                    return
                if not self._replace:
                    raise DestinationError(
                        f"{path} exists and says something else (it has {len(found)} bytes, expected {len(data)}); "
                        "remove it, or overwrite such files with --replace"
                    )
            path.parent.mkdir(exist_ok=True)
            with staged_file(path) as file:
                file.write(data)
        except OSError as error:
            raise DestinationError(
                f"cannot write {path}: {error.strerror or error}; index files go beside tars"
            ) from error
        self.written.append(path)


def _index(tar: str, encode: Callable[[Sequence[Member], int, str], tuple[bytes, int]]) -> tuple[bytes, int]:
    """Return the bytes of the index of a tar, and the number of samples."""
    with open_tar(tar) as file:
        members, end = _members(walk_tar(file))
    data, count = encode(members, end, readable(tar))
    if not count:
        raise SourceError(f"{readable(tar)} holds no samples, which no loader takes; remove it")
    return data, count


def _members(walk: Generator[Member, None, int]) -> tuple[list[Member], int]:
    """Return the members of an archive, and where the blocks that end it begin."""
    members = []
    while True:
        try:
            members.append(next(walk))
        except StopIteration as end:
            return members, int(end.value)


def _encode_dali(members: Sequence[Member], end: int, where: str) -> tuple[bytes, int]:
    lines: list[str] = []
    last = None
    for member in members:
        # As wds2idx has it, also for names without a dot: there the key lacks the last character, and all is extension.
        dot = member.name.find(".", member.name.rfind("/") + 1)
        key, extension = member.name[:dot], member.name[dot + 1 :]
        if not key or key.endswith("/"):
            continue
        if len(member.name.split()) != 1 or not extension:
            raise SourceError(
                f"{where} holds {readable(member.name)!r}, which DALI's index cannot name: spaces separate its "
                "columns; pack the archive again with names without them, as 'feeder build' writes them"
            )
        entry = f"{extension} {member.offset} {member.size} {member.name}"
        if key == last:
            lines[-1] += " " + entry
        else:
            lines.append(entry)
        last = key
    text = "\n".join([f"{_DALI_VERSION} {len(lines)}", *lines, ""])
    return os.fsencode(text), len(lines)


def _encode_energon(members: Sequence[Member], end: int, where: str) -> tuple[bytes, int]:
    offsets: list[int] = []
    last = None
    for member in members:
        match = _ENERGON_NAME.fullmatch(member.name)
        if match is None or _ENERGON_LEFT_OUT.match(member.name):
            continue
        if match[1] != last:
            offsets.append(member.start)
            last = match[1]
    return struct.pack(f"<{len(offsets) + 1}Q", *offsets, end), len(offsets)


_TOOLS = {"dali": (".idx", _encode_dali), "energon": (".tar.idx", _encode_energon)}


def _write_energon_meta(splits: Mapping[str, Sequence[str]], samples: Mapping[str, int], writer: _Writer) -> None:
    """Write ``.nv-meta`` into the folder above all tars."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(tar)) for tar in samples])
    counts = {os.path.relpath(tar, root): count for tar, count in samples.items()}
    folder = Path(root, META_FOLDER)

    def same_counts(found: bytes) -> bool:
        try:
            return bool(json.loads(found)["shard_counts"] == counts)
        except (ValueError, KeyError, TypeError):
            return False

    writer.write(folder / ".info.json", _json({"shard_counts": counts}), same_counts)
    parts = {split or "train": [os.path.relpath(tar, root) for tar in tars] for split, tars in splits.items()}
    if (folder / "split.json").exists():
        writer.kept.append(folder / "split.json")
    else:
        writer.write(folder / "split.yaml", _json({"split_parts": parts, "exclude": []}), _own_choice)
    kind = b"__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    writer.write(folder / "dataset.yaml", kind, _own_choice)


def _own_choice(found: bytes) -> bool:
    """Take a file that is there as it is: people choose splits and sample types."""
    return True


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, indent=2).encode("ascii") + b"\n"  # JSON is YAML, too
