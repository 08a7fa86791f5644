"""WebDataset: tar archives whose members are samples, by any program, local or behind a URL.

Samples, keys and fields are found by the rules of `feeder.shards.members` and `feeder.shards.member_fields`. Archives
of two or more splits, told by the names of their folders or files (``val/000.tar``, ``in1k-train-{0000..1023}.tar``),
become splits. A sample without an image is a bad sample. Where two archives hold a sample of the same key, all keys get
their archive's name in front (``000017/sample3``); of one archive, keys must differ.

A label's number is the class; the classes' names come from a file of classes, else they are the numbers.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.fields import ABSENT, LABEL
from feeder.shards.member_fields import IMAGE_ORDER, MemberField, is_value, member_fields, member_values
from feeder.shards.members import TarSamples, walk_archives
from feeder.shards.names import PathTable, readable
from feeder.shards.sources.columns import combined
from feeder.shards.sources.labels import integer_classes
from feeder.shards.sources.options import SourceOptions
from feeder.shards.splitting import cut_table
from feeder.shards.table import SPLITS, Places, SampleTable

_log = logging.getLogger("feeder")

_SPLIT = re.compile(rf"(?:^|[^A-Za-z])({'|'.join(SPLITS)})(?=[^A-Za-z]|$)")


def scan_archives(files: Sequence[str], root: str, options: SourceOptions) -> list[SampleTable]:
    """Return the samples of tar archives: one table a split, or a single one.

    Args:
        files: absolute paths or URLs, in order.
        root: what messages name.
        options: which classes there are, and what becomes of damaged archives.

    Raises:
        SourceError: an archive is missing, damaged, or packed in a way that gives no samples; a label is no number.
        StorageError: the storage does not give the bytes.
    """
    keep_damaged = options.damaged == "keep"
    archives = list(walk_archives(files, wanted=is_value, keep_damaged=keep_damaged))
    for archive in archives:
        if archive.damage:
            _log.warning("%s; its %d samples before that are kept", archive.damage.partition("; ")[0], len(archive))
    if not any(map(len, archives)):
        raise SourceError(
            f"no samples in {readable(root)}: its {len(files)} tar archives hold no members named like 0001.jpg; check "
            "the path"
        )
    fields = member_fields(
        list(dict.fromkeys(extension for archive in archives for extension in archive.extensions)), _together(archives)
    )
    if fields[0].name != "image":
        names = ", ".join(field.name for field in fields)
        raise SourceError(
            f"no images in {readable(root)}: its samples hold {names}, expected members with an extension such as "
            f"{', '.join(IMAGE_ORDER[:3])}"
        )
    numbers = np.repeat(np.arange(len(archives)), [len(archive) for archive in archives])
    keys = _keys(archives)
    values = {field.name: _values(field, archives) for field in fields if not field.field.stored}
    labels, classes = _labels(values.pop("label", None), len(numbers), options.classes(), root)
    table = SampleTable(
        root=root,
        names=_names(keys, fields[0], archives),
        labels=labels,
        classes=classes,
        fields={field.name: LABEL if field.name == "label" else field.field for field in fields},
        stored={field.name: _places(field, archives, numbers) for field in fields if field.field.stored},
        values=values,
    )
    return cut_by_file(table, [archive.where for archive in archives], numbers, root)


def cut_by_file(table: SampleTable, files: Sequence[str], numbers: NDArray[np.int64], root: str) -> list[SampleTable]:
    """Return the parts of a table by the splits that the names of its files tell, where they tell two or more.

    Args:
        table: the samples.
        files: the files that they come from.
        numbers: int64[n], the file of each sample.
        root: what messages name, and what names of splits are looked for below.

    Raises:
        SourceError: the names of some files tell a split, and those of others none.
    """
    splits = splits_of(files, root)
    if not splits:
        return [table]
    codes = np.array([SPLITS.index(split) for split in splits], np.int64)
    return cut_table(table, codes[numbers], SPLITS)


def splits_of(files: Sequence[str], root: str) -> list[str]:
    """Return the split of each file, where their names below the root tell two or more; else [].

    Raises:
        SourceError: the names of some files tell a split, and those of others none.
    """
    splits = [split_of(file.removeprefix(root)) for file in files]
    if len(set(splits) - {None}) < 2:
        return []
    if None in splits:
        raise SourceError(
            f"{readable(root)} holds files of the splits {', '.join(sorted(set(filter(None, splits))))} and "
            f"{readable(files[splits.index(None)])}, which is of none; name the files of one split, or move it away"
        )
    return [split for split in splits if split]


def split_of(path: str) -> str | None:
    """Return the split that a path tells: the last word in it that is a name of one."""
    found = _SPLIT.findall(path)
    return found[-1] if found else None


def _together(archives: Iterable[TarSamples]) -> set[frozenset[str]]:
    """Return the pairs of extensions that some sample has both of."""
    pairs: set[frozenset[str]] = set()
    for archive in archives:
        present = {extension: sizes != ABSENT for extension, sizes in archive.sizes.items()}
        names = list(present)
        for number, one in enumerate(names):
            for other in names[number + 1 :]:
                pair = frozenset((one, other))
                if pair not in pairs and bool((present[one] & present[other]).any()):
                    pairs.add(pair)
    return pairs


def _keys(archives: Sequence[TarSamples]) -> PathTable:
    """Return the keys of all samples, with the archive's name in front if one occurs in two archives.

    Keys are compared by digest: 8 bytes each, not a string.
    """
    digests = np.array([xxhash.xxh3_64_intdigest(key) for archive in archives for key in _encoded(archive)], np.uint64)
    if len(np.unique(digests)) == len(digests):
        return PathTable(key for archive in archives for key in archive.keys)
    prefixes = archive_prefixes([archive.where for archive in archives])
    return PathTable(
        f"{prefix}/{key}" for prefix, archive in zip(prefixes, archives, strict=True) for key in archive.keys
    )


def _encoded(archive: TarSamples) -> Iterable[bytes]:
    return (archive.keys.encoded(row) for row in range(len(archive)))


def archive_prefixes(files: Sequence[str]) -> list[str]:
    """Return what tells archives apart: their names without extension, and the folder above where two have the same."""
    stems = [file.rpartition("/")[2].removesuffix(".tar") for file in files]
    if len(set(stems)) == len(stems):
        return stems
    longer = ["/".join(file.removesuffix(".tar").split("/")[-2:]) for file in files]
    twice, count = Counter(longer).most_common(1)[0]
    if count > 1:
        raise SourceError(
            f"{count} archives named {readable(twice)}.tar hold samples with the same keys; rename the archives, or "
            "leave out those that were named twice"
        )
    return longer


def _names(keys: PathTable, image: MemberField, archives: Sequence[TarSamples]) -> PathTable:
    """Return the names of samples: their keys with the extension of their image."""
    extensions: list[str] = []
    for archive in archives:
        chosen = np.full(len(archive), image.extensions[0], object)
        for extension in image.extensions:
            if extension in archive.sizes:
                chosen[archive.sizes[extension] != ABSENT] = extension
        extensions += chosen.tolist()
    return PathTable(f"{key}.{extension}" for key, extension in zip(keys, extensions, strict=True))


def _places(field: MemberField, archives: Sequence[TarSamples], numbers: NDArray[np.int64]) -> Places:
    """Return where a field lies in all samples."""
    offsets, sizes = [], []
    for archive in archives:
        offset, size = np.zeros(len(archive), np.int64), np.full(len(archive), ABSENT, np.int64)
        for extension in field.extensions:
            if extension in archive.sizes:
                there = archive.sizes[extension] != ABSENT
                offset[there], size[there] = archive.offsets[extension][there], archive.sizes[extension][there]
        offsets.append(offset)
        sizes.append(size)
    return Places(
        files=PathTable(archive.where for archive in archives),
        sizes=np.concatenate(sizes),
        numbers=numbers,
        offsets=np.concatenate(offsets),
    )


def _values(field: MemberField, archives: Sequence[TarSamples]) -> pa.Array:
    """Return the values of a field in all samples."""
    chunks = [member_values(field, archive.contents, archive.where, archive.keys) for archive in archives]
    return combined(pa.chunked_array(chunks))


def _labels(
    values: pa.Array | None, count: int, known: tuple[str, ...] | None, root: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if values is None:
        return np.full(count, -1, np.int64), ()
    labels = np.asarray(values.fill_null(-1), np.int64)
    return labels, integer_classes(labels, known, readable(root))
