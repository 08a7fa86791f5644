"""Slots: pieces of shared memory that batches are made in, one for each big array, and used again and again.

A worker makes slots as it needs them, and both processes map each one once. A slot has up to two holders: in the worker
the arrays over it (decode threads may still write though their batch was given up), and in the receiving process,
once it was sent, the arrays and tensors made of it. It is used again when both have let go, never before: whoever
keeps a list of batches makes the worker go on with new slots.

Letting go is noticed by the garbage collector, in any thread and in the middle of anything, so that all it does is to
append a number to a queue.
"""

import math
import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from feeder.memory import SharedMemory, anonymous_file

SMALLEST_BYTES = 1 << 16  # a smaller array costs less to pickle than its slot to account for
_SPARE_FACTOR = 2  # a free slot serves an array of at least half its size


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the bytes of an array lie."""

    slot: int
    offset: int
    length: int


@dataclass(slots=True)
class _Slot:
    memory: SharedMemory
    holders: int = 0


class SlotMaker:
    """The slots of a worker, of which one thread makes arrays.

    Args:
        spare: free slots to keep; the memory of more is given back.
    """

    def __init__(self, *, spare: int) -> None:
        self._spare = spare
        self._slots: dict[int, _Slot] = {}
        self._free: list[int] = []  # the one that was freed last comes last
        self._numbers = 0
        self._let_go: deque[int] = deque()
        self._unannounced: dict[int, int] = {}  # slot: descriptor
        self._dropped: list[int] = []

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array with arbitrary content, in a slot unless it is small.

        Raises:
            MemoryError: there is no memory for another slot.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALLEST_BYTES:
            return np.empty(shape, dtype)
        self._settle()
        number = self._free_slot(size)
        if number is None:
            number = self._new_slot(size)
        slot = self._slots[number]
        slot.holders = 1
        held = hold(slot.memory, lambda: self._let_go.append(number))
        return np.frombuffer(held, np.uint8, size).view(dtype).reshape(shape)

    def place(self, array: NDArray[np.uint8]) -> Place | None:
        """Return where the bytes of a flat array lie; None if in no slot."""
        address, length = array.ctypes.data, array.nbytes
        for number, slot in self._slots.items():
            offset = address - slot.memory.address
            if slot.holders and 0 <= offset <= slot.memory.size - length:
                return Place(slot=number, offset=offset, length=length)
        return None

    def sent(self, slots: set[int]) -> None:
        """Note that slots were sent, once each, and have another holder from now on, until `let_go`."""
        for number in slots:
            self._slots[number].holders += 1

    def let_go(self, slots: list[int]) -> None:
        """Note, from any thread, that the other process has no use for slots any more."""
        self._let_go.extend(slots)

    def news(self) -> tuple[list[tuple[int, int, int]], list[int]]:
        """Return (slot, size, descriptor) of each slot that is new since the last call, and the numbers of those gone.

        The caller closes the descriptors.
        """
        new = [(number, self._slots[number].memory.size, fd) for number, fd in self._unannounced.items()]
        dropped, self._dropped = self._dropped, []
        self._unannounced.clear()
        return new, dropped

    def _settle(self) -> None:
        """Free the slots that all holders have let go, and give back what is too much."""
        while self._let_go:
            number = self._let_go.popleft()
            self._slots[number].holders -= 1
            if not self._slots[number].holders:
                self._free.append(number)
        while len(self._free) > self._spare:
            number = self._free.pop(0)
            del self._slots[number]
            if (descriptor := self._unannounced.pop(number, None)) is not None:
                os.close(descriptor)
            else:
                self._dropped.append(number)

    def _free_slot(self, size: int) -> int | None:
        """Take the free slot of a fitting size that was used last; its pages are likely in the caches."""
        for number in reversed(self._free):
            if size <= self._slots[number].memory.size <= _SPARE_FACTOR * size:
                self._free.remove(number)
                return number
        return None

    def _new_slot(self, size: int) -> int:
        number, self._numbers = self._numbers, self._numbers + 1
        descriptor = anonymous_file("feeder-batch", size)
        try:
            self._slots[number] = _Slot(SharedMemory(descriptor, size))
        except MemoryError:
            os.close(descriptor)
            raise
        self._unannounced[number] = descriptor
        return number


class SlotViews:
    """The slots of a worker in the process that receives its batches.

    Args:
        prepare: called with each piece of memory when it was mapped, such as to pin it.
    """

    def __init__(self, prepare: Callable[[SharedMemory], None] | None) -> None:
        self._prepare = prepare
        self._memories: dict[int, SharedMemory] = {}
        self._let_go: deque[int] = deque()

    def add(self, number: int, size: int, descriptor: int) -> None:
        """Map a new slot."""
        memory = self._memories[number] = SharedMemory(descriptor, size)
        if self._prepare is not None:
            self._prepare(memory)

    def drop(self, number: int) -> None:
        """Forget a slot that the worker has given back."""
        del self._memories[number]

    def hold(self, number: int) -> NDArray[np.uint8]:
        """Return a slot's bytes; all that is made of them holds the slot until it is gone."""
        let_go = self._let_go
        return hold(self._memories[number], lambda: let_go.append(number))

    def skip(self, slots: set[int]) -> None:
        """Let go of slots whose content nobody wants."""
        self._let_go.extend(slots)

    def take_let_go(self) -> list[int]:
        """Return the slots that were let go since the last call."""
        return [self._let_go.popleft() for _ in range(len(self._let_go))]

    def clear(self) -> None:
        """Unmap all slots, those that are held as soon as they are let go."""
        self._memories.clear()


def hold(memory: SharedMemory, let_go: Callable[[], object]) -> NDArray[np.uint8]:
    """Return an array over shared memory that keeps it mapped; ``let_go`` is called when the array is gone.

    What is made of it through the buffer protocol (`memoryview`, `numpy.frombuffer`, pickle's buffers, and tensors over
    those) keeps the array itself.
    """
    array = memory.array()
    end = weakref.finalize(array, _end, memory, let_go)
    end.atexit = False
    return array


def _end(memory: SharedMemory, let_go: Callable[[], object]) -> None:
    let_go()
