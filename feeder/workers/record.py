"""What a worker is at, in memory that outlives it: so that it has last words even if it is killed.

The memory is an anonymous file: a page of counters, behind it what `faulthandler` writes.
"""

import faulthandler
import multiprocessing.context
import multiprocessing.reduction
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

from feeder.memory import SharedMemory, anonymous_file

_PAGE = 4096
_DUMP_LIMIT = 20_000  # characters of stacks in a message
_LAYOUT = np.dtype([(name, "i8") for name in ("stage", "epoch", "position", "batches", "samples")])

STAGES = (
    "starting and importing",
    "waiting to be told where to begin",
    "making a batch",
    "waiting until the training loop has taken a batch",
    "sending a batch",
)
STARTING, IDLE, MAKING, AHEAD, SENDING = range(len(STAGES))


class WorkRecord:
    """Written by one worker, read by the process that started it.

    Attributes:
        stage: an index into `STAGES`.
        epoch, position: where the worker stands: behind the last batch it made.
        batches: made and sent, counted together; samples: that went through stages, all together.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = anonymous_file("feeder-worker", _PAGE) if descriptor is None else descriptor
        self._memory = SharedMemory(self._descriptor, _PAGE)
        self._fields: Any = self._memory.array()[: _LAYOUT.itemsize].view(_LAYOUT)[0]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        if (descriptor := self.__dict__.pop("_descriptor", None)) is not None:
            close(descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        multiprocessing.context.assert_spawning(self)
        return _attached, (multiprocessing.reduction.DupFd(self._descriptor),)

    def write(self, **values: int) -> None:
        """Set some of the attributes."""
        for name, value in values.items():
            self._fields[name] = value

    @property
    def progress(self) -> tuple[int, int]:
        """What changes as long as anything goes on."""
        return int(self._fields["batches"]), int(self._fields["samples"])

    def count_batch(self) -> None:
        """Count a batch that was made, or sent."""
        self._fields["batches"] += 1

    @property
    def is_starting(self) -> bool:
        """Whether the worker does not run yet, or ended before it did."""
        return int(self._fields["stage"]) == STARTING

    def describe(self) -> str:
        """Return what the worker is at, or was when it died, as a part of a sentence."""
        stage = int(self._fields["stage"])
        if stage in (STARTING, IDLE):
            return f"{STAGES[stage]}"
        return f"{STAGES[stage]} at epoch {self._fields['epoch']}, position {self._fields['position']}"

    def dump_stacks_here(self) -> None:
        """In a worker: write stacks into this record, when the process crashes and at `signal.SIGUSR1`."""
        os.lseek(self._descriptor, _PAGE, os.SEEK_SET)
        faulthandler.enable(self._descriptor)
        faulthandler.register(signal.SIGUSR1, self._descriptor, all_threads=True, chain=False)

    def dumped_bytes(self) -> int:
        """Return how much `faulthandler` has written so far."""
        return os.fstat(self._descriptor).st_size - _PAGE

    def dump(self) -> str:
        """Return what `faulthandler` has written, or its last part."""
        start = max(0, self.dumped_bytes() - _DUMP_LIMIT)
        return os.pread(self._descriptor, _DUMP_LIMIT, _PAGE + start).decode(errors="replace").strip()


def _attached(descriptor: Any) -> WorkRecord:
    return WorkRecord(descriptor.detach())
