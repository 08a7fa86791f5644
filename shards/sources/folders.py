"""Folders of images: what they hold, in one order, with classes and splits.

Three layouts are known. *Flat*: images in the folder itself, no labels. *Class folders*: each folder below the root
is a class and holds its images at any depth, as torchvision's ``ImageFolder`` has it. *Splits*: the folders below the
root that hold images are all named ``train``, ``val``, ``validation``, ``valid`` or ``test``, and each is flat or has
class folders; one mapping from class to label covers all of them, so a class that is absent from ``val`` keeps its
number.

A file of classes (`feeder.shards.sources.options`) gives labels by its own order; a class folder that it does not name
is refused. Behind a URL the folder is listed once, with the sizes of its files.

Files count by their extension, in any case (`feeder.shards.images.FILE_EXTENSIONS`); hidden files and folders do not.
Linked folders are followed, except back into a folder that the path already went through. The order of samples is
that of their relative paths, folder by folder, in bytes: class by class, and within a class by name.
"""

import os
import stat
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.fields import LABEL, Field
from feeder.shards.images import FILE_EXTENSIONS
from feeder.shards.names import PathTable, readable
from feeder.shards.sources.files import find_remote
from feeder.shards.sources.labels import number_classes
from feeder.shards.sources.options import SourceOptions
from feeder.shards.storage import is_remote, local_path, unreadable
from feeder.shards.table import SPLITS, UNREADABLE, Places, SampleTable


def scan_source(source: str | os.PathLike[str], options: SourceOptions | None = None) -> list[SampleTable]:
    """Return the samples of a source folder: one table a split, or a single entry with split None.

    Raises:
        SourceError: no such folder, no images in it, images beside class folders, or a class folder that the file of
            classes does not name.
        StorageError: a folder cannot be listed.
    """
    root, paths, sizes = _find(os.fspath(source))
    if not paths:
        raise SourceError(
            f"no images in {root}: expected files named {', '.join(sorted(FILE_EXTENSIONS))} in it or in class "
            "folders; check the path"
        )
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
    parts: list[tuple[str | None, str, list[str], NDArray[np.int64]]] = [(None, root, paths, sizes)]
    if tops <= set(SPLITS):
        parts = [_below(split, root, paths, sizes) for split in SPLITS if split in tops]
    names = {path.partition("/")[0] for _, _, inner, _ in parts for path in inner if "/" in path}
    if len(set(map(readable, names))) < len(names):
        raise SourceError(f"two class folders of {root} differ only in bytes that are not UTF-8; rename one of them")
    known = options.classes() if options else None
    classes = number_classes(names, known if names else None, readable(root))
    return [_table(*part, classes) for part in parts]


def _table(
    split: str | None, root: str, paths: list[str], sizes: NDArray[np.int64], classes: tuple[str, ...]
) -> SampleTable:
    """Return the files of one split with their labels; images beside class folders are refused."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[path.partition("/")[0]] if "/" in path else -1 for path in paths], np.int64)
    if (labels < 0).any() and (labels >= 0).any():
        loose = paths[int(np.argmin(labels))]
        folder = next(path.partition("/")[0] for path in paths if "/" in path)
        raise SourceError(
            f"{root} holds both class folders ({readable(folder)}, …) and images beside them ({readable(loose)}, "
            "…), so their label is unknown; move those images into class folders, or away"
        )
    names = PathTable(paths)
    return SampleTable(
        split=split,
        root=root,
        names=names,
        labels=labels,
        classes=tuple(map(readable, classes)),
        fields={"image": Field(type="image"), **({"label": LABEL} if labels[0] >= 0 else {})},
        stored={"image": Places(files=names, sizes=sizes)},
    )


def _find(source: str) -> tuple[str, list[str], NDArray[np.int64]]:
    """Return the root of a source, and the relative paths and sizes of its image files, in order."""
    if not is_remote(source):
        root = _checked_root(source)
        return root, *_listing(root)
    root = source.rstrip("/")
    images = [(path, size) for path, size in find_remote(root).items() if _is_image(path)]
    images.sort(key=lambda image: os.fsencode(image[0].replace("/", "\0")))  # the order of `_entries`
    return root, [path for path, _ in images], np.array([size for _, size in images], np.int64)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in FILE_EXTENSIONS


def _below(
    split: str, root: str, paths: list[str], sizes: NDArray[np.int64]
) -> tuple[str, str, list[str], NDArray[np.int64]]:
    """Return split, its folder, and the paths in it with their sizes."""
    start = len(split) + 1
    chosen = [number for number, path in enumerate(paths) if path.startswith(split + "/")]
    return split, f"{root.rstrip('/')}/{split}", [paths[number][start:] for number in chosen], sizes[chosen]


def _checked_root(source: str) -> str:
    """Return the absolute path of a local source, which must be a folder."""
    root = os.path.abspath(local_path(source))
    if not os.path.exists(root):
        raise SourceError(f"no such source: {root}; expected a folder of images")
    if not os.path.isdir(root):
        raise SourceError(f"source {root} is a file, expected a folder of images")
    return root


def _listing(root: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return (relative paths, sizes) of the image files below a folder, in order."""
    paths: list[str] = []
    sizes = array("q")
    for path, size in _walk(root):
        paths.append(path)
        sizes.append(size)
    return paths, np.frombuffer(sizes, np.int64) if sizes else np.zeros(0, np.int64)


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Yield (relative path, size) of image files in order; a link back to a folder on the way is not followed.

    It does not call itself: folders may be nested deeper than Python's stack.
    """
    identity, entries = _entries(root)
    way = [(identity, "", iter(entries))]
    while way:
        _, inside, remaining = way[-1]
        for entry, is_folder in remaining:
            path = inside + entry.name
            if is_folder:
                identity, entries = _entries(os.path.join(root, path))
                if all(identity != above for above, _, _ in way):
                    way.append((identity, path + "/", iter(entries)))
                    break
            elif _is_image(entry.name):
                yield path, _size(entry)
        else:
            way.pop()


def _entries(folder: str) -> tuple[tuple[int, int], list[tuple[os.DirEntry[str], bool]]]:
    """Return the device and inode numbers of a folder, and its entries in order, each with whether it is a folder.

    Names compare as bytes, a folder's with a zero byte behind. So the order is that of the paths with ``/`` read as a
    zero byte: all of folder ``a`` comes before ``a-b``, as sorted class names have it.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = [(entry, _is_folder(entry)) for entry in scan if entry.name[0] != "."]
    except OSError as error:
        raise unreadable(folder, error) from error
    entries.sort(key=lambda pair: os.fsencode(pair[0].name) + b"\0" * pair[1])
    return (status.st_dev, status.st_ino), entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or a link to one; a link that leads nowhere, or to itself, is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _size(entry: os.DirEntry[str]) -> int:
    """Return the size of a file in bytes, or `UNREADABLE` for what is no regular file."""
    try:
        status = entry.stat()
    except OSError:
        return UNREADABLE
    return status.st_size if stat.S_ISREG(status.st_mode) else UNREADABLE
