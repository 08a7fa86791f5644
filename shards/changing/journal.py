"""What a change of a dataset is going to write, noted in the dataset before it does.

A dataset may lie among files of its user: adopted archives beside others, whose names are like ours. So after an error
or a kill a file is removed only if it answers to all of this: its name is one that this very change gives, it was not
there when the change began, and no generation names it. The note, ``.changing.files``, is JSON and goes last.
"""

import dataclasses
import json
import re
from typing import Any, Self

from feeder.shards.building.bad_samples import BAD_LIST, bad_list_name
from feeder.shards.dataset.contents import generation_name
from feeder.shards.dataset.manifest import COLUMNS_FOLDER, GENERATIONS_FOLDER, MANIFEST_NAME, Manifest
from feeder.shards.destinations.protocol import BAD_IMAGES_NAME
from feeder.shards.formats.index import index_name
from feeder.shards.formats.known import SHARD_FORMATS, shard_name
from feeder.shards.storage import STAGED

JOURNAL_NAME = ".changing.files"

_COLUMN = re.compile(rf"{COLUMNS_FOLDER}/([^/]+\.[0-9a-f]{{8}}\.arrow|column-[^/]*{re.escape(STAGED)})")
_GENERATION = re.compile(r"\.g\d{6}$")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What one change may write.

    Attributes:
        generation: the number of the generation that it makes.
        before: files that were there when it began, with names that it gives.
        first_shard, new_shards: the numbers of new shards, and how many there are; none at first.
        columns: whether it writes consolidated columns, whose names do not tell of the change.
        purged: files to be taken away once the generation is committed.
    """

    generation: int
    before: frozenset[str] = frozenset()
    first_shard: int = 0
    new_shards: int = 0
    columns: bool = True
    purged: tuple[str, ...] = ()

    def encoded(self) -> bytes:
        """Return the bytes of the note."""
        document = {**dataclasses.asdict(self), "before": sorted(self.before)}
        return json.dumps(document).encode("ascii") + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return what a note says; None if it is none of ours, or cut."""
        try:
            document: dict[str, Any] = json.loads(data)
            numbers = [int(document[name]) for name in ("generation", "first_shard", "new_shards")]
            names = [[str(name) for name in document[key]] for key in ("before", "purged")]
            return cls(
                generation=numbers[0],
                before=frozenset(names[0]),
                first_shard=numbers[1],
                new_shards=numbers[2],
                columns=bool(document["columns"]),
                purged=tuple(names[1]),
            )
        except (ValueError, KeyError, TypeError):
            return None


def generation_file(name: str, generation: int, extension: str) -> str:
    """Return the name of what takes the place of a file in a generation, ``STEM.gNNNNNN.EXTENSION``."""
    return f"{_stem(name)}.g{generation:06d}.{extension}"


def _stem(name: str) -> str:
    return _GENERATION.sub("", name.rsplit(".", 1)[0])


class GivenNames:
    """The names that a change may give: ask with ``in``.

    Args:
        journal: of the change.
        manifest: of the generation before, or of the one that it made.
    """

    def __init__(self, journal: Journal, manifest: Manifest) -> None:
        self._columns = journal.columns
        self._stems = {_stem(name) for name in manifest.shards.names}
        # Archives of others are never written, so no file is ours for being called like one.
        written = SHARD_FORMATS[manifest.format].writer and not manifest.adopted and manifest.origin is None
        extensions = ["idx.arrow", *((manifest.format, BAD_LIST[1:]) if written else ())]
        endings = "|".join(map(re.escape, extensions))
        self._replaced = re.compile(rf"(.*)\.g{journal.generation:06d}\.(?:{endings})", re.DOTALL)
        self._exact = {generation_file(BAD_IMAGES_NAME, journal.generation, "jsonl")} if written else set()
        for number in range(journal.first_shard, journal.first_shard + journal.new_shards):
            name = shard_name(number, manifest.format)
            self._exact |= {name, index_name(name), bad_list_name(name)}
        if manifest.generation < journal.generation:  # not committed
            self._exact.add(generation_name(journal.generation - 1))
        self._staged = {MANIFEST_NAME, JOURNAL_NAME, generation_name(journal.generation - 1)}

    def __contains__(self, name: str) -> bool:
        if self._columns and _COLUMN.fullmatch(name):
            return True
        plain = name.removesuffix(STAGED)
        if plain in self._exact or (plain in self._staged and plain != name):
            return True
        replaced = self._replaced.fullmatch(plain)
        return replaced is not None and replaced[1] in self._stems

    @property
    def folders(self) -> set[str]:
        """The folders, relative to the dataset's, in which such names may be."""
        inner = {stem.rpartition("/")[0] for stem in self._stems}
        return inner | {"", COLUMNS_FOLDER, GENERATIONS_FOLDER}
