"""Labels: numbers of classes, found one way in every source.

Class names that a source gives as text are numbered in the order of their bytes, as torchvision's ``ImageFolder`` does,
or by the file of classes. Integers are labels already. A sample without a label has −1.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.errors import SourceError
from feeder.shards.names import readable

MAX_CLASSES = 1_000_000  # a larger integer is no class but some other number


def number_classes(names: Iterable[str], known: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """Return the classes in order of their labels: those known, or the names sorted.

    Raises:
        SourceError: a name that is not among the classes known.
    """
    if known is None:
        return tuple(sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape")))
    if strangers := sorted(set(names).difference(known)):
        raise SourceError(
            f"{where} has samples of the class {readable(strangers[0])!r}, which the file of classes does not name (it "
            f"has {len(known)} classes, such as {known[0]!r}); add it at the file's end, or take its samples away"
        )
    return known


def column_labels(
    column: pa.ChunkedArray, known: tuple[str, ...] | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return int64[n] labels and the classes of a column of texts or of integers; nulls become −1.

    Args:
        column: string or int64.
        known: the classes, where the user or the source itself lists them.
        where: the list and the column, for messages.

    Raises:
        SourceError: a class or a number that is not among the classes, or an integer that is no label.
    """
    if pa.types.is_integer(column.type):
        labels = np.asarray(pc.fill_null(column.cast(pa.int64()), -1), np.int64)
        return labels, integer_classes(labels, known, where)
    present = pc.unique(column).drop_null()
    classes = number_classes(present.to_pylist(), known, where)
    numbers = pc.index_in(column, value_set=pa.array(classes, column.type))
    return np.asarray(pc.fill_null(numbers, -1), np.int64), classes


def integer_classes(labels: NDArray[np.int64], known: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """Return the classes of integers: those known, or ``"0"``, ``"1"``, … up to the largest label.

    Raises:
        SourceError: an integer that is no label.
    """
    least, most = (int(labels.min()), int(labels.max())) if labels.size else (-1, -1)
    wrong = least if least < -1 else most
    if known is not None and most >= len(known):
        raise SourceError(
            f"{where} has the label {most}, but there are {len(known)} classes, so labels go to {len(known) - 1}; give "
            "a file of classes that has them all"
        )
    if least < -1 or most >= MAX_CLASSES:
        raise SourceError(
            f"{where} has the label {wrong}, expected 0 to {MAX_CLASSES - 1}, or -1 where a sample has none; name "
            "another column with --label-column"
        )
    return known if known is not None else tuple(map(str, range(most + 1)))
