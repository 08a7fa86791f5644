"""Arguments that must be integers, of whatever library, numbers, or one of a few words."""

import math
import operator
from typing import Any

from feeder.errors import ConfigError


def as_integer(value: Any) -> int | None:
    """Return an integer, NumPy's and torch's included, as Python's own; None for anything else, True and False too.

    States keep integers, and neither JSON nor ``torch.load(weights_only=True)`` reads those of NumPy.
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def checked_integer(name: str, value: Any, *, least: int | None = None) -> int:
    """Return an argument that must be an integer as Python's own; ConfigError names it."""
    number = as_integer(value)
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{name} is {value!r}; it must be an integer{bound}")
    return number


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return an argument that must be one of a few words; ConfigError names it and them."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
    return value


def is_real(value: Any) -> bool:
    """Return whether a value is a finite number, of whatever library."""
    try:
        return not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def length(value: Any) -> int | None:
    """Return the length of a sequence of values, None for anything else."""
    return len(value) if hasattr(value, "__len__") and not isinstance(value, str | bytes) else None


def store(item: object, **values: Any) -> None:
    """Store checked values in a frozen description, while it is being made."""
    for name, value in values.items():
        object.__setattr__(item, name, value)
