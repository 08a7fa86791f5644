"""Patterns expand as webdataset's users expect."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.shards.errors import SourceError
from feeder.shards.sources.patterns import expand_pattern, is_pattern


def test_patterns() -> None:
    expected = {
        "a-{000..002}.tar": ["a-000.tar", "a-001.tar", "a-002.tar"],
        "a-{8..10}.tar": ["a-8.tar", "a-9.tar", "a-10.tar"],
        "{train,val}-{0..1}.tar": ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"],
        "s3://b/{a,b{1..2}}.tar": ["s3://b/a.tar", "s3://b/b1.tar", "s3://b/b2.tar"],
        "x-{0..10..5}.tar": ["x-0.tar", "x-5.tar", "x-10.tar"],
        "{c..a}": ["c", "b", "a"],
        "a.tar::b-{1,2}.tar": ["a.tar", "b-1.tar", "b-2.tar"],
        "{one}.tar": ["{one}.tar"],
        r"\{a,b\}.tar": ["{a,b}.tar"],
        "a{,.bak}": ["a", "a.bak"],
    }
    assert {pattern: expand_pattern(pattern) for pattern in expected} == expected
    assert all(map(is_pattern, ("{a}", "a::b")))
    assert not is_pattern("s3://bucket/a.tar")


@given(
    st.lists(
        st.sampled_from(["{", "}", ",", "..", "0", "1", "07", "12", "-", "a", "c", "Z", "\\{", "x"]),
        max_size=12,
    )
)
def test_patterns_expand_as_in_braceexpand(tokens: list[str]) -> None:
    """Apart from a backslash for a backslash within inner braces, which it takes twice, and from "}" before its "{"."""
    braceexpand = pytest.importorskip("braceexpand")
    pattern = "p" + "".join(tokens)
    try:
        expected = list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError:
        expected = []
    plain = re.sub(r"\\.", "", pattern)
    if not expected or any(plain[:end].count("}") > plain[:end].count("{") for end in range(len(plain))):
        with pytest.raises(SourceError, match="do not match"):
            expand_pattern(pattern)
        return
    assert expand_pattern(pattern) == expected


def test_sentences() -> None:
    with pytest.raises(SourceError) as caught:
        expand_pattern("a-{0..3.tar")
    assert str(caught.value) == (
        "the braces of the pattern 'a-{0..3.tar' do not match; expected something like 'train-{000000..000146}.tar', "
        "or a backslash before a brace that is part of a name"
    )
    with pytest.raises(SourceError, match=r"^the pattern 'a.tar::' has an empty part; expected paths joined by '::'$"):
        expand_pattern("a.tar::")
    with pytest.raises(SourceError, match="stands for more than 1000000 files; check its ranges$"):
        expand_pattern("{0..1001}-{0..1001}")
