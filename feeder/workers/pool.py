"""The workers of a loader: batches in order from several processes, and their end in every case.

Worker i of W makes the steps i, i + W, … of an epoch.
"""

import multiprocessing
import multiprocessing.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feeder.errors import ConfigError
from feeder.memory import SharedMemory
from feeder.stalls import FIRST_BATCH, HAND_OVER, WORKER_START, StallClock
from feeder.workers.failures import unpacked
from feeder.workers.process import STOP_GRACE_S, Worker
from feeder.workers.protocol import Begin, Call, EpochEnd, Failed, Made, Release, Started, batch_of
from feeder.workers.serving import Assignment, Streams

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How many workers make batches, and how far ahead.

    Attributes:
        workers: processes, at least 1.
        start_method: "fork", "spawn", "forkserver", or None for the platform's default.
        prefetch, prefetch_bytes: the most batches, and bytes of them, that are ready and not taken, of all workers.
        pixels_on_device: whether pixel transforms are left to the receiver.
    """

    workers: int
    start_method: str | None
    prefetch: int
    prefetch_bytes: int | None
    pixels_on_device: bool


class WorkerPool:
    """Worker processes that make the batches of a dataset from where they are told to begin, epoch after epoch.

    Args:
        dataset: what makes the batches.
        options: see there.
        prepare: called with each new piece of memory that batches lie in.
        clock: told what was waited for.

    Raises:
        ConfigError: see `Worker`.
    """

    def __init__(
        self, dataset: Streams, options: PoolOptions, prepare: Callable[[SharedMemory], None] | None, clock: StallClock
    ) -> None:
        self._clock = clock
        clock.forget_workers()
        self._generation = 0
        self._turn = 0  # the worker whose batch comes next
        self._epoch = 0
        self._first = True
        self.owner = os.getpid()
        self._workers: list[Worker] = []
        self._end = multiprocessing.util.Finalize(self, _stop, args=(self._workers,), exitpriority=_EXIT_PRIORITY)
        context = multiprocessing.get_context(options.start_method)
        try:
            for number in range(options.workers):
                self._workers.append(Worker(dataset, _assignment(options, number), context, prepare))
        except BaseException:
            self.close()
            raise

    def begin(self, state: dict[str, Any], calls: tuple[Call, ...] = ()) -> None:
        """Make the workers go on from a state, wherever they are."""
        self._generation += 1
        self._turn, self._epoch, self._first = 0, int(state["epoch"]), True
        for worker in self._workers:
            worker.tell(Begin(generation=self._generation, state=state, calls=calls))

    @property
    def is_ready(self) -> bool:
        """Whether `take` would likely return at once."""
        return self._workers[self._turn].has_message

    def take(self) -> Batch:
        """Return the next batch; behind the last one of an epoch comes the first of the next.

        Raises:
            WorkerDiedError, StalledError: see `Worker.receive`.
            Exception: whatever was raised in a worker.
        """
        if os.getpid() != self.owner:
            raise ConfigError("this iteration began before the process was forked; begin another one here")
        while True:
            worker = self._workers[self._turn]
            self._release(worker, self._generation, 0)
            message = worker.receive()
            if isinstance(message, Started):
                self._clock.note(WORKER_START)
            elif message.generation != self._generation:
                self._skip(worker, message)
            elif isinstance(message, Failed):
                raise unpacked(message.error)
            elif isinstance(message, EpochEnd):
                self._release(worker, self._generation, 1)
                if message.epoch == self._epoch:  # another worker may have told before
                    self._turn, self._epoch = 0, self._epoch + 1
            else:
                return self._received(worker, message)

    def _received(self, worker: Worker, message: Made) -> Batch:
        if self._first:
            self._clock.note(FIRST_BATCH)
        self._clock.note_waiting(self._turn, message.counts)
        self._first = False
        self._release(worker, self._generation, 1)
        self._turn = (self._turn + 1) % len(self._workers)
        batch = batch_of(message, worker.views)
        self._clock.note(HAND_OVER)
        return batch

    @staticmethod
    def _skip(worker: Worker, message: Made | EpochEnd | Failed) -> None:
        """Drop a message of an earlier generation."""
        if isinstance(message, Made):
            worker.views.skip(message.slots)

    @staticmethod
    def _release(worker: Worker, generation: int, taken: int) -> None:
        """Tell a worker what was taken from it and which slots are free; nothing where there is nothing to tell."""
        slots = worker.views.take_let_go()
        if taken or slots:
            worker.tell(Release(generation=generation, taken=taken, slots=slots))

    def pids(self) -> list[int]:
        """Return the ids of the processes."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """End the processes, within seconds whatever they are at; batches that were handed out stay valid."""
        self._end()


_EXIT_PRIORITY = (
    100  # any from 0 on comes before multiprocessing itself ends children, and waits without limit for them
)


def _assignment(options: PoolOptions, number: int) -> Assignment:
    """Return the part of one worker."""
    limit = options.prefetch_bytes
    return Assignment(
        worker=number,
        workers=options.workers,
        prefetch=-(-options.prefetch // options.workers),
        prefetch_bytes=None if limit is None else limit // options.workers,
        pixels_on_device=options.pixels_on_device,
        receiver=os.getpid(),
    )


def _stop(workers: list[Worker]) -> None:
    """End all workers."""
    try:
        for worker in workers:
            worker.ask_to_stop()
        deadline = time.monotonic() + STOP_GRACE_S
        for worker in workers:
            worker.join(deadline)
    except BaseException:  # a second Ctrl-C: whoever sends it does not want to wait for what does not hear
        for worker in workers:
            worker.kill()
        raise
    finally:
        workers.clear()
