"""One sample of a dataset as files: the members that a tar shard has of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from feeder.errors import ConfigError
from feeder.shards.formats.tar import SCALARS_EXTENSION, encode_scalars, member_extension, scalar_names
from feeder.shards.images.headers import FILE_EXTENSIONS
from feeder.shards.reading.listing import find_sample
from feeder.shards.reading.rows import Reader
from feeder.shards.storage import staged_file
from feeder.tools.console import printable


def extract(reader: Reader, key: str, to: str) -> list[Path]:
    """Write a sample into files, which replace those of the same names; return them.

    Args:
        reader: an open dataset.
        key: of the sample.
        to: a folder, which gets one file a field, called by the last part of the key and the field's extension; or
            else a file, which gets the image.

    Raises:
        ConfigError: no sample has the key, or the place is in a folder that does not exist.
        ShardError, StorageError: the sample cannot be read.
    """
    target = Path(to)
    whole = target.is_dir() or to.endswith(os.sep)
    if not (target if whole else target.absolute().parent).is_dir():
        raise ConfigError(f"--to {to} cannot be written: its folder does not exist; make it first")
    number = find_sample(reader, key)
    written = []
    for extension, data in _members(reader, number):
        path = target / f"{_stem(key)}.{extension}" if whole else target
        with staged_file(path) as file:
            file.write(data)
        written.append(path)
        if not whole:
            break  # the image comes first
    return written


def _stem(key: str) -> str:
    """Return the name that files of a sample share; only keys of plain folders end as files do."""
    stem, suffix = os.path.splitext(printable(key.rpartition("/")[2]))
    return stem if suffix.lower() in FILE_EXTENSIONS else stem + suffix


def _members(reader: Reader, number: int) -> Iterator[tuple[str, bytes]]:
    """Yield extension and bytes of each field of a sample, the image first."""
    fields = reader.manifest.fields
    ids = np.array([number])
    for name, field in fields.items():
        if field.stored:
            rows, (data,) = reader.read(ids, name)
            if data:
                yield member_extension(name, field, rows.formats[0] if field.type == "image" else None), data
    scalars = scalar_names(fields)
    values = {name: reader.values(ids, name)[0] for name, field in fields.items() if not field.stored}
    for name, value in values.items():
        if name == "label":
            if value >= 0:
                yield member_extension(name, fields[name]), b"%d" % value
        elif name not in scalars and isinstance(value, str):
            yield member_extension(name, fields[name]), value.encode()
    if scalars:
        yield SCALARS_EXTENSION, encode_scalars({name: values[name] for name in scalars})
