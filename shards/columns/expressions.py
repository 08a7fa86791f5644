"""Conditions on the columns of a dataset, such as ``label in [3, 7] and width >= 256 and not source.startswith('x')``.

They are written in a small part of Python's expressions and never run as Python: the text is parsed, names and types
are checked, and it becomes a function over Arrow arrays.

=====================================  ==========================================================================
``label``, ``width``, ``score``        columns: ``key``, ``source``, every column field; ``width``, ``height`` and
                                       ``format`` stand for ``image.width`` and so on where no field has that name
``mask.width``, ``column('my-score')`` columns whose names hold dots, or what Python does not allow
``7``, ``0.5``, ``-1``, ``'x'``,       numbers, text, truth values
``True``
``== != < <= > >=``                    number with number, text with text, truth value with truth value (== and !=);
                                       chains: ``256 <= width < 512``
``in``, ``not in``                     a list of numbers or texts; ``'dog' in caption`` looks for a part of a text
``is None``, ``is not None``           whether there is a value
``and``, ``or``, ``not``, ``( )``      of conditions
``+ - * / // %``, ``abs(x)``           of numbers, as in Python
``len(text)``, ``text.lower()``,       of text; ``startswith`` and ``endswith`` take one text or a tuple of them
``upper()``, ``strip()``,
``startswith(…)``, ``endswith(…)``,
``contains(…)``
=====================================  ==========================================================================

A comparison with a missing value is false, so is ``in`` and ``not in``, a missing truth value counts as false, and
what is computed from a missing value, or divided by zero, is missing. Logic has two values only: ``not score > 1``
holds where there is no score. Integers have 64 bits, and a result beyond them is an error, not a wrong number; where
one meets a float, it becomes one.
"""

import ast
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.columns.computing import (
    ARITHMETIC,
    CHANGES,
    TESTS,
    any_of,
    as_float,
    as_int,
    changed,
    holds_part,
    is_in,
    of_texts,
    plain,
)

Batch = Mapping[str, pa.Array]
"""The values of some rows, by column."""

_MAX_SHOWN = 200  # characters of an expression in a sentence
SHORT_NAMES = {name: f"image.{name}" for name in ("width", "height", "format")}
_KINDS = {"int": "an integer", "float": "a number", "bool": "a truth value", "text": "a text"}
_COMPARISONS = {
    ast.Eq: ("==", pc.equal),
    ast.NotEq: ("!=", pc.not_equal),
    ast.Lt: ("<", pc.less),
    ast.LtE: ("<=", pc.less_equal),
    ast.Gt: (">", pc.greater),
    ast.GtE: (">=", pc.greater_equal),
}
_ARROW_TYPES = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}


class ExpressionError(ConfigError):
    """An expression that cannot be: the sentence quotes the place in its text."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A condition that was checked against the columns of a dataset.

    Attributes:
        text: its canonical form: expressions that differ in spaces, quotes and needless parentheses have the same.
        columns: the names of the columns that it reads.
    """

    text: str
    columns: tuple[str, ...]
    _condition: "_Condition"

    def mask(self, batch: Batch, rows: int) -> NDArray[np.bool_]:
        """Return bool[rows]: where the condition holds.

        Raises:
            ExpressionError: an integer passes 64 bits.
        """
        holds = self._condition(batch)
        if isinstance(holds, pa.Scalar):
            return np.full(rows, holds.as_py(), np.bool_)
        return np.asarray(holds.to_numpy(zero_copy_only=False), np.bool_)


_Condition = Callable[[Batch], Any]


def parse_expression(text: str, types: Mapping[str, pa.DataType]) -> Expression:
    """Return the condition that a text states.

    Args:
        text: see the module's text.
        types: the columns that there are.

    Raises:
        ExpressionError: it is no expression of this kind, names an unknown column, or mixes types.
    """
    line = " ".join(text.split("\n")).strip()
    try:
        root = ast.parse(line, mode="eval").body
        compiler = _Compiler(line, types)
        term = compiler.condition(root)
        canonical = ast.unparse(root)
    except SyntaxError as error:
        at = min(error.offset or len(line) + 1, len(line) + 1)  # none: the end comes too early
        raise ExpressionError(
            f"expression {_shown(line)} cannot be read at character {at} ({error.msg}); expected a condition such as "
            "label in [3, 7] and width >= 256"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError(
            f"expression of {len(line)} characters cannot be read: it holds a zero byte or is nested too deeply; "
            "shorten it"
        ) from error
    if not compiler.columns:
        raise ExpressionError(f"expression {_shown(line)} names no column, so it is the same for all samples")
    return Expression(text=canonical, columns=tuple(sorted(compiler.columns)), _condition=term)


@dataclasses.dataclass(frozen=True, slots=True)
class _Term:
    """A checked part of an expression: its kind (a key of `_KINDS`), and what computes it."""

    kind: str
    compute: Callable[[Batch], Any]

    @property
    def is_number(self) -> bool:
        return self.kind in ("int", "float")


class _Compiler:
    """Checks a parsed expression and turns it into functions, part by part."""

    def __init__(self, line: str, types: Mapping[str, pa.DataType]) -> None:
        self._line = line
        self._types = types
        self.columns: set[str] = set()
        self._terms: dict[ast.expr, _Term] = {}  # the middle of a chain is asked for twice

    # Conditions ------------------------------------------------------------------------------------------------------

    def condition(self, node: ast.expr) -> _Condition:
        """Return what computes a condition: a boolean array without nulls, or a scalar."""
        if isinstance(node, ast.BoolOp):
            combine = pc.and_ if isinstance(node.op, ast.And) else pc.or_
            return _combined(combine, [self.condition(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.condition(node.operand)
            return lambda batch: pc.invert(inner(batch))
        if isinstance(node, ast.Compare):
            return self._comparisons(node)
        term = self._term(node)
        if term.kind != "bool":
            raise self._error(
                node, f"is {_KINDS[term.kind]}, expected a condition; compare it, as in {self._quoted(node)} == …"
            )
        return lambda batch: pc.fill_null(term.compute(batch), False)

    def _comparisons(self, node: ast.Compare) -> _Condition:
        """Return what computes a chain of comparisons, each between neighbours."""
        conditions = []
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, (ast.Is, ast.IsNot)):
                conditions.append(self._presence(operator, left, right))
            elif isinstance(operator, (ast.In, ast.NotIn)):
                conditions.append(self._membership(operator, left, right))
            else:
                conditions.append(self._comparison(operator, left, right))
            left = right
        return _combined(pc.and_, conditions)

    def _presence(self, operator: ast.cmpop, left: ast.expr, right: ast.expr) -> _Condition:
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise self._error(right, "stands after 'is', expected None; compare values with ==")
        term = self._term(left)
        test = pc.is_null if isinstance(operator, ast.Is) else pc.is_valid
        return lambda batch: test(term.compute(batch))

    def _comparison(self, operator: ast.cmpop, left: ast.expr, right: ast.expr) -> _Condition:
        sign, compare = _COMPARISONS[type(operator)]
        one, other = self._term(left), self._term(right)
        if one.kind != other.kind and not (one.is_number and other.is_number):
            raise self._error(
                left,
                f"is {_KINDS[one.kind]}, which cannot be compared with {self._quoted(right)}, {_KINDS[other.kind]}",
            )
        if one.kind == "bool" and sign not in ("==", "!="):
            raise self._error(left, f"is a truth value, which has no order; write == or != in place of {sign}")
        floats = "float" in (one.kind, other.kind)

        def compute(batch: Batch) -> Any:
            a, b = one.compute(batch), other.compute(batch)
            if floats:
                a, b = as_float(a), as_float(b)
            if one.kind == "text":
                if isinstance(b, pa.Scalar) and isinstance(a, pa.DictionaryArray):
                    return pc.fill_null(of_texts(lambda texts: compare(texts, b))(a), False)
                a, b = plain(a), plain(b)
            return pc.fill_null(compare(a, b), False)

        return compute

    def _membership(self, operator: ast.cmpop, left: ast.expr, right: ast.expr) -> _Condition:
        negated = isinstance(operator, ast.NotIn)
        if isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            return self._among(left, right.elts, negated)
        part = left.value if isinstance(left, ast.Constant) else None
        term = self._term(right)
        if term.kind != "text" or not isinstance(part, str):
            raise self._error(right, "stands after 'in', expected a list such as [3, 7], or 'a part' in a text")
        return _found(of_texts(lambda texts: holds_part(texts, part)), term, negated)

    def _among(self, left: ast.expr, items: list[ast.expr], negated: bool) -> _Condition:
        """Return what computes whether a value is one of a list."""
        term = self._term(left)
        values = []
        for item in items:
            value = self._constant(item)
            kind = _kind_of(value)
            if kind != term.kind and not (term.is_number and kind in ("int", "float")):
                raise self._error(
                    item, f"is {_KINDS[kind]}, which cannot be compared with {self._quoted(left)}, {_KINDS[term.kind]}"
                )
            values.append(value)
        floats = any(isinstance(value, float) for value in values)
        kind = "float" if floats else term.kind

        def test(array: Any) -> Any:
            array = as_float(array) if kind == "float" else array
            return is_in(array, pa.array(values, _ARROW_TYPES[kind]))

        return _found(of_texts(test) if term.kind == "text" else test, term, negated)

    # Values ----------------------------------------------------------------------------------------------------------

    def _term(self, node: ast.expr) -> _Term:
        """Return a checked value."""
        if node not in self._terms:
            self._terms[node] = self._new_term(node)
        return self._terms[node]

    def _new_term(self, node: ast.expr) -> _Term:
        if isinstance(node, ast.Name):
            return self._column(node, node.id)
        if isinstance(node, ast.Attribute):
            return self._column(node, ast.unparse(node))
        if isinstance(node, ast.Constant) or _is_signed_number(node):
            value = self._constant(node)
            scalar = pa.scalar(value, _ARROW_TYPES[_kind_of(value)])
            return _Term(_kind_of(value), lambda batch: scalar)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            operand = self._number(node.operand)
            return (
                self._checked(node, operand.kind, pc.negate_checked, operand)
                if isinstance(node.op, ast.USub)
                else operand
            )
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, (ast.BoolOp, ast.Compare)) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        ):
            return _Term("bool", self.condition(node))
        raise self._error(
            node, "is not part of these expressions; they know comparisons, and, or, not, in, is None, arithmetic"
        )

    def _column(self, node: ast.expr, name: str) -> _Term:
        """Return the values of a column."""
        if name not in self._types and (full := SHORT_NAMES.get(name)) in self._types:
            name = str(full)
        kind = self._types.get(name)
        if kind is None:
            raise self._error(node, f"is an unknown column{self._suggestion(name)}")
        self.columns.add(name)
        if pa.types.is_integer(kind):
            return _Term("int", lambda batch: batch[name])
        if pa.types.is_floating(kind):
            return _Term("float", lambda batch: batch[name])
        return _Term("bool" if pa.types.is_boolean(kind) else "text", lambda batch: batch[name])

    def _suggestion(self, name: str) -> str:
        known = [*self._types, *(short for short, full in SHORT_NAMES.items() if full in self._types)]
        if near := difflib.get_close_matches(name, known, 1):
            return f"; did you mean {near[0]!r}?"
        return f"; there are {', '.join(sorted(known))}"

    def _constant(self, node: ast.expr) -> Any:
        """Return the value of a number, a text or a truth value."""
        sign, inner = 1, node
        if isinstance(node, ast.UnaryOp) and _is_signed_number(node):
            sign, inner = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        value = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(value, (bool, str, float)):
            return value if isinstance(value, (bool, str)) else sign * value
        if isinstance(value, int):
            if not -(2**63) <= sign * value < 2**63:
                raise self._error(node, "does not fit into 64 bits")
            return sign * value
        if isinstance(inner, ast.Constant) and value is None:
            raise self._error(
                node, "stands for a missing value, which equals nothing; write 'is None' or 'is not None'"
            )
        raise self._error(node, "stands where a number or a text is expected")

    def _number(self, node: ast.expr) -> _Term:
        term = self._term(node)
        if not term.is_number:
            raise self._error(node, f"is {_KINDS[term.kind]}, expected a number")
        return term

    def _arithmetic(self, node: ast.BinOp) -> _Term:
        operation = ARITHMETIC.get(type(node.op))
        if operation is None:
            raise self._error(node, "has an operator that these expressions do not know; they know + - * / // %")
        left, right = self._number(node.left), self._number(node.right)
        floats = isinstance(node.op, ast.Div) or "float" in (left.kind, right.kind)
        return self._checked(node, "float" if floats else "int", operation, left, right)

    def _checked(self, node: ast.expr, kind: str, operation: Callable[..., Any], *terms: _Term) -> _Term:
        """Return what computes arithmetic, in floats or in integers of 64 bits, and says when these do not suffice."""

        def compute(batch: Batch) -> Any:
            values = (term.compute(batch) for term in terms)
            try:
                return operation(*(as_float(value) if kind == "float" else as_int(value) for value in values))
            except (pa.ArrowInvalid, OverflowError) as error:
                raise self._error(
                    node, "gives an integer beyond 64 bits; compute with floats, as in 1.0 * …"
                ) from error

        return _Term(kind, compute)

    def _call(self, node: ast.Call) -> _Term:
        """Return the result of a function, or of a method of a text."""
        function = node.func
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise self._error(node, "takes plain arguments only")
        if isinstance(function, ast.Attribute):
            return self._method(node, function.attr, function.value)
        name = function.id if isinstance(function, ast.Name) else ""
        if name not in ("abs", "len", "column") or len(node.args) != 1:
            raise self._error(
                node, "is not a function of these expressions; they know abs(number), len(text), column('name')"
            )
        argument = node.args[0]
        if name == "column":
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise self._error(argument, "stands in column(…), expected a name between quotes")
            return self._column(argument, argument.value)
        if name == "abs":
            number = self._number(argument)
            return self._checked(node, number.kind, pc.abs_checked, number)
        text = self._text(argument)
        lengths = of_texts(lambda texts: pc.cast(pc.utf8_length(texts), pa.int64()))
        return _Term("int", lambda batch: lengths(text.compute(batch)))

    def _method(self, node: ast.Call, method: str, owner: ast.expr) -> _Term:
        text = self._text(owner)
        if method in CHANGES and not node.args:
            change = CHANGES[method]
            return _Term("text", lambda batch: changed(change, text.compute(batch)))
        if method in TESTS and len(node.args) == 1:
            (argument,) = node.args
            patterns = argument.elts if isinstance(argument, ast.Tuple) and method != "contains" else [argument]
            wanted = [self._constant(pattern) for pattern in patterns]
            if not wanted or not all(isinstance(pattern, str) for pattern in wanted):
                raise self._error(argument, f"stands in {method}(…), expected a text between quotes")
            test = of_texts(lambda texts: any_of(TESTS[method], texts, wanted))
            return _Term("bool", lambda batch: test(text.compute(batch)))
        known = ", ".join((*(f"{name}()" for name in CHANGES), *(f"{name}('…')" for name in TESTS)))
        raise self._error(node, f"is not a method of a text; there are {known}")

    def _text(self, node: ast.expr) -> _Term:
        term = self._term(node)
        if term.kind != "text":
            raise self._error(node, f"is {_KINDS[term.kind]}, expected a text")
        return term

    # Sentences -------------------------------------------------------------------------------------------------------

    def _quoted(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._line, node) or ast.unparse(node)

    def _error(self, node: ast.expr, what: str) -> ExpressionError:
        """Return an error that quotes a part of the expression, with its place counted in characters from 1."""
        at = len(self._line.encode()[: node.col_offset].decode()) + 1
        return ExpressionError(f"{self._quoted(node)!r} at character {at} of {_shown(self._line)} {what}")


def _shown(line: str) -> str:
    """Return an expression between quotes, as much of it as a sentence can hold."""
    return repr(line if len(line) <= _MAX_SHOWN else line[:_MAX_SHOWN] + "…")


def _kind_of(value: Any) -> str:
    return {bool: "bool", int: "int", float: "float", str: "text"}[type(value)]


def _is_signed_number(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, (ast.USub, ast.UAdd))
        and isinstance(node.operand, ast.Constant)
        and type(node.operand.value) in (int, float)
    )


def _combined(combine: Callable[[Any, Any], Any], conditions: list[_Condition]) -> _Condition:
    """Return what computes conditions one after another and combines them."""
    if len(conditions) == 1:
        return conditions[0]

    def compute(batch: Batch) -> Any:
        result = conditions[0](batch)
        for condition in conditions[1:]:
            result = combine(result, condition(batch))
        return result

    return compute


def _found(test: Callable[[Any], Any], term: _Term, negated: bool) -> _Condition:
    """Return what computes whether values pass a test, or fail it if negated; missing ones do neither."""

    def compute(batch: Batch) -> Any:
        values = term.compute(batch)
        holds = pc.fill_null(test(values), False)
        return pc.and_(pc.invert(holds), pc.is_valid(values)) if negated else holds

    return compute
