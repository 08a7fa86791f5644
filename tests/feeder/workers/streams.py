"""A dataset that costs nothing, for tests of loaders: its batches say which they are, and faults can be put into it."""

import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from feeder import tensors
from feeder.epochs import EpochCounter
from feeder.stages import Counters

Fault = Callable[[int, int], object]  # of epoch and position


class Numbers:
    """Batches of ``size`` rows; row i of the batch at a position of an epoch is full of a number of its own.

    Args:
        steps: of an epoch.
        size: rows of a batch.
        width: of the images in pixels; 160 makes images of 76,800 bytes.
        fault: called in a worker before each batch is made.
    """

    def __init__(
        self, steps: int = 5, size: int = 2, width: int = 160, fault: Fault | None = None, as_tensors: bool = False
    ) -> None:
        self.steps, self.size, self.width = steps, size, width
        self.fault = fault
        self.as_tensors = as_tensors
        self.counters = Counters()
        self.transform = 0
        self._epochs = EpochCounter()

    @property
    def epoch(self) -> int:
        return self._epochs.epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state, _ = self.begin_epoch()
        for batch in self.stream(epoch=state["epoch"], position=state["position"]):
            yield self.handed_over(batch)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self._epochs.set(epoch)

    def set_transform(self, transform: Any, *, views: int = 1) -> None:
        self.transform = transform

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epochs.epoch, "position": self._epochs.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        epoch, position = state["epoch"], state["position"]
        if position >= self.steps * self.size:
            epoch, position = epoch + 1, 0
        self._epochs.set(epoch, position)

    def begin_epoch(self) -> tuple[dict[str, Any], int]:
        epoch, position = self._epochs.begin(0, 0)
        return {"epoch": epoch, "position": position}, self.steps - position // self.size

    def deferral(self) -> Callable[[dict[str, Any]], None]:
        """Nothing remains to be done to these batches."""
        return lambda batch: None

    def handed_over(self, batch: dict[str, Any]) -> dict[str, Any]:
        return tensors.from_arrays(batch, ("image",)) if self.as_tensors else batch

    def stream(
        self,
        *,
        epoch: int,
        position: int = 0,
        worker: int = 0,
        workers: int = 1,
        allocate: Any = np.empty,
        pixels_on_device: bool = False,
    ) -> Generator[dict[str, Any], None, None]:
        for at in range(position, self.steps * self.size, self.size)[worker::workers]:
            if self.fault is not None:
                self.fault(epoch, at)
            ids = np.arange(at, at + self.size)
            with self.counters.busy("decode", self.size):
                image = allocate((self.size, self.width, self.width, 3), np.uint8)
                image[...] = (ids + 7 * epoch + self.transform)[:, None, None, None] % 251
            yield {
                "image": image,
                "id": ids,
                "key": [f"{i:03}" for i in ids],
                "epoch": epoch,
                "position": at,
                "process": os.getpid(),
                "state": {"epoch": epoch, "position": at + self.size},
            }


class At:
    """A fault at one batch: what it does is picklable, as it must be to reach a spawned worker."""

    def __init__(self, epoch: int, position: int, action: Callable[..., object], *arguments: Any) -> None:
        self.where = epoch, position
        self.action, self.arguments = action, arguments

    def __call__(self, epoch: int, position: int) -> None:
        if (epoch, position) == self.where:
            self.action(*self.arguments)


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def crash() -> None:
    """Read where nothing is."""
    import ctypes

    ctypes.string_at(0)


def never_return() -> None:
    while True:
        time.sleep(0.05)


def raise_error(error: BaseException) -> None:
    raise error


class Picky(Exception):
    """An exception that can be pickled and not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def raise_picky() -> None:
    raise Picky("salt", "pepper")


def raise_local() -> None:
    class LocalError(ValueError):
        pass

    raise LocalError("from within")
