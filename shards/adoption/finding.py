"""What there is to adopt at a place: tar archives, an MDS set, or an image folder, one dataset or one a split.

Tar archives are named one by one, by patterns (``train-{000000..000146}.tar``), or by the folder that holds them;
their names tell splits by the rule of `feeder.shards.sources.webdataset`. In a folder, ``index.json`` tells MDS (in
folders ``train``, ``val`` and so on: splits); what else it holds is found out as for a build.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from feeder.shards.archives.mds import INDEX_NAME, MdsShard, read_mds_index
from feeder.shards.dataset.shard_table import is_plain_name
from feeder.shards.errors import SourceError
from feeder.shards.names import readable
from feeder.shards.reading.folder import FILES_PER_GROUP
from feeder.shards.sources.files import entries, file_sizes
from feeder.shards.sources.folders import scan_source
from feeder.shards.sources.opening import COMPRESSED_TARS, common_folder, names_many, source_files, source_kind
from feeder.shards.sources.options import SourceOptions
from feeder.shards.sources.patterns import expand_pattern
from feeder.shards.sources.webdataset import splits_of
from feeder.shards.storage import is_remote, local_path, open_folder
from feeder.shards.table import SPLITS, UNREADABLE, SampleTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptableSplit:
    """The shards of one split.

    Attributes:
        format: ``"tar"``, ``"mds"`` or ``"folder"``.
        split: its name, or None.
        root: the absolute path or URL of the folder that `names` are relative to.
        names: of the shards, in order; of an image folder, those that its groups get.
        sizes: int64[n], bytes.
        mds: of MDS, the record of each shard.
        table: of an image folder, its files.
    """

    format: str
    split: str | None
    root: str
    names: list[str]
    sizes: NDArray[np.int64]
    mds: Sequence[MdsShard] = ()
    table: SampleTable | None = None


def find_adoptable(sources: Sequence[str | os.PathLike[str]], options: SourceOptions) -> list[AdoptableSplit]:
    """Return what can be adopted at paths, patterns or URLs: one entry a split.

    Raises:
        SourceError: nothing is there, a file of a pattern is missing, or what is there cannot be adopted.
        StorageError: the storage answered with an error.
    """
    texts = [os.fspath(source) for source in sources]
    if len(texts) == 1 and not _is_tar(texts[0]) and not names_many(texts[0]):
        return _find_in_folder(texts[0], options)
    return _named_tars(texts)


def _named_tars(patterns: Sequence[str]) -> list[AdoptableSplit]:
    """Return the tar archives that paths, URLs and patterns name."""
    listed = [expand_pattern(pattern) if names_many(pattern) else [pattern] for pattern in patterns]
    paths = [_absolute(path) for expanded in listed for path in expanded]
    for path in paths:
        if not _is_tar(path):
            raise SourceError(f"{readable(path)} is no tar archive by its name; expected names that end in .tar")
    _refuse_compressed(paths)
    if len(set(paths)) < len(paths):
        twice = next(path for number, path in enumerate(paths) if path in paths[:number])
        raise SourceError(f"{readable(twice)} is named twice; name each archive once")
    sizes = file_sizes("/", paths)
    missing = np.flatnonzero(sizes == UNREADABLE).tolist()
    shown = " ".join(patterns)
    if len(missing) == len(paths):
        raise SourceError(f"no tar archive is at {shown}: there is no {readable(paths[0])}; check the path")
    if missing:
        raise SourceError(
            f"{len(missing)} of the {len(paths)} tar archives of {shown} are missing, such as "
            f"{readable(paths[missing[0]])}; bring them back, or leave them out of the pattern"
        )
    return _tars(paths, sizes, _common_folder(paths))


def _tars(paths: Sequence[str], sizes: NDArray[np.int64], root: str) -> list[AdoptableSplit]:
    """Return tar archives by the splits that their names below the root tell."""
    splits = splits_of(paths, root)
    if not splits:
        return [_split_of_tars(None, paths, sizes)]
    found = []
    for split in SPLITS:
        numbers = [number for number, one in enumerate(splits) if one == split]
        if numbers:
            found.append(_split_of_tars(split, [paths[number] for number in numbers], sizes[numbers]))
    return found


def _split_of_tars(split: str | None, paths: Sequence[str], sizes: NDArray[np.int64]) -> AdoptableSplit:
    root = _common_folder(paths)
    names = _checked([path[len(root) :].lstrip("/") for path in paths], root)
    return AdoptableSplit(format="tar", split=split, root=root, names=names, sizes=sizes)


def _is_tar(path: str) -> bool:
    return path.endswith((".tar", *COMPRESSED_TARS))


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(local_path(path))


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder above all paths or URLs, which a manifest names: there must be one."""
    root = common_folder(paths)
    if is_remote(paths[0]) and not is_remote(root):
        raise SourceError(f"{min(paths)} and {max(paths)} share no bucket; adopt them as two datasets")
    return root


def _refuse_compressed(paths: Sequence[str]) -> None:
    for path in paths:
        if path.endswith(COMPRESSED_TARS):
            raise SourceError(
                f"{readable(path)} is compressed, so no sample in it can be read alone; decompress it, the images "
                "in it are compressed already"
            )


def _checked(names: list[str], root: str) -> list[str]:
    """Return names of shards, which a manifest must be able to hold."""
    for name in names:
        if not is_plain_name(readable(name), folders=True) or readable(name) != name:
            raise SourceError(
                f"{readable(name)!r} in {root} is no name for a shard: hidden, or with a backslash or characters that "
                "cannot be shown; rename it"
            )
    return names


# Folders -------------------------------------------------------------------------------------------------------------


def _find_in_folder(source: str, options: SourceOptions) -> list[AdoptableSplit]:
    url = _absolute(source).rstrip("/") or "/"
    files, folders = entries(url)
    if INDEX_NAME in files:
        return [_mds_set(url, None)]
    splits = [split for split in SPLITS if split in folders and INDEX_NAME in entries(f"{url}/{split}")[0]]
    if splits:
        return [_mds_set(f"{url}/{split}", split) for split in splits]
    if not any(name.endswith(".tar") for name in files):
        _refuse_compressed([f"{url}/{name}" for name in sorted(files)])
    kind = source_kind(url)
    if kind == "folder":
        return [_image_folder(table) for table in scan_source(url, options)]
    if kind == "webdataset":
        paths, root = source_files(url, ".tar")
        return _tars(paths, file_sizes("/", paths), root)
    if kind == "dataset":
        raise SourceError(
            f"{readable(url)} is a dataset already: it has a manifest; open it, or add to it with 'feeder append'"
        )
    raise SourceError(
        f"{readable(url)} holds a {kind} source, which has no shards to adopt; make a dataset of it with 'feeder build'"
    )


def _mds_set(root: str, split: str | None) -> AdoptableSplit:
    shards = read_mds_index(open_folder(root))
    return AdoptableSplit(
        format="mds",
        split=split,
        root=root,
        names=_checked([shard.name for shard in shards], root),
        sizes=np.array([shard.size_bytes for shard in shards], np.int64),
        mds=shards,
    )


def _image_folder(table: SampleTable) -> AdoptableSplit:
    """Return the groups of files of an image folder."""
    places = table.stored["image"]
    wrong = np.flatnonzero(places.sizes == UNREADABLE)
    if wrong.size:
        raise SourceError(
            f"{os.path.join(readable(table.root), table.name(int(wrong[0])))} is named as an image but is no regular "
            "file (a dangling link, a pipe or a device); remove it"
        )
    for path in places.files:
        if readable(path) != path or not path.isprintable():
            raise SourceError(
                f"the name of {os.path.join(readable(table.root), readable(path))} is not text in UTF-8, which an "
                "index must be able to hold; rename it, or build the dataset, which gives keys of its own"
            )
    starts = range(0, len(table), FILES_PER_GROUP)
    return AdoptableSplit(
        format="folder",
        split=table.split,
        root=table.root,
        names=[f"files-{number:06d}" for number in range(len(starts))],
        sizes=np.array([places.sizes[start : start + FILES_PER_GROUP].sum() for start in starts], np.int64),
        table=table,
    )
