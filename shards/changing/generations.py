"""Changing a dataset: samples or columns come or go, and a new generation is committed that names its parent.

What a change promises; if the code disagrees, the code is wrong:

1. *Claimed*: the dataset gets a marker, ``.changing``, held as long as the change lives (a lock, or behind a URL a
   lease). A second change at the same time is refused. Readers are not disturbed.
2. *Beside*: no file that a generation names is ever changed. New shards are numbered on; what takes the place of a
   shard or an index has the new generation in its name (``shard-000005.g000002.idx.arrow``); columns have their digest.
3. *Committed*: the manifest is copied to ``generations/``, then the new one takes its place in one step, if its parent
   is still the current one and the claim still held.
4. *Stopped*: an error removes what this very change wrote, and nothing else (`feeder.shards.changing.journal`); after a
   kill the next change does. Who has lost the claim removes nothing. The generation before stands whole at any moment.
5. *Purged*: only `Change.purge` takes something away from older generations: those that need a shard which is no longer
   part of the dataset become a note that says so, and the files that only they name are removed.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from feeder.shards.changing.claim import claim_dataset, nothing_to_check
from feeder.shards.changing.journal import JOURNAL_NAME, GivenNames, Journal, generation_file
from feeder.shards.dataset.contents import Generation, files_in, generation_name, named_files, read_generations
from feeder.shards.dataset.manifest import (
    GENERATIONS_FOLDER,
    MANIFEST_NAME,
    PURGED_KEY,
    VERSION,
    Manifest,
    encode_manifest,
    locate_manifest,
    read_manifest,
    sealed,
)
from feeder.shards.dataset.shard_table import ShardTable
from feeder.shards.destinations.protocol import Destination
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError, ManifestError, ShardsError
from feeder.shards.storage import Folder


class Change:
    """A claimed dataset, and the generation that is to come.

    Attributes:
        folder: the dataset, to read.
        out: the same, to write into.
        parent: the manifest of the current generation.
        generation: the number of the next one.
        check: raises `DestinationError` if the claim was lost.
    """

    def __init__(
        self, folder: Folder, out: Destination, parent: Manifest, check: Callable[[], None] = nothing_to_check
    ) -> None:
        self.folder = folder
        self.out = out
        self.parent = parent
        self.generation = parent.generation + 1
        self.check = check
        self._journal = Journal(generation=self.generation)

    def named(self, name: str, extension: str) -> str:
        """Return the name that a file takes in the new generation, ``STEM.gNNNNNN.EXTENSION``."""
        return generation_file(name, self.generation, extension)

    def reserve_shards(self, count: int) -> int:
        """Note that so many new shards will be written; return the number of the first.

        No shard of this dataset, of any generation, has that number or a higher one, nor has any file.
        """
        names = [*self.parent.shards.names, *files_in(self.folder, [""])]
        found = (re.match(r"shard-(\d{6,})\.", name) for name in names)
        first = max((int(match[1]) for match in found if match), default=-1) + 1
        self._note(dataclasses.replace(self._journal, first_shard=first, new_shards=count))
        return first

    def commit(self, shards: ShardTable, **changes: Any) -> Manifest:
        """Make the new generation the current one, and return its manifest.

        Args:
            shards: of the new generation.
            changes: other attributes of the manifest that differ from its parent's.

        Raises:
            DestinationError: somebody else has changed the dataset meanwhile, or it cannot be written.
        """
        manifest = sealed(
            dataclasses.replace(
                self.parent, shards=shards, generation=self.generation, parent=self.parent.digest, **changes
            )
        )
        self.out.flush()
        self.check()
        self.out.put(generation_name(self.parent.generation), encode_manifest(self.parent))
        self._replace_manifest(encode_manifest(manifest))
        self.out.flush()
        return manifest

    def _replace_manifest(self, data: bytes) -> None:
        """Put the manifest in the place of its parent's, if that is still there."""
        remote = self.out if isinstance(self.out, RemoteDestination) else None
        tag = remote.entity_tag(MANIFEST_NAME) if remote else None  # before it is read: what comes between is seen
        now = read_manifest(self.folder).digest
        self.check()
        if now == self.parent.digest:
            if remote is None:
                self.out.put(MANIFEST_NAME, data)
                return
            if remote.put_over(MANIFEST_NAME, data, tag):
                return
            now = read_manifest(self.folder).digest
        raise DestinationError(
            f"dataset {self.folder.url} was changed by another process meanwhile: its digest is {now}, expected "
            f"{self.parent.digest}; run the command again"
        )

    def begin(self, *, found: bool) -> None:
        """Remove what a change left that was killed, and note what this one may write.

        Args:
            found: the marker was there.
        """
        data = self._read_journal()
        if data is not None or found:
            self._remove_leftovers((data and Journal.parse(data)) or Journal(generation=self.generation, columns=False))
        names = GivenNames(self._journal, self.parent)
        before = frozenset(name for name in files_in(self.folder, names.folders) if name in names)
        self._note(dataclasses.replace(self._journal, before=before - named_files(self.parent)))

    def end(self) -> None:
        """Take the note away: there is nothing left to be removed."""
        self.check()
        self.out.remove([JOURNAL_NAME])

    def undo(self) -> None:
        """Remove what this change wrote and did not commit."""
        self.check()
        self._remove_leftovers(self._journal)
        self.out.remove([JOURNAL_NAME])

    def older(self) -> list[Manifest]:
        """Return the manifests of the generations before the current one, but of those that were purged.

        Raises:
            ManifestError: one cannot be read.
        """
        generations = self._generations()
        if problems := [one.problem for one in generations if one.problem]:
            raise ManifestError(problems[0])
        return [one.manifest for one in generations if one.manifest is not None]

    def concerned(self, current: Manifest) -> list[Manifest]:
        """Return the older generations that a purge takes away.

        One goes if it names a shard that the current one does not: that shard may hold samples that were dropped, and
        so may its index and columns.
        """
        names = set(current.shards.names)
        return [older for older in self.older() if not names.issuperset(older.shards.names)]

    def purge(self, current: Manifest, gone: list[Manifest]) -> None:
        """Replace generations by a note, and remove what only they name."""
        numbers = {older.generation for older in gone}
        stay = named_files(current).union(*(named_files(one) for one in self.older() if one.generation not in numbers))
        names = set[str]().union(*map(named_files, gone)) - stay
        self._note(dataclasses.replace(self._journal, purged=tuple(sorted(names))))
        self.check()
        for number in sorted(numbers):
            note = {"version": VERSION, PURGED_KEY: current.generation}
            self.out.put(generation_name(number), json.dumps(note).encode() + b"\n")
        self.out.flush()
        self.out.remove(sorted(names))

    def _remove_leftovers(self, journal: Journal) -> None:
        """Remove what a change wrote that no generation names."""
        current = read_manifest(self.folder)
        generations = self._generations()
        if problems := [one.problem for one in generations if one.problem]:
            if journal.purged:
                raise ManifestError(problems[0])
            journal = dataclasses.replace(journal, columns=False)  # it may name some, but no file of a later generation
        names = GivenNames(journal, current)
        wrote = {name for name in files_in(self.folder, names.folders) if name in names} - journal.before
        named = named_files(current).union(*(named_files(one.manifest) for one in generations if one.manifest))
        self.out.remove(sorted((wrote | set(journal.purged)) - named))

    def _generations(self) -> list[Generation]:
        return list(read_generations(self.folder, sorted(files_in(self.folder, [GENERATIONS_FOLDER]))))

    def _read_journal(self) -> bytes | None:
        try:
            return self.out.read(JOURNAL_NAME)
        except FileNotFoundError:
            return None

    def _note(self, journal: Journal) -> None:
        self._journal = journal
        self.check()
        self.out.put(JOURNAL_NAME, journal.encoded())


@contextlib.contextmanager
def change_dataset(source: str | os.PathLike[str]) -> Iterator[Change]:
    """Claim a dataset for a change; leaving with an exception removes what was written and not committed.

    Args:
        source: the folder or URL of one dataset: of one split.

    Raises:
        ManifestError: there is no dataset, or its manifest cannot be used, or an earlier generation was named.
        DestinationError: another process is changing it, or it cannot be written.
    """
    folder, name = locate_manifest(source)
    if name != MANIFEST_NAME:
        raise ManifestError(
            f"{folder.where(name)} is an earlier generation, which never changes; name the dataset {folder.url}"
        )
    read_manifest(folder)  # no marker where there is no dataset
    with claim_dataset(folder) as claim:
        change = Change(folder, claim.out, read_manifest(folder), claim.check)
        try:
            change.begin(found=claim.found)
        except BaseException:
            claim.clean = not claim.found
            raise
        try:
            yield change
        except BaseException:
            try:
                change.undo()
            except ShardsError:
                claim.clean = False
            raise
        try:
            change.end()
        except ShardsError:  # what was asked for is done
            claim.clean = False
