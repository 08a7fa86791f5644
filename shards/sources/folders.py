"""Folders of images: what they hold, in one order, with classes and splits.

Three layouts are known. *Flat*: images in the folder itself, no labels. *Class folders*: each folder below the root
is a class and holds its images at any depth, as torchvision's ``ImageFolder`` has it. *Splits*: the folders below the
root that hold images are all named ``train``, ``val``, ``validation``, ``valid`` or ``test``, and each is flat or has
class folders; one mapping from class to label covers all of them, so a class that is absent from ``val`` keeps its
number.

A file of classes (`feeder.shards.sources.options`) gives labels by its own order; a class folder that it does not name
is refused. Behind a URL the folder is listed once, with the sizes of its files.

Files count by their extension, in any case (`feeder.shards.images.headers.FILE_EXTENSIONS`); hidden files and folders
do not. Linked folders are followed, except back into a folder that the path already went through. The order of samples
is that of their relative paths, folder by folder, in bytes: class by class, and within a class by name.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.images.headers import FILE_EXTENSIONS
from feeder.shards.names import PathTable, readable
from feeder.shards.sources.files import file_sizes, find_remote
from feeder.shards.sources.labels import number_classes
from feeder.shards.sources.options import SourceOptions
from feeder.shards.storage import is_remote, local_path, unreadable
from feeder.shards.table import SPLITS, Places, SampleTable


def scan_source(source: str | os.PathLike[str], options: SourceOptions | None = None) -> list[SampleTable]:
    """Return the samples of a source folder: one table a split, or a single entry with split None.

    Raises:
        SourceError: no such folder, no images in it, images beside class folders, or a class folder that the file of
            classes does not name.
        StorageError: a folder cannot be listed.
    """
    root, paths, sizes = _find(os.fspath(source))
    if not len(paths):
        raise SourceError(
            f"no images in {root}: expected files named {', '.join(sorted(FILE_EXTENSIONS))} in it or in class "
            "folders; check the path"
        )
    tops = set(map(_top, paths))
    parts = [_Part(split=None, root=root, paths=paths, sizes=sizes)]
    if tops <= set(SPLITS):
        parts = [_below(split, root, paths, sizes) for split in SPLITS if split in tops]
    names = {top for part in parts for top in set(map(_top, part.paths)) if top}
    if len(set(map(readable, names))) < len(names):
        raise SourceError(f"two class folders of {root} differ only in bytes that are not UTF-8; rename one of them")
    known = options.classes() if options else None
    classes = number_classes(names, known if names else None, readable(root))
    return [_table(part, classes) for part in parts]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The files of one split: their paths relative to the root, and int64[n] sizes."""

    split: str | None
    root: str
    paths: PathTable
    sizes: NDArray[np.int64]


def _top(path: str) -> str:
    """Return the first folder of a path, "" if it has none."""
    return path.partition("/")[0] if "/" in path else ""


def _table(part: _Part, classes: tuple[str, ...]) -> SampleTable:
    """Return the files of one split with their labels; images beside class folders are refused."""
    numbers = {"": -1} | {name: number for number, name in enumerate(classes)}
    labels = np.fromiter((numbers[_top(path)] for path in part.paths), np.int64, len(part.paths))
    if (labels < 0).any() and (labels >= 0).any():
        loose, folder = part.paths[int(np.argmin(labels))], _top(part.paths[int(np.argmax(labels >= 0))])
        raise SourceError(
            f"{part.root} holds both class folders ({readable(folder)}, …) and images beside them ({readable(loose)}, "
            "…), so their label is unknown; move those images into class folders, or away"
        )
    return SampleTable(
        split=part.split,
        root=part.root,
        names=part.paths,
        labels=labels,
        classes=tuple(map(readable, classes)),
        fields={"image": Field(type="image"), **({"label": LABEL} if labels[0] >= 0 else {})},
        stored={"image": Places(files=part.paths, sizes=part.sizes)},
    )


def _find(source: str) -> tuple[str, PathTable, NDArray[np.int64]]:
    """Return the root of a source, and the relative paths and sizes of its image files, in order."""
    if not is_remote(source):
        root = _checked_root(source)
        paths = PathTable(_walk(root))
        return root, paths, file_sizes(root, paths)
    root = source.rstrip("/")
    paths, sizes = find_remote(root, _is_image)
    order = paths.order()  # that of `_entries`
    return root, paths.take(order), sizes[order]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in FILE_EXTENSIONS


def _below(split: str, root: str, paths: PathTable, sizes: NDArray[np.int64]) -> _Part:
    """Return the files in the folder of a split."""
    start = len(split) + 1
    chosen = np.flatnonzero(np.fromiter((_top(path) == split for path in paths), np.bool_, len(paths)))
    inner = PathTable(paths[number][start:] for number in chosen.tolist())
    return _Part(split=split, root=f"{root.rstrip('/')}/{split}", paths=inner, sizes=sizes[chosen])


def _checked_root(source: str) -> str:
    """Return the absolute path of a local source, which must be a folder."""
    root = os.path.abspath(local_path(source))
    if not os.path.exists(root):
        raise SourceError(f"no such source: {root}; expected a folder of images")
    if not os.path.isdir(root):
        raise SourceError(f"source {root} is a file, expected a folder of images")
    return root


def _walk(root: str) -> Iterator[str]:
    """Yield the relative paths of image files in order; a link back to a folder on the way is not followed.

    It does not call itself: folders may be nested deeper than Python's stack.
    """
    identity, names = _entries(root)
    way = [(identity, "", iter(names))]
    while way:
        _, inside, remaining = way[-1]
        for name in remaining:
            path = inside + os.fsdecode(name.rstrip(b"\0"))
            if name.endswith(b"\0"):
                identity, names = _entries(os.path.join(root, path))
                if all(identity != above for above, _, _ in way):
                    way.append((identity, path + "/", iter(names)))
                    break
            elif _is_image(path):
                yield path
        else:
            way.pop()


def _entries(folder: str) -> tuple[tuple[int, int], list[bytes]]:
    """Return the device and inode numbers of a folder, and the names in it, in order: those of folders with a zero byte
    behind.

    So the order is that of the paths with ``/`` read as a zero byte: all of folder ``a`` comes before ``a-b``, as
    sorted class names have it.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            names = [os.fsencode(entry.name) + b"\0" * _is_folder(entry) for entry in scan if entry.name[0] != "."]
    except OSError as error:
        raise unreadable(folder, error) from error
    names.sort()
    return (status.st_dev, status.st_ino), names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or a link to one; a link that leads nowhere, or to itself, is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
