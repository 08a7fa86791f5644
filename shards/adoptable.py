"""What there is to adopt at a place: tar archives, an MDS set, or an image folder, one dataset or one a split.

Tar archives are named one by one, by patterns (``train-{000000..000146}.tar``), or by the folder that holds them. In a
folder, ``index.json`` tells MDS, files named ``*.tar`` tell archives, and anything else is taken for an image folder.
Folders named ``train``, ``val`` and so on that hold one or the other are splits.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.manifest import MANIFEST_NAME
from feeder.shards.mds import INDEX_NAME, MdsShard, read_mds_index
from feeder.shards.names import readable
from feeder.shards.shard_table import is_plain_name
from feeder.shards.sources.files import file_sizes, find_remote
from feeder.shards.sources.folders import scan_source
from feeder.shards.sources.options import SourceOptions
from feeder.shards.sources.patterns import expand_pattern, is_pattern
from feeder.shards.storage import is_remote, local_path, open_folder, unreadable
from feeder.shards.table import SPLITS, UNREADABLE, SampleTable

FILES_PER_GROUP = 512  # of an image folder: as many images of 110 kB as a shard of 64 MiB holds
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


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
    if len(texts) == 1 and not is_pattern(texts[0]) and not _is_tar(texts[0]):
        return _find_in_folder(texts[0], options)
    return [find_tars(texts)]


def find_tars(patterns: Sequence[str]) -> AdoptableSplit:
    """Return the tar archives that paths, URLs and patterns name."""
    paths = [_absolute(path) for pattern in patterns for path in expand_pattern(pattern)]
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
    root = _common_folder(paths)
    names = [path[len(root) :].lstrip("/") for path in paths]
    return AdoptableSplit(format="tar", split=None, root=root, names=_checked(names, root), sizes=sizes)


def _is_tar(path: str) -> bool:
    return path.endswith((".tar", *_COMPRESSED_TARS))


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(local_path(path))


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder above all paths or URLs."""
    first, last = min(paths).split("/"), max(paths).split("/")  # what these share, all others do
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    root = "/".join(first[:shared])
    if is_remote(paths[0]) and shared < 3:  # "s3:", "", and the bucket
        raise SourceError(f"{min(paths)} and {max(paths)} share no bucket; adopt them as two datasets")
    return root or "/"


def _refuse_compressed(paths: Sequence[str]) -> None:
    for path in paths:
        if path.endswith(_COMPRESSED_TARS):
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
    files = _files_in(url)
    if MANIFEST_NAME in files:
        raise SourceError(f"{url} is a dataset already: it has a manifest; open it, or add to it with 'feeder append'")
    found = []
    for split in _splits_with(files, INDEX_NAME.__eq__):
        shards = read_mds_index(open_folder(_below(url, split)))
        names = _checked([shard.name for shard in shards], _below(url, split))
        found.append(_split("mds", url, split, names, [shard.size_bytes for shard in shards], mds=shards))
    if found:
        return found
    tars = _splits_with(files, _is_tar)
    for split, listed in tars.items():
        _refuse_compressed([f"{_below(url, split)}/{name}" for name in listed])
        names = _checked(listed, _below(url, split))
        prefix = f"{split}/" if split else ""
        found.append(_split("tar", url, split, names, [files[prefix + name] for name in names]))
    return found or [_image_folder(table) for table in scan_source(source, options)]


def _files_in(url: str) -> dict[str, int]:
    """Return the sizes of the files in a folder and in its splits, by their relative paths."""
    if is_remote(url):
        return {path: size for path, size in find_remote(url).items() if path.count("/") <= 1}
    files = {}
    for split in ("", *SPLITS):
        folder = os.path.join(url, split)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file():
                        files[os.path.join(split, entry.name)] = entry.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise unreadable(folder, error) from error
    return files


def _splits_with(files: dict[str, int], wanted: Any) -> dict[str | None, list[str]]:
    """Return the wanted names in the folder itself, by split None; else those in the folders of splits, by split."""
    top = sorted(name for name in files if "/" not in name and wanted(name))
    if top:
        return {None: top}
    below: dict[str | None, list[str]] = {}
    for split in SPLITS:
        names = sorted(path[len(split) + 1 :] for path in files if path.startswith(split + "/"))
        if chosen := [name for name in names if wanted(name)]:
            below[split] = chosen
    return below


def _below(url: str, split: str | None) -> str:
    return f"{url}/{split}" if split else url


def _split(
    kind: str, url: str, split: str | None, names: list[str], sizes: Sequence[int], mds: Sequence[MdsShard] = ()
) -> AdoptableSplit:
    return AdoptableSplit(
        format=kind, split=split, root=_below(url, split), names=names, sizes=np.array(sizes, np.int64), mds=mds
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
