"""Patterns that stand for many files: ``train-{000000..000146}.tar``, and several joined by ``::``.

Braces expand as in webdataset, whose users write them: the rules of bash's brace expansion, as the package braceexpand
has them. ``{000..146}`` counts, padded with zeros if a bound begins with one; ``{a..e}`` goes through letters; a third
part is the step (``{0..100..10}``); ``{x,y,}`` lists choices, which may hold braces themselves; what is neither a range
nor a list stays as it is; a backslash takes a special character literally. Braces that do not match are refused.
"""

import itertools
import re
import string
from collections.abc import Iterator

from feeder.shards.errors import SourceError

MAX_FILES = 1_000_000  # of one pattern: more is a slip of the hand

_INTEGERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase


def is_pattern(text: str) -> bool:
    """Say whether a source is a pattern."""
    return "{" in text or "::" in text


def expand_pattern(pattern: str) -> list[str]:
    """Return what a pattern stands for, in order.

    Raises:
        SourceError: braces do not match, a part is empty, or it stands for more than `MAX_FILES`.
    """
    found: list[str] = []
    for part in pattern.split("::"):
        _check(part, pattern)
        found += itertools.islice(map(_unescaped, _expanded(part)), MAX_FILES + 1 - len(found))
        if len(found) > MAX_FILES:
            raise SourceError(f"the pattern {pattern!r} stands for more than {MAX_FILES} files; check its ranges")
    if not all(found):
        raise SourceError(f"the pattern {pattern!r} has an empty part; expected paths joined by '::'")
    return found


def _check(part: str, pattern: str) -> None:
    depth = 0
    for token in _tokens(part):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            break
    if depth:
        raise SourceError(
            f"the braces of the pattern {pattern!r} do not match; expected something like "
            "'train-{000000..000146}.tar', or a backslash before a brace that is part of a name"
        )


def _tokens(text: str) -> Iterator[str]:
    """Yield the characters of a text; one after a backslash together with it."""
    position = 0
    while position < len(text):
        length = 2 if text[position] == "\\" else 1
        yield text[position : position + length]
        position += length


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


def _expanded(text: str) -> Iterator[str]:
    """Yield the expansions of a text whose braces match; backslashes stay."""
    parts: list[list[str]] = []
    literal, inside, depth = "", "", 0
    for token in _tokens(text):
        if token == "{" and depth == 0:
            parts.append([literal])
            literal, inside, depth = "", "", 1
        elif depth == 0:
            literal += token
        else:
            depth += (token == "{") - (token == "}")
            if depth:
                inside += token
            else:
                parts.append(list(itertools.islice(_choices(inside), MAX_FILES + 1)))
    parts.append([literal])
    return map("".join, itertools.product(*parts))


def _choices(inside: str) -> Iterator[str]:
    """Yield what may stand in the place of braces with this between them."""
    if match := _INTEGERS.fullmatch(inside):
        yield from _integers(match[1], match[2], int(match[3] or 1) or 1)
    elif match := _LETTERS.fullmatch(inside):
        first, last = _ALPHABET.index(match[1]), _ALPHABET.index(match[2])
        step = int(match[3] or 1) or 1
        yield from (_ALPHABET[number] for number in _range(first, last, step))
    else:
        items = _split(inside)
        for item in items:
            yield from _expanded(item) if len(items) > 1 else (f"{{{text}}}" for text in _expanded(item))


def _integers(first: str, last: str, step: int) -> Iterator[str]:
    padded = any(bound.lstrip("-").startswith("0") and bound not in ("0", "-0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return (f"{number:0{width}d}" if width else str(number) for number in _range(int(first), int(last), step))


def _range(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first < last else range(first, last - 1, -step)


def _split(inside: str) -> list[str]:
    """Return the items between the commas that stand outside of inner braces."""
    items, depth = [""], 0
    for token in _tokens(inside):
        depth += (token == "{") - (token == "}")
        if token == "," and depth == 0:
            items.append("")
        else:
            items[-1] += token
    return items
