"""What runs in a worker process.

1. The main thread makes batches, epoch after epoch, and sends them until it is as far ahead as it may be.
2. A second thread listens. It notes where to begin and what was taken; at `Stop`, and when the receiving process is
   gone in whatever way, it ends the process at once: nothing here has to be put in order.
3. An exception goes to the receiver, and the worker waits to be told where to begin next.

If the code disagrees with these lines, the code is wrong.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, Protocol

from feeder import tensors
from feeder.errors import ConfigError
from feeder.layout import Allocate
from feeder.stages import Counters
from feeder.workers import record as stages
from feeder.workers.failures import packed
from feeder.workers.protocol import (
    Begin,
    EpochEnd,
    Failed,
    Release,
    Started,
    Stop,
    pack_batch,
    receive,
    send,
    send_packed,
)
from feeder.workers.record import WorkRecord
from feeder.workers.slots import SlotMaker

TICK_S = 1.0  # how often a worker that hears nothing looks whether its receiver is still there, without pidfd
_SPARE_SLOTS = 4  # beyond those of batches that are ahead: under way in the pipeline, or in the loop's hands


class Streams(Protocol):
    """What a dataset must be able to do in a worker; it comes there by fork or pickle."""

    @property
    def counters(self) -> Counters:
        """What the stages of this process have done."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def stream(
        self,
        *,
        epoch: int,
        position: int,
        worker: int = 0,
        workers: int = 1,
        allocate: Allocate = ...,
        pixels_on_device: bool = False,
    ) -> Generator[dict[str, Any], None, None]:
        """Yield every ``workers``-th batch of the rest of an epoch, from the ``worker``-th on, as NumPy arrays."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Which part of the work a worker has.

    Attributes:
        worker, workers: number of this worker, and of all.
        prefetch: batches to be ahead by, at least 1.
        prefetch_bytes: the most bytes to be ahead by; a single batch may have more.
        pixels_on_device: see `Streams.stream`.
        receiver: the process that started the worker.
    """

    worker: int
    workers: int
    prefetch: int
    prefetch_bytes: int | None
    pixels_on_device: bool
    receiver: int


def serve(dataset: Streams, connection: Connection, work: WorkRecord, assignment: Assignment) -> None:
    """Run a worker until it is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not a handler that a fork brought along
    work.dump_stacks_here()
    tensors.limit_threads()
    slots = SlotMaker(spare=assignment.prefetch + _SPARE_SLOTS)
    orders = _Orders(slots, work, assignment)
    listener = _Listener(connection, assignment.receiver, lambda: work.write(samples=_samples(dataset.counters)))
    threading.Thread(target=listener.listen, args=(orders.note,), name="feeder-listen", daemon=True).start()
    _Maker(dataset, connection, slots, orders, work, assignment).run()


class _Maker:
    """Makes and sends batches, in the main thread."""

    def __init__(
        self,
        dataset: Streams,
        connection: Connection,
        slots: SlotMaker,
        orders: "_Orders",
        work: WorkRecord,
        assignment: Assignment,
    ) -> None:
        self._dataset = dataset
        self._connection = connection
        self._slots = slots
        self._orders = orders
        self._work = work
        self._assignment = assignment

    def run(self) -> NoReturn:
        """Do as told, until the process ends."""
        self._send(Started())
        generation = 0
        while True:
            self._work.write(stage=stages.IDLE)
            begin = self._orders.next_begin(generation)
            generation = begin.generation
            try:
                self._make_epochs(begin)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the batch is waited for
                where = f"worker {self._assignment.worker} (process {os.getpid()}), {self._work.describe()}"
                self._send(Failed(generation=generation, error=packed(error, where)))

    def _make_epochs(self, begin: Begin) -> None:
        """Make and send batches until another `Begin` came."""
        for name, arguments, options in begin.calls:
            getattr(self._dataset, name)(*arguments, **options)
        self._dataset.load_state_dict(begin.state)
        epoch, position = int(begin.state["epoch"]), int(begin.state["position"])
        while self._make_epoch(begin.generation, epoch, position) and self._orders.wait_for_room(begin.generation):
            self._orders.note_sent(0)
            self._send(EpochEnd(generation=begin.generation, epoch=epoch))
            epoch, position = epoch + 1, 0

    def _make_epoch(self, generation: int, epoch: int, position: int) -> bool:
        """Make and send the batches of the rest of an epoch; False if another `Begin` came."""
        self._work.write(stage=stages.MAKING, epoch=epoch, position=position)
        stream = self._dataset.stream(
            epoch=epoch,
            position=position,
            worker=self._assignment.worker,
            workers=self._assignment.workers,
            allocate=self._slots.allocate,
            pixels_on_device=self._assignment.pixels_on_device,
        )
        with contextlib.closing(stream):  # which cancels what it has under way
            for batch in stream:
                self._work.count_batch()
                self._work.write(position=int(batch["state"]["position"]))
                if not self._orders.wait_for_room(generation):
                    return False
                self._work.write(stage=stages.SENDING)
                self._send_batch(batch, generation, epoch)
                del batch
                self._work.count_batch()
                self._work.write(stage=stages.MAKING)
        return True

    def _send(self, message: Started | EpochEnd | Failed) -> None:
        with _waiting_for_the_end():
            send(self._connection, message)

    def _send_batch(self, batch: dict[str, Any], generation: int, epoch: int) -> None:
        counts = self._dataset.counters.snapshot()
        try:
            ready = pack_batch(batch, self._slots, generation=generation, epoch=epoch, counts=counts)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"a batch cannot be sent from a worker: {error}; let the functions of map_fields return arrays,"
                " numbers, text or bytes, or pass workers=0"
            ) from error
        self._orders.note_sent(ready.size)
        with _waiting_for_the_end():
            send_packed(self._connection, ready, self._assignment.receiver)


class _Orders:
    """What the receiver has said; the listening thread notes it, the main thread waits for it."""

    def __init__(self, slots: SlotMaker, work: WorkRecord, assignment: Assignment) -> None:
        self._slots = slots
        self._work = work
        self._assignment = assignment
        self._changed = threading.Condition()
        self._begin: Begin | None = None
        self._ahead: deque[int] = deque()  # bytes of the batches (0 for an epoch's end) that were sent and not taken
        self._largest = 0

    def next_begin(self, after: int) -> Begin:
        """Wait for a `Begin` of a later generation."""
        with self._changed:
            while self._begin is None or self._begin.generation <= after:
                self._changed.wait()
            self._ahead.clear()
            return self._begin

    def is_current(self, generation: int) -> bool:
        """Whether a generation is the last one that was asked for."""
        return self._begin is not None and self._begin.generation == generation

    def wait_for_room(self, generation: int) -> bool:
        """Wait until another batch may be sent; False if another generation was begun."""
        with self._changed:
            while self.is_current(generation) and not self._has_room():
                self._work.write(stage=stages.AHEAD)
                self._changed.wait()
        return self.is_current(generation)

    def _has_room(self) -> bool:
        if len(self._ahead) >= self._assignment.prefetch:
            return False
        limit = self._assignment.prefetch_bytes
        return limit is None or not self._ahead or sum(self._ahead) + self._largest <= limit

    def note_sent(self, size: int) -> None:
        """Note that a batch of so many bytes, or the end of an epoch, is about to be sent."""
        with self._changed:
            self._largest = max(self._largest, size)
            self._ahead.append(size)

    def note(self, message: Begin | Release) -> None:
        """Note what the receiver says."""
        with self._changed:
            if isinstance(message, Begin):
                self._begin = message
            else:
                self._slots.let_go(message.slots)
                if self.is_current(message.generation):
                    for _ in range(min(message.taken, len(self._ahead))):
                        self._ahead.popleft()
            self._changed.notify()


class _Listener:
    """Hears what the receiving process says, and notices its end though another process may hold its socket.

    Args:
        connection: to the receiver.
        pid: of the receiver.
        tick: called about once a `TICK_S`.
    """

    def __init__(self, connection: Connection, pid: int, tick: Callable[[], object]) -> None:
        self._connection = connection
        self._pid = pid
        self._tick = tick
        self._is_parent = os.getppid() == pid  # not so behind a fork server
        self._waited_for: list[Any] = [connection]
        with contextlib.suppress(OSError, AttributeError):  # an old kernel; macOS
            self._waited_for.append(os.pidfd_open(pid))

    def listen(self, note: Callable[[Begin | Release], object]) -> None:
        """Pass on what the receiver says, until it is gone or says `Stop`; then end the process."""
        try:
            while isinstance(message := self._next(), Begin | Release):
                note(message)
        finally:
            _end_process()

    def _next(self) -> Any:
        """Return the next message; Stop when the receiver is gone."""
        try:
            while self._connection not in (ready := wait(self._waited_for, TICK_S)):
                if ready or (self._is_parent and os.getppid() != self._pid):
                    return Stop()
                os.kill(self._pid, 0)
                self._tick()
            return receive(self._connection)
        except (EOFError, OSError):
            return Stop()


def _samples(counters: Counters) -> int:
    """Return how many samples went through stages, all stages together."""
    return sum(samples for samples, _, _ in counters.snapshot().values())


@contextlib.contextmanager
def _waiting_for_the_end() -> Iterator[None]:
    """Where nobody is there to receive what is sent within: wait for the listening thread to end the process."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        threading.Event().wait()


def _end_process() -> None:
    """End this process at once, whatever its threads are at; what was printed shall be seen."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)
