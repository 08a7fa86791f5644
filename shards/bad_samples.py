"""Bad samples of a build: the lists of them, and how many are too many.

``bad-images.jsonl`` beside a dataset lists what was set aside, one JSON object a line. Until a build is complete each
shard has a list of its own, ``shard-000012.bad.jsonl``.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from feeder.shards.errors import SourceError
from feeder.shards.recoding import FILTERED
from feeder.shards.table import SampleTable

ALWAYS_ALLOWED_BAD = 10  # bad images that no fraction forbids: one bad file in a folder of fifty is no reason to stop
BAD_LIST = ".bad.jsonl"  # ends the names of lists of one shard


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadImage:
    """An image that was set aside: its path in the source, one of `feeder.shards.images.CAUSES`, and what is wrong."""

    source: str
    cause: str
    reason: str


def bad_list_name(shard: str) -> str:
    """Return the name of the list of a shard's bad samples."""
    return shard.rsplit(".", 1)[0] + BAD_LIST


def bad_lines(bad: Iterable[BadImage]) -> bytes:
    """Return a list of bad images as a file holds it."""
    return b"".join(json.dumps(dataclasses.asdict(image)).encode("ascii") + b"\n" for image in bad)


def parse_bad(data: bytes) -> list[BadImage]:
    """Return the bad images that such a file lists; `ValueError` or `TypeError` if it is cut."""
    return [BadImage(**json.loads(line)) for line in data.splitlines()]


def by_cause(counts: Counter[str]) -> dict[str, int]:
    """Return counts by cause, the most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def counted(counts: Counter[str]) -> str:
    """Return counts by cause as text."""
    return ", ".join(f"{count} {cause}" for cause, count in by_cause(counts).items())


class BadLimit:
    """Counts bad images and stops a build that has too many.

    Args:
        fraction: of all samples, the most that may be bad; a few (`ALWAYS_ALLOWED_BAD`) always may, unless it is 0.
            What filters left out is not counted.
        total: the samples of all splits.
    """

    def __init__(self, fraction: float, total: int) -> None:
        self._allowed = max(ALWAYS_ALLOWED_BAD, int(fraction * total)) if fraction else 0
        self._fraction = fraction
        self._total = total
        self._causes: Counter[str] = Counter()

    def count(self, table: SampleTable, bad: Sequence[BadImage]) -> None:
        """Count bad images of a table; `SourceError` if there are too many now."""
        self._causes.update(image.cause for image in bad)
        unwanted = sum(count for cause, count in self._causes.items() if cause not in FILTERED)
        if unwanted > self._allowed and (example := next((one for one in bad if one.cause not in FILTERED), None)):
            raise SourceError(
                f"too many bad images: {unwanted} of {self._total} so far ({self.described()}), such as "
                f"{os.path.join(table.root, example.source)}: {example.reason}; repair the source, or allow more than "
                f"{self._allowed} with --max-bad-fraction (now {self._fraction:g})"
            )

    def described(self) -> str:
        """Return the counts by cause as text."""
        return counted(self._causes)
