"""What expressions compute with: functions of Arrow arrays and scalars in which missing values stay missing.

Texts may come as dictionary arrays, in which equal texts share a number; what is asked of them is then computed once
for each text of the dictionary.
"""

import ast
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Operation = Callable[..., Any]

CHANGES = {"lower": pc.utf8_lower, "upper": pc.utf8_upper, "strip": pc.utf8_trim_whitespace}

_FEW = 4  # so many comparisons are quicker than one look-up in a hash table


def of_texts(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function of text that is computed once for each distinct text of a dictionary array."""

    def compute(texts: Any) -> Any:
        if isinstance(texts, pa.DictionaryArray):
            return function(texts.dictionary).take(texts.indices)
        return function(texts)

    return compute


def changed(change: Callable[[Any], Any], texts: Any) -> Any:
    """Return texts after a change; a dictionary array stays one."""
    if isinstance(texts, pa.DictionaryArray):
        return pa.DictionaryArray.from_arrays(texts.indices, change(texts.dictionary))
    return change(texts)


def plain(texts: Any) -> Any:
    return texts.cast(pa.string()) if isinstance(texts, pa.DictionaryArray) else texts


def any_of(test: Callable[..., Any], texts: Any, patterns: list[str]) -> Any:
    result = test(texts, pattern=patterns[0])
    for pattern in patterns[1:]:
        result = pc.or_(result, test(texts, pattern=pattern))
    return result


def is_in(values: Any, wanted: pa.Array) -> Any:
    """Say of each value whether it is one of some; null where there is no value."""
    if 0 < len(wanted) <= _FEW:
        result = pc.equal(values, wanted[0])
        for item in wanted[1:]:
            result = pc.or_(result, pc.equal(values, item))
        return result
    if values.type != wanted.type:
        values = values.cast(wanted.type)
    return pc.is_in(values, value_set=wanted)


def as_float(value: Any) -> Any:
    return value if value.type == pa.float64() else pc.cast(value, pa.float64(), safe=False)


def as_int(value: Any) -> Any:
    return value if value.type == pa.int64() else pc.cast(value, pa.int64())


def _divided(left: Any, right: Any) -> Any:
    return pc.divide(left, _without_zeros(right))


def _without_zeros(divisor: Any) -> Any:
    """Return divisors with nothing in place of zero."""
    return pc.if_else(pc.equal(divisor, 0), pa.scalar(None, divisor.type), divisor)


def _in_numpy(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a function of divisions that follows Python: rounded down, the remainder with the divisor's sign."""

    def compute(left: Any, right: Any) -> Any:
        right = _without_zeros(right)
        there = pc.and_(pc.is_valid(left), pc.is_valid(right))
        dividend, divisor = (np.asarray(_filled(value)) for value in (left, right))
        if dividend.dtype == np.int64 and np.any((dividend == -(2**63)) & (divisor == -1)):
            raise OverflowError
        result = np.atleast_1d(function(dividend, divisor))
        there_too = there.as_py() if isinstance(there, pa.Scalar) else np.asarray(there)
        array = pa.array(result, mask=~np.full(result.shape, there_too, np.bool_))
        return array[0] if isinstance(there, pa.Scalar) else array

    return compute


def _filled(value: Any) -> Any:
    filled = pc.fill_null(value, 1)
    return filled.as_py() if isinstance(filled, pa.Scalar) else filled.to_numpy(zero_copy_only=False)


ARITHMETIC: dict[type[ast.operator], Operation] = {
    ast.Add: pc.add_checked,
    ast.Sub: pc.subtract_checked,
    ast.Mult: pc.multiply_checked,
    ast.Div: _divided,
    ast.FloorDiv: _in_numpy(np.floor_divide),
    ast.Mod: _in_numpy(np.remainder),
}


def holds_part(texts: Any, pattern: str) -> Any:
    """Say of each text whether it holds another one; Arrow's regular expressions find it in half the time."""
    escaped = "".join(c if c.isalnum() or c == "_" or c > "\x7f" else f"\\x{ord(c):02x}" for c in pattern)
    return pc.match_substring_regex(texts, pattern=escaped)


TESTS: dict[str, Operation] = {"startswith": pc.starts_with, "endswith": pc.ends_with, "contains": holds_part}
