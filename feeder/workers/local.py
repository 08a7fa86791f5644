"""Batches made in the process of the loop itself, by the dataset's threads, where a loader has no workers."""

import os
from collections.abc import Generator
from typing import Any

from feeder.stalls import FIRST_BATCH, StallClock
from feeder.workers.protocol import Call
from feeder.workers.serving import Streams

Batch = dict[str, Any]


class LocalSource:
    """Makes the batches of a dataset from where it is told to begin, epoch after epoch; see `WorkerPool`."""

    is_ready = False  # nothing is made before it is asked for

    def __init__(self, dataset: Streams, clock: StallClock, pixels_on_device: bool) -> None:
        self.owner = os.getpid()
        self._dataset = dataset
        self._clock = clock
        self._pixels_on_device = pixels_on_device
        self._epoch = 0
        self._stream: Generator[Batch, None, None] | None = None
        self._first = True

    def begin(self, state: dict[str, Any], calls: tuple[Call, ...] = ()) -> None:
        """Go on from a state; the dataset is the loader's own, which has seen the calls."""
        self._start(int(state["epoch"]), int(state["position"]))
        self._first = True

    def take(self) -> Batch:
        """Return the next batch; behind the last one of an epoch comes the first of the next."""
        assert self._stream is not None
        while (batch := next(self._stream, None)) is None:
            self._start(self._epoch + 1, 0)
        if self._first:
            self._clock.note(FIRST_BATCH)
        self._clock.note_waiting(0, self._dataset.counters.snapshot())
        self._first = False
        return batch

    def close(self) -> None:
        """Cancel what is under way."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _start(self, epoch: int, position: int) -> None:
        self.close()
        self._epoch = epoch
        self._stream = self._dataset.stream(epoch=epoch, position=position, pixels_on_device=self._pixels_on_device)
