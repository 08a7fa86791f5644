"""Functions of the values of a field, as in ``map_fields={"caption": tokenize}``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from feeder.errors import ConfigError, TransformError
from feeder.foreign.functions import call_each, check_sendable, guarded, name_of, takes_rng


@dataclass(frozen=True, slots=True)
class FieldFunction:
    """A function of the values of a field.

    Attributes:
        function: of one value; with `batched`, of a list of them.
        batched: whether it takes a list of values and returns as many results. How many it gets depends on threads
            and on where a batch ends, so each result must depend on its own value alone: it gets no generator, and the
            process's are not seeded for it.
    """

    function: Callable[..., Any]
    batched: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(
                f"map_fields got {self.function!r}; give a function of a value, as in {{'caption': tokenize}}"
            )
        if self.batched and takes_rng(self.function):
            raise ConfigError(
                f"{name_of(self.function)} is batched and takes rng; how many values come together depends on threads,"
                " and so would what is drawn: write a function of one value"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        check_sendable(self.function, "map_fields")
        return FieldFunction, (self.function, self.batched)


def batched(function: Callable[[list[Any]], Any]) -> FieldFunction:
    """Mark a function that takes the list of values of many samples, as tokenizers do ten times as fast.

    Usable as a decorator. It returns one result for each value: a list, or an array or tensor with a first axis of that
    length. Each result must depend on its own value alone.
    """
    return FieldFunction(function, batched=True)


def apply_field(function: FieldFunction | Callable[..., Any], values: Sequence[Any], keys: Sequence[int]) -> list[Any]:
    """Return what a function makes of the values of a field, one result each.

    A function of one value gets its generator by ``rng``, or those of the process seeded, as transforms do; see
    `feeder.foreign.functions`.

    Args:
        function: of one value, or what `batched` returned.
        values: of n samples.
        keys: n keys of 64 bits, one for each sample.

    Raises:
        TransformError: the function raised, or did not return one result for each value.
    """
    if not isinstance(function, FieldFunction):
        function = FieldFunction(function)
    what = "map_fields: function"
    if not function.batched:
        return call_each(function.function, values, keys, what)
    results = guarded(function.function, list(values), what=what) if len(values) else []
    try:
        results = list(results)
    except TypeError:
        results = [results]
    if len(results) != len(values):
        raise TransformError(
            f"{what} {name_of(function.function)} returned {len(results)} results for {len(values)} values; a batched"
            " function returns one for each, in their order"
        )
    return results
