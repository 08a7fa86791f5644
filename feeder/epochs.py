"""Which epoch an iteration is, agreed between the main process and DataLoader workers without talking.

Each iteration of a dataset is the next epoch. Counting starts, not ends, is what makes it certain: when a loop breaks
off an epoch, workers that prefetch have run past that point by an amount that depends on timing, and may or may not
have reached the end.
"""

import multiprocessing.context
import multiprocessing.sharedctypes
from typing import Any

from feeder.errors import ConfigError

MAX_WORKERS = 256  # DataLoader workers of one rank; the table below takes 8 bytes for each (workers, worker)

_BASE_EPOCH, _BASE_POSITION, _TABLE = 0, 1, 2


class EpochCounter:
    """Counts the iterations of a dataset since its epoch was last set, in anonymous memory shared with worker
    processes.

    The memory is inherited by fork and handed over by spawn and forkserver, so persistent workers see `set`. Any other
    pickling (and copying) takes a snapshot.

    Every worker w of W counts in a cell of its own, (W, w), and reads the cells of other numbers of workers: an
    iteration's number is one more than the last iteration's of any number of workers. The workers of one iteration
    compute the same number whenever each of them starts, since the cells they do not own stand still meanwhile. No
    lock is needed. It takes for granted that one loader at a time iterates and that every worker of an earlier
    iteration got as far as `begin`; `set` makes them agree again.
    """

    def __init__(self, epoch: int = 0, position: int = 0) -> None:
        size = _TABLE + _cell(MAX_WORKERS, MAX_WORKERS)
        # "q" is a 64-bit integer: aligned, so that reading and writing it is atomic
        self._memory: Any = multiprocessing.sharedctypes.RawArray("q", size)
        self.set(epoch, position)

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.context.get_spawning_popen() is None:
            return EpochCounter, (self.epoch, self.position)
        return _attach, (self._memory,)

    def set(self, epoch: int, position: int = 0) -> None:
        """Make the next iteration epoch ``epoch``, starting at a position; the ones after it start at 0."""
        self._memory[_BASE_EPOCH], self._memory[_BASE_POSITION] = epoch, position
        self._memory[_TABLE:] = [0] * (len(self._memory) - _TABLE)

    def begin(self, worker: int, workers: int) -> tuple[int, int]:
        """Count an iteration that starts here; return its epoch and first position.

        Args:
            worker: 0 … workers - 1, or 0.
            workers: the number of worker processes, or 0 in the main process.
        """
        if workers > MAX_WORKERS:
            raise ConfigError(f"num_workers is {workers}; at most {MAX_WORKERS} worker processes are supported")
        own = _TABLE + _cell(workers, worker)
        row = slice(_TABLE + _cell(workers, 0), _TABLE + _cell(workers, 0) + max(1, workers))
        others = max(max(self._memory[_TABLE : row.start], default=0), max(self._memory[row.stop :], default=0))
        number = max(self._memory[own], others)
        self._memory[own] = number + 1
        return self._memory[_BASE_EPOCH] + number, self._memory[_BASE_POSITION] if number == 0 else 0

    @property
    def iterations(self) -> int:
        """How many iterations have started since the epoch was set."""
        return int(max(self._memory[_TABLE:]))

    @property
    def worker_iterations(self) -> int:
        """How many of `iterations` ran in worker processes, or 0 if the last ones ran in the main process."""
        return int(max(self._memory[_TABLE + _cell(1, 0) :]))

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be."""
        return int(self._memory[_BASE_EPOCH]) + self.iterations

    @property
    def position(self) -> int:
        """The position at which the next iteration will start."""
        return int(self._memory[_BASE_POSITION]) if self.iterations == 0 else 0


def _attach(memory: Any) -> EpochCounter:
    """Make a counter over memory that came from another process."""
    counter = EpochCounter.__new__(EpochCounter)
    counter.__dict__["_memory"] = memory
    return counter


def _cell(workers: int, worker: int) -> int:
    """Return where (workers, worker) stands in a triangular table whose first cell is the main process's, (0, 0)."""
    return workers * (workers - 1) // 2 + 1 + worker if workers else 0
