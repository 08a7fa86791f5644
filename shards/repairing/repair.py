"""Repairing a dataset: what is whole is saved, what is lost is listed, and no byte that is left is given up.

What a repair promises; if the code disagrees, the code is wrong:

1. *Planned*: every shard is read, and a sentence says what is wrong with each and what is to be done. Nothing is
   written unless that is asked for.
2. *Restored*: an index, a column or a manifest that can be made again byte for byte, which its digest proves, takes its
   place again, and the dataset is the one it was.
3. *Beside*: all else makes a new generation. Samples that are right go from a damaged shard into a new one; the damaged
   one stays as it is. Adopted data are never written: samples that are damaged leave the index.
4. *Listed*: each sample that is lost stands in ``lost-samples.jsonl``, before the dataset changes.
5. *Claimed and committed*: as any change of a dataset (`feeder.shards.changing.generations`): under a marker that
   other changes respect, staged, the manifest last. After a kill the same command goes on.
6. Repairing again finds nothing to do, unless something was said to be beyond repair.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from feeder.errors import ConfigError
from feeder.shards.changing.claim import claim_dataset
from feeder.shards.columns.consolidated import consolidated_types
from feeder.shards.dataset.contents import Generation, generation_name, list_files, read_generations
from feeder.shards.dataset.manifest import (
    MANIFEST_NAME,
    MARKER_NAME,
    Manifest,
    dataset_digest,
    encode_manifest,
    locate_manifest,
    parse_manifest,
    read_manifest_bytes,
)
from feeder.shards.destinations.claiming import claim_destination
from feeder.shards.errors import DestinationError, ManifestError, ShardError, StorageError
from feeder.shards.reading.opening import load_column
from feeder.shards.repairing.diagnosis import Diagnosis
from feeder.shards.repairing.findings import LostSample, shard_fields
from feeder.shards.repairing.found_shards import find_shards
from feeder.shards.repairing.manifest_recovery import recover_generation, recover_manifest
from feeder.shards.repairing.repair_writing import RepairPlan, write_repair
from feeder.shards.storage import Folder, LocalFolder
from feeder.shards.table import SPLITS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What a repair found, and did if it was told to write.

    Attributes:
        manifest: of the dataset as it is then.
        sentences: what is wrong and what is done about it, one each; empty when all is well.
        beyond: those of them that nothing could be done about.
        lost: the samples that are gone.
        written: the place that was written to, or None.
    """

    manifest: Manifest
    sentences: list[str]
    beyond: list[str]
    lost: list[LostSample]
    written: str | None


def repair(
    source: str | os.PathLike[str],
    *,
    write: bool = False,
    out: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    threads: int = 1,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> RepairReport:
    """Say what is wrong with a dataset and what can be saved, and on demand do it.

    Args:
        source: the folder or URL of one dataset: of one split.
        write: repair it in place; without, nothing is written.
        out: an empty or new folder for the files that a repair in place would write; laid over the dataset they repair
            it. The dataset itself is only read.
        classes: the class names, for a manifest that is lost.
        threads: shards examined at once.
        start: called with the number of shards once it is known; returns what is called with the number examined since.

    Raises:
        ConfigError: both `write` and `out`, or no threads.
        ManifestError: there is no dataset, an unfinished build, or nothing that a manifest could be made from.
        ShardError: no sample of the dataset is whole.
        DestinationError: a build or a change is going on, or the files cannot be written.
        StorageError: the storage does not give a file that is needed.
    """
    if write and out is not None:
        raise ConfigError("write and out exclude each other: repair in place, or write the files elsewhere")
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected at least 1")
    folder, name = locate_manifest(source)
    if name != MANIFEST_NAME:
        raise ManifestError(
            f"{folder.where(name)} is an earlier generation, which never changes; name the dataset {folder.url}"
        )
    _refuse_builds(folder)
    _refuse_other_places(folder)

    def examine() -> RepairPlan:
        return _examine(folder, classes, threads, start)

    if out is not None:
        plan = examine()
        if not plan.sentences:
            return _report(plan, plan.manifest, None)
        with claim_destination(out, folder.url) as elsewhere:
            return _report(plan, write_repair(plan, elsewhere.folder), elsewhere.folder.url)
    if not write:
        plan = examine()
        return _report(plan, plan.manifest, None)
    with claim_dataset(folder) as claim:
        plan = examine()
        if not plan.has_work:
            return _report(plan, plan.manifest, None)
        try:
            return _report(plan, write_repair(plan, claim.out, claim.check), folder.url)
        except BaseException:
            claim.clean = False
            raise


def _report(plan: RepairPlan, manifest: Manifest, written: str | None) -> RepairReport:
    return RepairReport(
        manifest=manifest, sentences=plan.sentences, beyond=plan.beyond, lost=plan.lost, written=written
    )


def _refuse_builds(folder: Folder) -> None:
    """Raise `DestinationError` if a build is going on in a local folder, or in the one that it is a split of.

    Behind a URL nothing tells so quickly; there a build has no manifest until it has finished.
    """
    if not isinstance(folder, LocalFolder):
        return
    above, name = os.path.split(folder.url)
    for path in (folder.url, above) if name in SPLITS else (folder.url,):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(os.path.join(path, MARKER_NAME), os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DestinationError(
                    f"dataset {folder.url} is being written by a build; wait until it has finished"
                ) from error
            finally:
                os.close(descriptor)


def _refuse_other_places(folder: Folder) -> None:
    """Raise `ManifestError` where there is neither a manifest nor a shard, or a build that has not finished."""
    if _finished_manifest(folder) is not None:
        return
    there = not isinstance(folder, LocalFolder) or os.path.isdir(folder.url)
    files = list_files(folder) if there else {}
    if MARKER_NAME in files:
        raise ManifestError(
            f"{folder.url} is the destination of a build that has not finished; run the same 'feeder build' again"
        )
    if not find_shards(folder, files)[1]:
        raise ManifestError(
            f"there is no manifest at {folder.where(MANIFEST_NAME)}, and no shard to make one from; check the path"
        )


def _finished_manifest(folder: Folder) -> bytes | None:
    """Return the bytes of a dataset's manifest, None if it has none; a build that has not finished raises."""
    try:
        return read_manifest_bytes(folder)
    except ManifestError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


# Planning ------------------------------------------------------------------------------------------------------------


def _examine(
    folder: Folder,
    classes: Sequence[str] | None,
    threads: int,
    start: Callable[[int], Callable[[int], None]] | None,
) -> RepairPlan:
    """Read everything; return what is wrong."""
    data = _finished_manifest(folder)
    files = list_files(folder)
    generations = list(read_generations(folder, files))
    readable = [one.manifest for one in generations if one.manifest is not None]
    older = readable[-1] if readable else None
    manifest, sentences, is_new = _settle_manifest(folder, files, data, older, classes)
    fields = shard_fields(folder, manifest, readable[0] if readable else None)
    count = len(manifest.shards)
    advance = start(count) if start else None
    findings = []
    with ThreadPoolExecutor(threads) as pool:
        for finding in pool.map(Diagnosis(folder, manifest, fields), range(count)):
            findings.append(finding)
            if advance:
                advance(1)
    if not any(finding.kept.any() for finding in findings):
        raise ShardError(
            f"no sample of {folder.url} is whole; copy the dataset again from its origin, or build it again"
        )
    known = {} if any(finding.action == "leave" for finding in findings) else consolidated_types(fields)
    columns, column_sentences = _examine_columns(folder, manifest, known)
    return RepairPlan(
        folder=folder,
        files=files,
        manifest=manifest,
        fields=fields,
        manifest_sentences=sentences,
        manifest_is_new=is_new,
        older=older,
        findings=findings,
        generations=_examine_generations(folder, manifest, generations),
        columns=columns,
        column_sentences=column_sentences,
    )


def _settle_manifest(
    folder: Folder, files: Mapping[str, int], data: bytes | None, older: Manifest | None, classes: Sequence[str] | None
) -> tuple[Manifest, list[str], bool]:
    """Return the manifest of a dataset, what is wrong with it, and whether it is another than was lost."""
    where = folder.where(MANIFEST_NAME)
    if data is not None:
        try:
            manifest = parse_manifest(data, where)
        except ManifestError:
            _refuse_future_versions(data, where)
        else:
            altered = encode_manifest(manifest) != data
            return manifest, [f"the text of {where} was altered: it is written again"] if altered else [], False
    recovered = recover_manifest(folder, files, data, older, classes)
    what = "is missing" if data is None else "cannot be read"
    if recovered.exact:
        return recovered.manifest, [f"{where} {what}: it is made again, byte for byte"], False
    notes = "".join(f"; {note}" for note in recovered.notes)
    count = recovered.manifest.num_samples
    return recovered.manifest, [f"{where} {what}: a new one is made, of {count} samples{notes}"], True


def _refuse_future_versions(data: bytes, where: str) -> None:
    """Raise again what a manifest of a newer program means, which is not damaged."""
    try:
        document = json.loads(data)
        intact = document.get("digest") == dataset_digest(document)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return
    if intact:
        parse_manifest(data, where)


def _examine_generations(
    folder: Folder, manifest: Manifest, generations: Sequence[Generation]
) -> dict[str, bytes | None]:
    """Return the manifests of earlier generations that are damaged, as they were if that is known."""
    found: dict[str, bytes | None] = {}
    before: Manifest | None = None
    for one in generations:
        older = one.manifest
        parent = one.name == generation_name(manifest.generation - 1)
        if one.problem:
            older = recover_generation(folder, one.name, before)
            found[one.name] = None if older is None else encode_manifest(older)
        elif older is not None and parent and older.digest != manifest.parent:
            found[one.name] = None
        before = older or before
    return found


def _examine_columns(
    folder: Folder, manifest: Manifest, derivable: Container[str]
) -> tuple[dict[str, bool], list[str]]:
    """Return the consolidated columns that are damaged, and whether indexes have what they held; and sentences."""
    damaged = {}
    sentences = []
    for name, column in manifest.columns.items():
        try:
            load_column(folder, manifest, name)
        except (ShardError, StorageError, OSError, ValueError):
            damaged[name] = name in derivable
            remedy = "it is made again from the indexes" if name in derivable else "its values are lost"
            sentences.append(f"column {column.file} is missing or damaged: {remedy}")
    return damaged, sentences
