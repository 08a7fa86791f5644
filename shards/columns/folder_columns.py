"""The columns of a plain folder of images, made in memory when they are asked for."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from feeder.shards.columns.consolidated import Column, expression_types
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.images.headers import FORMATS, UNKNOWN_FORMAT
from feeder.shards.reading.folder import FILES_PER_GROUP, FolderReader


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderColumns:
    """The columns of a plain folder: keys and labels of the list of files, the others of the headers of all images.

    Attributes:
        reader: of the folder.
        cache: the folder of what can be made again.
    """

    reader: FolderReader
    cache: Path

    @property
    def manifest(self) -> Manifest:
        """Of the folder, as its reader has it."""
        return self.reader.manifest

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns that there are, by name, with their types; ``image.format`` is text here."""
        return expression_types(self.manifest.fields)

    def open(self, names: Iterable[str]) -> dict[str, Column]:
        """Return columns by name.

        Raises:
            StorageError: a file cannot be read.
        """
        columns, of_headers = {}, []
        for name in names:
            if name in ("key", "source"):
                columns[name] = Column(name, [pa.array(self.reader.keys(), pa.string())])
            elif name == "label":
                ids = np.arange(self.manifest.num_samples)
                columns[name] = Column(name, [pa.array(self.reader.values(ids, name), pa.int64())])
            else:
                of_headers.append(name)
        return columns | self._read(of_headers)

    def _read(self, names: list[str]) -> dict[str, Column]:
        """Return columns of what headers say; every file is opened."""
        if not names:
            return {}
        chunks: dict[str, list[pa.Array]] = {"image.width": [], "image.height": [], "image.format": []}
        total = self.manifest.num_samples
        for start in range(0, total, FILES_PER_GROUP):
            rows = self.reader.describe(np.arange(start, min(start + FILES_PER_GROUP, total)))
            chunks["image.width"].append(pa.array(rows.widths))
            chunks["image.height"].append(pa.array(rows.heights))
            numbers = [FORMATS.index(name) if name else UNKNOWN_FORMAT for name in rows.formats]
            chunks["image.format"].append(pa.array(numbers, pa.uint8()))
        return {name: Column(name, chunks[name]) for name in names}
