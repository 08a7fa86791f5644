"""The index of one shard of adopted data, made again from the data as `feeder.shards.adoption.adopting` made it."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from feeder.shards.adoption.indexes import (
    AdoptedField,
    FoundFields,
    Labels,
    adopted_index,
    column_values,
    folder_fields,
    mds_fields_adopted,
    tar_fields,
)
from feeder.shards.adoption.surveys import Survey, SurveyTask, load_survey, survey
from feeder.shards.archives.mds import mds_fields, read_mds_index, walk_mds
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.errors import SourceError
from feeder.shards.formats.index import encode_index
from feeder.shards.reading.folder import FILES_PER_GROUP
from feeder.shards.sources.folders import scan_source
from feeder.shards.sources.webdataset import archive_prefixes
from feeder.shards.storage import Folder

_NOWHERE = ("",)  # the parts of a field that this shard lacks, though others have it


def adopted_indexes(folder: Folder, manifest: Manifest, number: int) -> Iterator[bytes]:
    """Yield what the index of a shard may have been; whether one is, its digest tells.

    Args:
        folder: where the data lie.
        manifest: of the dataset.
        number: of the shard.

    Raises:
        SourceError: the data are no longer what was adopted.
        StorageError: they cannot be read.
        FileNotFoundError: they are not there.
    """
    name = manifest.shards.names[number]
    with tempfile.TemporaryDirectory(prefix="feeder-survey-") as scratch:
        task, fields = _task(folder, manifest, name, Path(scratch, "survey.arrow"))
        survey(task)
        found = load_survey(Path(task.out), name, task.size_bytes)
    if found is None:
        raise SourceError(f"{folder.where(name)} changed while it was read; run the command again when it is at rest")
    if not fields:
        fields = _tar_fields(found, manifest, folder.where(name))
    values = {field.name: column_values(found, field, folder.where(name)) for field in fields if not field.field.stored}
    labels = Labels(manifest.classes)
    if "label" in values:
        labels.add(values["label"])
        labels.settle(folder.url)
    for prefix in (None, archive_prefixes([folder.where(shard) for shard in manifest.shards.names])[number]):
        yield encode_index(adopted_index(found, name, fields, values, labels, prefix).columns, found.digest)


def _task(folder: Folder, manifest: Manifest, name: str, out: Path) -> tuple[SurveyTask, list[AdoptedField]]:
    """Return what to survey, and the fields where these do not follow from the survey."""
    if manifest.format == "folder":
        return _folder_task(folder, name, out)
    task = SurveyTask(root=folder.url, name=name, size_bytes=folder.size(name), out=str(out))
    if manifest.format != "mds":
        return task, []
    shards = read_mds_index(folder)
    shard = next((one for one in shards if one.name == name), None)
    if shard is None:
        raise SourceError(f"the index of the MDS set at {folder.url} does not list {name}; adopt it again")
    first = next(
        walk_mds(lambda offset, size: folder.read_ranges([(shards[0].name, offset, size)])[0], shards[0], name)
    )
    fields = mds_fields(shards[0], first.values, folder.url)
    return dataclasses.replace(task, mds=(shard, fields)), mds_fields_adopted(fields)


def _folder_task(folder: Folder, name: str, out: Path) -> tuple[SurveyTask, list[AdoptedField]]:
    (table,) = scan_source(folder.url)
    start = int(name.rpartition("-")[2]) * FILES_PER_GROUP
    part = table.take(np.arange(start, min(start + FILES_PER_GROUP, len(table))))
    if not len(part):
        raise SourceError(f"{folder.url} holds only {len(table)} images, none of them in {name}; adopt it again")
    task = SurveyTask(
        root=folder.url,
        name=name,
        size_bytes=int(part.stored["image"].sizes.sum()),
        out=str(out),
        paths=list(part.stored["image"].files),
        labels=part.labels.tolist() if part.labelled else [],
    )
    return task, folder_fields(part.labelled)


def _tar_fields(found: Survey, manifest: Manifest, where: str) -> list[AdoptedField]:
    """Return the fields of the dataset, with what this shard has of each."""
    fields = FoundFields()
    fields.add(found, where)
    here = {field.name: field for field in tar_fields(fields)}
    return [
        dataclasses.replace(here[name], field=field)
        if name in here
        else AdoptedField(name=name, field=field, parts=_NOWHERE)
        for name, field in manifest.fields.items()
    ]
