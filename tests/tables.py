"""A table of samples with every type of field, for tests."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from feeder.shards.fields import ABSENT, LABEL, Field
from feeder.shards.names import PathTable
from feeder.shards.table import Places, SampleTable
from tests.images import encoded

FIELDS = {
    "image": Field(type="image"),
    "label": LABEL,
    "mask": Field(type="image"),
    "boxes": Field(type="bytes", extension="npy"),
    "caption": Field(type="string", extension="txt"),
    "score": Field(type="float64"),
    "votes": Field(type="int64"),
    "safe": Field(type="bool"),
}


def write_table(root: Path, count: int = 24) -> SampleTable:
    """Write the files of samples with masks, texts and numbers, some of them absent, into ``root``; return their table.

    Sample i is ``birds/0i.JPEG``; its label is i % 3, but that of sample 7 is none.
    """
    names = [f"birds/{row:02d}.JPEG" for row in range(count)]
    stored: dict[str, list[bytes | None]] = {
        "image": [encoded(row, size=(20 + row, 30)) for row in range(count)],
        "mask": [None if row % 4 == 1 else encoded(row, size=(20 + row, 30), format="PNG") for row in range(count)],
        "boxes": [None if row in (0, 17) else bytes(range(row)) for row in range(count)],
    }
    places = {}
    for field, contents in stored.items():
        files = [f"{field}/{row}" for row in range(count)]
        (root / field).mkdir(parents=True)
        for file, content in zip(files, contents, strict=True):
            (root / file).write_bytes(content or b"")
        sizes = np.array([ABSENT if content is None else len(content) for content in contents], np.int64)
        places[field] = Places(files=PathTable(files), sizes=sizes)
    rows = range(count)
    return SampleTable(
        root=str(root),
        names=PathTable(names),
        labels=np.array([-1 if row == 7 else row % 3 for row in rows], np.int64),
        classes=("ant", "bee", "cat"),
        fields=FIELDS,
        stored=places,
        values={
            "caption": pa.array([None if row % 5 == 0 else f"Ein Bild № {row}" for row in rows], pa.string()),
            "score": pa.array([None if row == 3 else row / 7 for row in rows], pa.float64()),
            "votes": pa.array([None if row % 2 else row - 10 for row in rows], pa.int64()),
            "safe": pa.array([(True, False, None)[row % 3] for row in rows], pa.bool_()),
        },
    )
