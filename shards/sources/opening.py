"""Finding out what a source is, and opening it."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from feeder.errors import ConfigError
from feeder.shards.errors import SourceError
from feeder.shards.field_names import settled_table
from feeder.shards.images import FILE_EXTENSIONS
from feeder.shards.manifest import GENERATIONS_FOLDER, MANIFEST_NAME
from feeder.shards.names import MAX_KEY_BYTES, readable
from feeder.shards.sources.files import entries, find_local, find_remote, is_file, joined
from feeder.shards.sources.folders import scan_source
from feeder.shards.sources.list_files import EXTENSIONS as LIST_EXTENSIONS
from feeder.shards.sources.options import SourceOptions
from feeder.shards.sources.patterns import expand_pattern, is_pattern
from feeder.shards.splitting import split_by_hash
from feeder.shards.storage import is_remote, local_path
from feeder.shards.table import SPLITS, SampleTable
from feeder.shards.tar import MAX_NAME_BYTES, member_extension

_FILES = {"webdataset": ".tar", "parquet": ".parquet"}
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_GENERATION = re.compile(rf"(^|/)({re.escape(MANIFEST_NAME)}|{GENERATIONS_FOLDER}/\d{{6}}\.json)$")
_EXPECTED = f"a folder of images or of a dataset, .tar archives, Parquet, or a list ({', '.join(LIST_EXTENSIONS)})"
_LEVELS = 3  # train/CLASS/1.jpg
_FOLDERS = 16  # of each level: enough to find an image where there are any


def open_source(
    source: str | os.PathLike[str],
    options: SourceOptions | None = None,
    *,
    spool: Path | None = None,
    estimated: bool = False,
) -> list[SampleTable]:
    """Return the samples of a source of any kind: one table a split, or a single one with split None.

    Nothing of the samples themselves is read, with one exception: images within Parquet files are copied to `spool`.

    Args:
        source: a path, a URL, or a pattern; the package's text says what is what.
        options: what may be said about it.
        spool: a local file for the images of Parquet files; whoever gives its place removes it when the samples were
            read. It is not made for other sources.
        estimated: do without a spool: sizes of images within Parquet files are estimated, and the samples of such a
            source cannot be read. Other sources are as ever.

    Raises:
        SourceError: the source cannot be used.
        ConfigError: images within Parquet files, and neither a spool nor `estimated`.
        DestinationError: the spool cannot be written.
        ManifestError, ShardError: it is a dataset that cannot be used.
        StorageError: the storage does not give what it holds.
    """
    options = options or SourceOptions()
    where = os.fspath(source)
    if not names_many(where) and not is_remote(where):
        where = os.path.abspath(local_path(where))
    kind = options.kind or source_kind(where)
    if kind not in ("list", "parquet") and (said := options.of_columns()):
        raise SourceError(
            f"{readable(where)} is a {kind} source, which has no columns, so {' and '.join(said)} says nothing of it; "
            "leave it out, or name a list or Parquet files"
        )
    tables = _open(where, kind, options, None if estimated else spool, estimated=estimated)
    if options.classes_file is not None and not any(table.labelled for table in tables):
        raise SourceError(
            f"{readable(where)} has no labels, so the file of classes {options.classes_file} says nothing of it; leave "
            "it out, or name the column with labels"
        )
    tables = list(map(settled_table, tables))
    for table in tables:
        _refuse_long_names(table)
    return split_by_hash(tables, options.split_by_hash)


def _refuse_long_names(table: SampleTable) -> None:
    """Raise `SourceError` if the name of a member, key and extension, does not fit the header of a tar shard.

    Every key leaves room for an extension of 15 bytes; only longer ones need a look at the keys.
    """
    extensions = {name: member_extension(name, field, "jpeg") for name, field in table.fields.items()}
    name = max(extensions, key=lambda field: len(extensions[field]))
    room = MAX_NAME_BYTES - len(extensions[name]) - 1
    if room < MAX_KEY_BYTES:
        for row in range(len(table)):
            if len(key := table.key(row)) > room:
                raise SourceError(
                    f"the field {name!r} of {table.name(row)} in {readable(table.root)} would be a member "
                    f"{key}.{extensions[name]} of {len(key) + 1 + len(extensions[name])} bytes, but names in a tar "
                    f"shard have {MAX_NAME_BYTES}; give the field a shorter name, or the samples shorter keys"
                )


def _open(where: str, kind: str, options: SourceOptions, spool: Path | None, *, estimated: bool) -> list[SampleTable]:
    # Modules of other kinds are not even imported: Parquet's takes 60 ms.
    if kind == "folder":
        return scan_source(where, options)
    if kind == "list":
        from feeder.shards.sources.lists import scan_list

        return scan_list(where, options)
    if kind == "dataset":
        from feeder.shards.sources.dataset import scan_dataset

        return scan_dataset(where, options)
    files, root = source_files(where, _FILES[kind])
    if kind == "webdataset":
        from feeder.shards.sources.webdataset import scan_archives

        return scan_archives(files, root, options)
    from feeder.shards.sources.parquet import scan_parquet

    if spool is None and not estimated:
        raise ConfigError(f"{readable(where)} holds images within Parquet files, which need a spool: a local file")
    return scan_parquet(files, root, options, spool)


def names_many(where: str) -> bool:
    """Say whether a source is a pattern of files; what exists under such a name is none."""
    return is_pattern(where) and (is_remote(where) or not os.path.exists(local_path(where)))


def source_kind(where: str) -> str:
    """Return the kind of a source, one of `feeder.shards.sources.options.KINDS`.

    Args:
        where: an absolute path, a URL or a pattern.

    Raises:
        SourceError: it is of no kind, or there is nothing.
        StorageError: the storage does not answer.
    """
    name = expand_pattern(where)[0] if names_many(where) else where
    if name.endswith(COMPRESSED_TARS):
        raise SourceError(
            f"{readable(where)} is a compressed archive, in which samples have no place; unpack it to a .tar first"
        )
    if name.endswith(".tar"):
        return "webdataset"
    if name.endswith(".parquet") and (names_many(where) or is_file(where)):
        from feeder.shards.sources.parquet import holds_images

        if holds_images(name):
            return "parquet"
    if name.endswith(LIST_EXTENSIONS) and not names_many(where) and is_file(where):
        return "list"
    if names_many(where):
        raise SourceError(
            f"the pattern {readable(where)} stands for files like {readable(name)}; expected .tar archives, or "
            ".parquet files with images"
        )
    if not is_remote(where) and not os.path.isdir(where) and not _GENERATION.search(where):
        found = "source {} is a file" if os.path.exists(where) else "no such source: {}"
        raise SourceError(f"{found.format(readable(where))}; expected {_EXPECTED}")
    return _kind_of_folder(where.rstrip("/") or "/")


def _kind_of_folder(where: str) -> str:
    if _GENERATION.search(where):
        return "dataset"
    found = set()
    for name in _looked_at(where):
        folder, _, last = name.rpartition("/")
        if last == MANIFEST_NAME and folder in ("", *SPLITS):
            return "dataset"
        if os.path.splitext(last)[1].lower() in FILE_EXTENSIONS:
            return "folder"
        if last.endswith((".mds", ".mds.zstd", ".mds.zst")):
            raise SourceError(
                f"{readable(where)} holds MDS shards of Streaming; adopt them in place with 'feeder index "
                f"{readable(where)} DEST', then convert DEST"
            )
        found |= {kind for kind, extension in _FILES.items() if last.endswith(extension)}
    return next((kind for kind in _FILES if kind in found), "folder")


def _looked_at(where: str) -> Iterator[str]:
    """Yield the relative names of files in a folder and some of those up to two levels below, level by level."""
    folders = [""]
    for _ in range(_LEVELS):
        below: list[str] = []
        for folder in folders:
            names, inner = entries(joined(where, folder) if folder else where)
            yield from (folder + name for name in names)
            inner.sort(key=lambda name: (name not in (*SPLITS, "data"), name))
            below += [f"{folder}{name}/" for name in inner[:_FOLDERS]]
        folders = below


def source_files(where: str, extension: str) -> tuple[list[str], str]:
    """Return the files that a source stands for, in order, and the folder that all of them lie below.

    Args:
        where: the absolute path or URL of a file or folder, or a pattern of files.
        extension: of the files, with its dot.

    Raises:
        SourceError: a folder without such files, or a pattern that names one twice.
        StorageError: a folder cannot be listed.
    """
    if names_many(where):
        files = [file if is_remote(file) else os.path.abspath(local_path(file)) for file in expand_pattern(where)]
        if len(set(files)) < len(files):
            twice = next(file for file in files if files.count(file) > 1)
            raise SourceError(f"the pattern {readable(where)} names {readable(twice)} more than once; name it once")
        return files, common_folder(files)
    if where.endswith(extension) and (is_remote(where) or not os.path.isdir(where)):
        return [where], where.rpartition("/")[0] or "/"

    def is_one(name: str) -> bool:
        return name.endswith(extension)

    names = find_remote(where, is_one)[0] if is_remote(where) else find_local(where, is_one)
    files = [joined(where, name) for name in sorted(names)]
    if not files:
        raise SourceError(f"no {extension} files in {readable(where)}; check the path")
    return files, where


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder above all absolute paths or URLs; of URLs without a common bucket, it is none of theirs."""
    first, last = min(paths).split("/"), max(paths).split("/")  # what these share, all others do
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return "/".join(first[:shared]) or "/"
