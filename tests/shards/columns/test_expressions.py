"""Expressions mean what Python means, missing values aside, and say where they are wrong."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.columns.consolidated import format_names
from feeder.shards.columns.expressions import ExpressionError, parse_expression

TYPES = {
    "key": pa.string(),
    "source": pa.string(),
    "label": pa.int64(),
    "image.width": pa.int32(),
    "image.height": pa.int32(),
    "image.format": pa.string(),
    "score": pa.float64(),
    "flag": pa.bool_(),
    "my-score": pa.int64(),
}
BATCH = {
    "key": pa.array(["a", "b", "c", "d"]),
    "source": pa.array(["xa.jpg", "b", None, "Ü b"]),
    "label": pa.array([3, 7, -1, None]),
    "image.width": pa.array([256, 100, 300, 0], pa.int32()),
    "image.height": pa.array([256, 2**31 - 1, 300, 0], pa.int32()),
    "image.format": format_names(pa.array([0, 1, 255, 2], pa.uint8())),
    "score": pa.array([0.5, None, float("nan"), 2.0]),
    "flag": pa.array([True, False, None, True]),
    "my-score": pa.array([7, -7, 2**62, 0]),
}


def rows(expression: str) -> list[int]:
    return np.flatnonzero(parse_expression(expression, TYPES).mask(BATCH, 4)).tolist()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("label in [3, 7] and width >= 256 and not source.startswith('xa')", []),
        ("label in [3, 7] and width >= 256", [0]),
        ("label == 3 or label == 7", [0, 1]),
        ("256 <= width <= 256", [0]),
        ("100 < width < 300", [0]),
        ("width == image.width", [0, 1, 2, 3]),
        ("width * height > 100", [0, 1, 2]),
        ("width + height - 512 == 0", [0]),
        ("-width < -255", [0, 2]),
        ("width / 3 > 33.4", [0, 2]),
        ("width // 3 == 33", [1]),
        ("column('my-score') // 2 == -4", [1]),
        ("column('my-score') % 4 == 1", [1]),
        ("abs(column('my-score')) == 7", [0, 1]),
        ("width % 7.5 == 1.0", [0]),
        ("1 / width > 0.003", [0, 1, 2]),
        ("1 // width >= 0", [0, 1, 2]),
        ("1 % width >= 0", [0, 1, 2]),
        ("format == 'jpeg'", [0]),
        ("format != 'jpeg'", [1, 2, 3]),
        ("format in ['png', '']", [1, 2]),
        ("format.upper() in ['PNG', 'A', 'B', 'C', 'D']", [1]),
        ("len(format) == 4", [0, 3]),
        ("format < 'k'", [0, 2]),
        ("format == key", []),
        ("format is None", []),
        ("'e' in format", [0, 3]),
        ("key == 'b'", [1]),
        ("key <= 'b'", [0, 1]),
        ("key in ['a', 'x', 'y', 'z', 'd']", [0, 3]),
        ("source.endswith(('.jpg', 'b'))", [0, 1, 3]),
        ("source.contains('.j')", [0]),
        ("'.' in source", [0]),
        ("' b' in source", [3]),
        ("'' in source", [0, 1, 3]),
        ("'Ü' in source", [3]),
        ("source.lower().strip() == 'ü b'", [3]),
        ("len(source) == 3", [3]),
        ("flag", [0, 3]),
        ("flag == False", [1]),
        ("flag in [True]", [0, 3]),
        ("(label == 3) == flag", [0, 1]),
        ("label == 3.0", [0]),
        ("label < 3.5", [0, 2]),
        ("label in [3.0, 7.5]", [0]),
        ("score in [0.5, 2]", [0, 3]),
        ("+label == 3", [0]),
        ("label == -1", [2]),
        ("label in (-1, 7)", [1, 2]),
        ("label in {3}", [0]),
        ("label in []", []),
        # two values of logic: a comparison with a missing value is false, its negation true
        ("score > 0.4", [0, 3]),
        ("not score > 0.4", [1, 2]),
        ("score != 0.5", [2, 3]),
        ("score is None", [1]),
        ("score is not None", [0, 2, 3]),
        ("not flag", [1, 2]),
        ("flag is None", [2]),
        ("label not in [3]", [1, 2]),
        ("not label in [3]", [1, 2, 3]),
        ("source not in ['b']", [0, 3]),
        ("'x' not in source", [1, 3]),
        ("source.startswith('x') or source is None", [0, 2]),
        ("score + label > 0", [0]),
        ("score + label is None", [1, 3]),
        ("len(source) is None", [2]),
    ],
)
def test_what_an_expression_selects(expression: str, expected: list[int]) -> None:
    assert rows(expression) == expected


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("labl == 3", "'labl' at character 1 of 'labl == 3' is an unknown column; did you mean 'label'?"),
        (
            "label == 3 and widht > 2",
            "'widht' at character 16 of 'label == 3 and widht > 2' is an unknown column; did you mean 'width'?",
        ),
        (
            "zzz == 3",
            (
                "'zzz' at character 1 of 'zzz == 3' is an unknown column; there are flag, format, height, "
                "image.format, image.height, image.width, key, label, my-score, score, source, width"
            ),
        ),
        (
            "'ü' == source and mask.width > 3",
            (
                "'mask.width' at character 19 of \"'ü' == source and mask.width > 3\" is an unknown column; did "
                "you mean 'image.width'?"
            ),
        ),
        (
            "label",
            "'label' at character 1 of 'label' is an integer, expected a condition; compare it, as in label == …",
        ),
        (
            "label == 'x'",
            "'label' at character 1 of \"label == 'x'\" is an integer, which cannot be compared with 'x', a text",
        ),
        (
            "label in ['x']",
            "\"'x'\" at character 11 of \"label in ['x']\" is a text, which cannot be compared with label, an integer",
        ),
        (
            "label == None",
            (
                "'None' at character 10 of 'label == None' stands for a missing value, which equals nothing; write 'is "
                "None' or 'is not None'"
            ),
        ),
        ("label is 3", "'3' at character 10 of 'label is 3' stands after 'is', expected None; compare values with =="),
        (
            "label in 3",
            (
                "'3' at character 10 of 'label in 3' stands after 'in', expected a list such as [3, 7], or 'a part' "
                "in a text"
            ),
        ),
        (
            "flag < True",
            "'flag' at character 1 of 'flag < True' is a truth value, which has no order; write == or != in place of <",
        ),
        ("len(label) == 1", "'label' at character 5 of 'len(label) == 1' is an integer, expected a text"),
        ("key + 1 == 2", "'key' at character 1 of 'key + 1 == 2' is a text, expected a number"),
        (
            "label ** 2 == 9",
            (
                "'label ** 2' at character 1 of 'label ** 2 == 9' has an operator that these expressions do not know; "
                "they know + - * / // %"
            ),
        ),
        (
            "max(label) == 9",
            (
                "'max(label)' at character 1 of 'max(label) == 9' is not a function of these expressions; they know "
                "abs(number), len(text), column('name')"
            ),
        ),
        (
            "key.title() == 'A'",
            (
                "'key.title()' at character 1 of \"key.title() == 'A'\" is not a method of a text; there are lower(), "
                "upper(), strip(), startswith('…'), endswith('…'), contains('…')"
            ),
        ),
        (
            "label if flag else 3",
            (
                "'label if flag else 3' at character 1 of 'label if flag else 3' is not part of these expressions; "
                "they know comparisons, and, or, not, in, is None, arithmetic"
            ),
        ),
        ("label == 99999999999999999999", "does not fit into 64 bits"),
        ("1 < 2", "expression '1 < 2' names no column, so it is the same for all samples"),
        ("label ==", "expression 'label ==' cannot be read at character 9 (invalid syntax); expected a condition such"),
        ("", "expression '' cannot be read at character 1"),
        ("__import__('os').system('true') == 0", "is not a function of these expressions"),
        ("(" * 5000, "cannot be read"),
        ("not " * 5000 + "flag", "cannot be read"),
        ("label\0", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(expression: str, sentence: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        rows(expression)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_integer_beyond_64_bits_is_an_error() -> None:
    for expression in ("column('my-score') * 4 > 0", "column('my-score') + 9223372036854775807 > 0"):
        with pytest.raises(ExpressionError, match="gives an integer beyond 64 bits; compute with floats, as in 1.0"):
            rows(expression)


def test_the_canonical_form_does_not_depend_on_spelling() -> None:
    forms = {parse_expression(text, TYPES).text for text in ("label==3 and(key=='x')", ' label == 3\n and key == "x" ')}
    assert forms == {"label == 3 and key == 'x'"}
    assert parse_expression("width > 3 or label is None", TYPES).columns == ("image.width", "label")


def test_a_field_of_its_own_hides_the_short_name_of_the_image() -> None:
    expression = parse_expression("width > 3", {**TYPES, "width": pa.float64()})
    assert expression.columns == ("width",)


numbers = st.one_of(
    st.sampled_from(["a", "b", "c"]),
    st.integers(-20, 20).map(lambda n: str(n) if n >= 0 else f"({n})"),
    st.sampled_from(["0.5", "2.0", "1e3"]),
)
arithmetic = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(["/", "//", "%"]), st.sampled_from(["3", "(-7)", "2.5"])).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda text: f"abs({text})"),
        inner.map(lambda text: f"(-{text})"),
    ),
    max_leaves=4,
)
texts = st.sampled_from(["s", "t", "s.lower()", "t.upper()", "s.strip()", "'ab'", "''", "'A b'"])
operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
conditions = st.recursive(
    st.one_of(
        st.tuples(arithmetic, operators, arithmetic).map(" ".join),
        st.tuples(arithmetic, operators, arithmetic, operators, arithmetic).map(" ".join),
        st.tuples(texts, operators, texts).map(" ".join),
        st.tuples(
            st.sampled_from(["a", "b", "c"]), st.sampled_from(["in [1, -2, 3]", "not in (1, 2.5, 7, 8, 9, 10)"])
        ).map(" ".join),
        st.tuples(
            st.sampled_from(["'a'", "'b '", "''", "'.'"]), st.sampled_from(["in", "not in"]), st.sampled_from("st")
        ).map(" ".join),
        st.sampled_from(
            ["s.startswith('a')", "t.endswith(('b', ' '))", "len(s) > 2", "f", "f == True", "s in ['ab', '']"]
        ),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda text: f"(not {text})"),
    ),
    max_leaves=4,
)
samples = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.integers(-100, 100),
            "b": st.integers(-3, 3),
            "c": st.floats(-100, 100).map(lambda x: round(x, 2)),
            "s": st.text("aAb .Z", max_size=4),
            "t": st.text("ab ", max_size=3),
            "f": st.booleans(),
        }
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(condition=conditions, rows=samples)
def test_expressions_mean_what_python_means(condition: str, rows: list[dict[str, Any]]) -> None:
    kinds = {"a": pa.int64(), "b": pa.int32(), "c": pa.float64(), "s": pa.string(), "t": pa.string(), "f": pa.bool_()}
    batch = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    expected = [bool(eval(condition, {"abs": abs, "len": len}, row)) for row in rows]  # noqa: S307 a text made here
    expression = parse_expression(f"a is not None and {condition}", kinds)  # so that there is a column
    assert expression.mask(batch, len(rows)).tolist() == expected
