"""Checks of the arguments that several pixel transforms share; each returns the value to store, or raises."""

from typing import Any, Literal

from feeder.arguments import is_real, length
from feeder.errors import ConfigError

Interpolation = Literal["nearest", "bilinear"]
Fill = float | tuple[float, float, float] | None
_INTERPOLATIONS = ("nearest", "bilinear")


def probability(item: object, value: Any) -> float:
    """Return a checked ``p``."""
    if not is_real(value) or not 0 <= value <= 1:
        raise ConfigError(f"{_name(item)} got p={value!r}; give a probability from 0 to 1")
    return float(value)


def number(item: object, name: str, value: Any, least: float, greatest: float) -> float:
    """Return a checked number of a range."""
    if not is_real(value) or not least <= value <= greatest:
        raise ConfigError(f"{_name(item)} got {name}={value!r}; give a number from {least:g} to {greatest:g}")
    return float(value)


def interval(
    item: object, name: str, value: Any, *, least: float, greatest: float = float("inf"), above: bool = False
) -> tuple[float, float]:
    """Return a checked (least, greatest) within bounds; ``above`` excludes the lower bound itself.

    The sentence quotes the argument as it was given, of which ``value`` may be made.
    """
    if (
        length(value) != 2
        or not all(is_real(end) for end in value)
        or not least <= value[0] <= value[1] <= greatest
        or (above and value[0] == least)
    ):
        bounds = f"{'above' if above else 'from'} {least:g}" + (f" to {greatest:g}" if greatest < float("inf") else "")
        raise ConfigError(f"{_name(item)} got {name}={getattr(item, name)!r}; give (least, greatest), {bounds}")
    return float(value[0]), float(value[1])


def interpolation(item: object, value: Any) -> Interpolation:
    """Return a checked filter; torchvision's ``InterpolationMode`` as its plain name."""
    plain = getattr(value, "value", value)
    if plain not in _INTERPOLATIONS:
        known = " or ".join(repr(name) for name in _INTERPOLATIONS)
        raise ConfigError(f"{_name(item)} got interpolation={value!r}; give {known}")
    return plain  # type: ignore[no-any-return]


def fill(item: object, value: Any) -> Fill:
    """Return a checked colour of what comes into the image from outside: None for black, a level, or R, G and B."""
    if value is None:
        return None
    levels = (value,) if length(value) is None else tuple(value)
    if isinstance(value, dict) or len(levels) not in (1, 3) or not all(is_real(v) and 0 <= v <= 255 for v in levels):
        raise ConfigError(f"{_name(item)} got fill={value!r}; give a level from 0 to 255, or three, for R, G and B")
    return tuple(float(level) for level in levels) if len(levels) == 3 else float(levels[0])  # type: ignore[return-value]


def fill_levels(value: Fill) -> tuple[int, int, int]:
    """Return the levels of R, G and B; fractions are cut, as torchvision does on PIL images."""
    levels = value if isinstance(value, tuple) else (value or 0.0,) * 3
    red, green, blue = (int(level) for level in levels)
    return red, green, blue


def _name(item: object) -> str:
    return type(item).__name__
