"""Which epoch an iteration is, agreed between a training process and its DataLoader workers without messages.

Each iteration of a dataset is the next epoch. Counting starts, not ends, is what makes it certain: when a loop breaks
off an epoch, workers that prefetch have run past that point by an amount that depends on timing, and may or may not
have reached the end.

A process that is no DataLoader worker is an *owner*; a worker counts for the process that started it. So ranks that
got one dataset by fork or spawn count apart, and each reaches its own workers, the persistent ones too.
"""

import contextlib
import fcntl
import mmap
import multiprocessing
import multiprocessing.context
import multiprocessing.reduction
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from feeder.memory import anonymous_file

_OWNERS = 1024  # processes of one dataset object; the dead give way first, then who was first seen longest ago
_ITERATIONS = 256  # iterations in workers that may still be starting, of all owners

_LAYOUT = np.dtype(
    [
        ("creator", "i8"),
        ("owners_seen", "i8"),
        ("iterations_seen", "i8"),
        # epoch and position were set; "started" iterations since then, the last one in "workers" processes; had_workers
        # is 1 once any iteration was
        ("owners", [(n, "i8") for n in ("pid", "epoch", "position", "started", "workers", "had_workers")], _OWNERS),
        # where the iteration starts, and how its workers are told from others
        ("iterations", [(n, "i8") for n in ("owner", "creation", "workers", "turn", "epoch", "position")], _ITERATIONS),
    ]
)


# a lock of a file keeps processes apart, not the threads of one; nobody forks while it is held
_one_thread = threading.Lock()
os.register_at_fork(before=_one_thread.acquire, after_in_parent=_one_thread.release, after_in_child=_one_thread.release)


class EpochCounter:
    """Counts the iterations of a dataset since its epoch was last set.

    The count lies in anonymous memory, which fork inherits and spawn and forkserver hand over; any other pickling (and
    copying) takes a snapshot. Locks make each method one step, among processes and among threads.

    The workers of an iteration recognise each other by when they were started: a process counts the children that it
    makes, a loader makes its W workers in a row, and a persistent worker counts its turns. The first worker to begin
    gives the iteration its epoch, the others find it, even if another was set meanwhile. A worker that never came so
    far leaves no trace.
    """

    def __init__(self, epoch: int = 0, position: int = 0) -> None:
        self._attach(anonymous_file("feeder-epochs", _LAYOUT.itemsize))
        self._memory["creator"] = os.getpid()
        self.set(epoch, position)

    def _attach(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mapping = mmap.mmap(descriptor, _LAYOUT.itemsize)
        self._memory: Any = np.frombuffer(self._mapping, _LAYOUT, 1)[0]
        self._turns, self._turns_of = 0, os.getpid()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        if (descriptor := self.__dict__.pop("_descriptor", None)) is not None:
            close(descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.context.get_spawning_popen() is None:
            return EpochCounter, (self.epoch, self.position)
        return _attached, (multiprocessing.reduction.DupFd(self._descriptor),)

    def set(self, epoch: int, position: int = 0) -> None:
        """Make this process's next iteration epoch ``epoch``, starting at a position; the ones after it start at 0."""
        with self._locked():
            owner = self._owner(os.getpid())
            owner["epoch"], owner["position"], owner["started"], owner["workers"] = epoch, position, 0, 0

    def begin(self, worker: int, workers: int, place: tuple[int, int] | None = None) -> tuple[int, int]:
        """Count an iteration that starts here; return its epoch and first position.

        Args:
            worker: 0 … workers - 1, or 0.
            workers: the number of worker processes, or 0 in a process that is no worker.
            place: the epoch and position at which a worker goes on by its own account; all of an iteration's workers
                have the epoch in common, and later iterations follow it.
        """
        with self._locked():
            if workers == 0:
                return self._count(self._owner(os.getpid()), 0)
            pid, creation = _lineage(worker)
            begun = self._begin_in_workers(self._owner(pid), creation, workers, place)
            return begun if place is None else place

    @property
    def epoch(self) -> int:
        """The epoch that this process's next iteration will be."""
        with self._locked():
            return _next_epoch(self._owner(os.getpid()))[0]

    @property
    def position(self) -> int:
        """The position at which this process's next iteration will start."""
        with self._locked():
            return _next_epoch(self._owner(os.getpid()))[1]

    @property
    def in_workers(self) -> bool:
        """Whether this process's last iteration since the epoch was set ran in worker processes."""
        with self._locked():
            return int(self._owner(os.getpid())["workers"]) > 0

    @property
    def had_workers(self) -> bool:
        """Whether any iteration of this process ran in worker processes; persistent ones may still be there."""
        with self._locked():
            return bool(self._owner(os.getpid())["had_workers"])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file behind the memory, which belongs to the process and goes with it."""
        with _one_thread:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _owner(self, pid: int) -> Any:
        """Return an owner's record; a new owner goes on from where the creator of the memory stands."""
        owners, memory = self._memory["owners"], self._memory
        (found,) = np.nonzero(owners["pid"] == pid)
        if found.size:
            return owners[found[0]]
        (creator,) = np.nonzero(owners["pid"] == memory["creator"])
        epoch, position = _next_epoch(owners[creator[0]]) if creator.size else (0, 0)
        others = np.nonzero(owners["pid"] != memory["creator"])[0]
        oldest = others[int(memory["owners_seen"]) % len(others)]
        # each worker of a loader is one for as long as it lives: a rank shall not give way to the hundredth of them
        place = next((at for at in others if not _is_alive(int(owners["pid"][at]))), oldest)
        memory["owners_seen"] += 1
        owners[place] = (pid, epoch, position, 0, 0, 0)
        return owners[place]

    def _begin_in_workers(
        self, owner: Any, creation: int, workers: int, place: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Return where the iteration starts that a worker begins: one that another worker began, or the next."""
        if self._turns_of != os.getpid():
            self._turns, self._turns_of = 0, os.getpid()
        turn, self._turns = self._turns, self._turns + 1
        iterations = self._memory["iterations"]
        # workers of one loader differ by less than W, those of two loaders by W or more
        (found,) = np.nonzero(
            (iterations["owner"] == owner["pid"])
            & (iterations["workers"] == workers)
            & (iterations["turn"] == turn)
            & (np.abs(iterations["creation"] - creation) < workers)
        )
        if found.size:
            iteration = iterations[found[0]]
            return int(iteration["epoch"]), int(iteration["position"])
        if place is not None:
            owner["epoch"], owner["position"], owner["started"] = *place, 0
        begun = self._count(owner, workers)
        slot = int(self._memory["iterations_seen"]) % _ITERATIONS
        self._memory["iterations_seen"] += 1
        iterations[slot] = (owner["pid"], creation, workers, turn, *begun)
        return begun

    @staticmethod
    def _count(owner: Any, workers: int) -> tuple[int, int]:
        """Count an iteration; return its epoch and first position."""
        begun = _next_epoch(owner)
        owner["started"], owner["workers"] = int(owner["started"]) + 1, workers
        owner["had_workers"] |= workers > 0
        return begun


def _attached(descriptor: Any) -> EpochCounter:
    """Return a counter over the memory of another process."""
    counter = EpochCounter.__new__(EpochCounter)
    counter._attach(descriptor.detach())  # noqa: SLF001  the other half of its own pickling
    return counter


def _next_epoch(owner: Any) -> tuple[int, int]:
    """Return the epoch and first position of an owner's next iteration."""
    started = int(owner["started"])
    return int(owner["epoch"]) + started, int(owner["position"]) if started == 0 else 0


def _is_alive(pid: int) -> bool:
    """Whether there is a process of this id; 0 stands for none."""
    try:
        if pid:
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return pid != 0


def _lineage(worker: int) -> tuple[int, int]:
    """Return the process that started this worker, and which of its children the loader's first worker was.

    A process numbers the children that it makes with multiprocessing; the number is part of a child's identity.
    """
    parent = multiprocessing.parent_process()
    identity = getattr(multiprocessing.current_process(), "_identity", ())
    pid = os.getppid() if parent is None or parent.pid is None else parent.pid
    return pid, (identity[-1] if identity else 0) - worker
