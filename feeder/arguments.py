"""Arguments that are integers, of whatever library."""

import operator
from typing import Any


def as_integer(value: Any) -> int | None:
    """Return an integer, NumPy's and torch's included, as Python's own; None for anything else, True and False too.

    States keep integers, and neither JSON nor ``torch.load(weights_only=True)`` reads those of NumPy.
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
