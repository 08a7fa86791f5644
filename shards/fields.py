"""The fields of a sample: their types, and where each is kept.

==========  ======================================  ============================================================
type        value                                   where it is kept
==========  ======================================  ============================================================
image       an encoded image                        bytes in the shard; size and format in the index
bytes       any bytes                               bytes in the shard
json        the text of a JSON document, as bytes   bytes in the shard
string      text, or None                           a column of the index
int64       an integer, or None                     a column of the index
float64     a number, or None                       a column of the index
bool        true, false or None                     a column of the index
==========  ======================================  ============================================================

Every sample has the field ``image``; a stored field other than that one may be absent in some samples. ``label``, where
there is one, is an int64: a number of the manifest's classes, −1 where a sample has none. Columns of the index may also
stand in the dataset's ``columns/`` (`feeder.shards.dataset.manifest`).
"""

import dataclasses
import re

STORED_TYPES = ("image", "bytes", "json")
COLUMN_TYPES = ("string", "int64", "float64", "bool")
TYPES = STORED_TYPES + COLUMN_TYPES

ABSENT = -2  # stands for the size of a stored field that a sample does not have

FIELD_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
RESERVED = frozenset({"key", "source", "id", "scalars"})  # columns that every sample has, and the member of scalars


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of every sample.

    Attributes:
        type: one of `TYPES`.
        extension: that of the field's tar member, lower case, without its leading dot; None where each image has the
            one of its format, and where the field has no member of its own.
    """

    type: str
    extension: str | None = None

    @property
    def stored(self) -> bool:
        """Whether shards hold the field's bytes; else it is a column."""
        return self.type in STORED_TYPES


LABEL = Field(type="int64", extension="cls")  # as webdataset's users name its member
