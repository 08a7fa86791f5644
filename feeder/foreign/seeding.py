"""The generators that a user's functions draw from, seeded from a key.

A function that takes a generator gets one of its own. All others may use the generators of `random`, `numpy.random` and
torch, which belong to the whole process: such a function runs alone, with these seeded, and finds them afterwards as
they were. Measured: 2 µs for torch's, 15 µs for `random`'s, 75 µs for NumPy's, so only those are seeded which an
operation can reach.

What runs here one at a time is only what is run by shardfeed. A training loop in the same process that draws from these
generators in another thread at the same moment still meets them; `feeder.Loader` runs all this in a process of its own.
"""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from feeder.tensors.seeding import generator_state, restore_generator, seed_generator

Generators = frozenset[str]  # of the names below

NONE: Generators = frozenset()
TORCH: Generators = frozenset({"torch"})
ALL: Generators = frozenset({"torch", "random", "numpy"})

_LOW_BITS = 0xFFFFFFFF  # numpy.random.seed takes words of 32 bits

_lock = threading.RLock()  # a function may itself iterate over a dataset with such functions


def _renew_lock() -> None:
    """Give a forked child a lock that no thread of its parent holds."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def generator(key: int) -> np.random.Generator:
    """Return the generator of a function that takes one: PCG64 seeded with the key, in 9 µs."""
    return np.random.Generator(np.random.PCG64(key))


@contextmanager
def alone(generators: Generators) -> Iterator[None]:
    """Keep the process's generators to this thread, and put them back as they were; free where there are none."""
    if not generators:
        yield
        return
    with _lock:
        of_random = random.getstate() if "random" in generators else None
        of_numpy = np.random.get_state(legacy=False) if "numpy" in generators else None  # noqa: NPY002 - functions draw from it
        of_torch = generator_state() if "torch" in generators else None
        try:
            yield
        finally:
            if of_random is not None:
                random.setstate(of_random)
            if of_numpy is not None:
                np.random.set_state(of_numpy)  # noqa: NPY002 - functions draw from it
            restore_generator(of_torch)


def seed(generators: Generators, key: int) -> None:
    """Seed the process's generators with a 64-bit key; only within `alone`."""
    if "random" in generators:
        random.seed(key)
    if "numpy" in generators:
        # with the two words of the key alone it would be the very generator of `random`, and draw the same numbers
        np.random.seed([key & _LOW_BITS, key >> 32, 1])  # noqa: NPY002 - functions draw from it
    if "torch" in generators:
        seed_generator(key)
