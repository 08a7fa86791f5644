"""Values of a JSON object, checked one by one; what is wrong is said before the place of the document is known."""

from collections.abc import Iterator
from typing import Any

_COPY_OR_BUILD = "; copy the dataset again from its origin, or build it again"


class FaultError(Exception):
    """What is wrong inside a document, and what to do about it; the caller knows where the document lies."""

    def __init__(self, what: str, next_step: str = _COPY_OR_BUILD) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step


def required(entry: dict[str, Any], kind: type, name: str, at: str = "") -> Any:
    """Return entry[name], which must be there and of a type; bool does not pass as int."""
    if name not in entry:
        raise FaultError(f"missing value at {at}{name}")
    value = entry[name]
    if type(value) is not kind:
        got = "null" if value is None else type(value).__name__
        raise FaultError(f"{at}{name} is {got}, expected {kind.__name__},")
    return value


def objects(document: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (key, value, what stands before the names in it) of the object document[name], whose values are objects."""
    for key, value in required(document, dict, name).items():
        if type(value) is not dict:
            raise FaultError(f"{name}.{key} is {type(value).__name__}, expected an object,")
        yield key, value, f"{name}.{key}."


def optional(entry: dict[str, Any], kind: type, name: str, at: str = "") -> Any:
    """Return entry[name], which may be missing or null, else must be of a type."""
    return None if entry.get(name) is None else required(entry, kind, name, at)


def one_of(entry: dict[str, Any], name: str, allowed: tuple[str, ...], at: str = "") -> str:
    """Return entry[name], which must be one of the names that this version knows."""
    value = required(entry, str, name, at)
    if value not in allowed:
        known = ", ".join(map(repr, allowed))
        raise FaultError(f"{at}{name} is {value!r}, expected one of {known},", "; upgrade shardfeed")
    return str(value)
