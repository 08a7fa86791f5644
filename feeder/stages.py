"""What each stage of the pipeline has done: samples, bytes and busy seconds, counted always.

A thread adds once a chunk of samples, so that counting costs well under a thousandth of the work.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

READ, DECODE, FIELDS = "read", "decode", "fields"

Counts = Mapping[str, tuple[int, int, float]]  # by stage: samples, bytes, busy seconds


@dataclass(slots=True)
class StageCount:
    """What a stage has done.

    Attributes:
        samples: how many passed through it; stand-ins of bad samples count, too.
        size_bytes: of what was read; 0 for other stages.
        busy_s: seconds that threads spent in it, all together.
    """

    samples: int = 0
    size_bytes: int = 0
    busy_s: float = 0.0


# nobody forks while another thread holds it: the child's copy would stay locked
_one_thread = threading.Lock()
os.register_at_fork(before=_one_thread.acquire, after_in_parent=_one_thread.release, after_in_child=_one_thread.release)


class Counters:
    """Counts by stage, in the order in which stages first came; safe from many threads."""

    def __init__(self) -> None:
        self._counts: dict[str, StageCount] = {}

    def __reduce__(self) -> tuple[type["Counters"], tuple[()]]:
        return Counters, ()  # another process counts what it does itself

    @contextmanager
    def busy(self, stage: str, samples: int) -> Iterator[None]:
        """Count the time of what is done within."""
        start = time.perf_counter()
        yield
        self.add(stage, samples=samples, busy_s=time.perf_counter() - start)

    def add(self, stage: str, *, samples: int = 0, size_bytes: int = 0, busy_s: float = 0.0) -> None:
        """Add to what a stage has done."""
        with _one_thread:
            count = self._counts.setdefault(stage, StageCount())
            count.samples += samples
            count.size_bytes += size_bytes
            count.busy_s += busy_s

    def snapshot(self) -> Counts:
        """Return (samples, bytes, busy seconds) of each stage so far: plain values, to be sent elsewhere."""
        with _one_thread:
            return {name: (count.samples, count.size_bytes, count.busy_s) for name, count in self._counts.items()}
