"""Ctrl-C with worker processes: a terminal sends it to all of them, and the main process alone shall answer."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def workers_ignore_interrupts() -> Iterator[None]:
    """Processes started within never see SIGINT: not while they import, when they would print a traceback, nor later.

    They inherit this thread's signal mask, whatever the start method. This process gets what arrived meanwhile at the
    end. Workers end by what the main process does when it is interrupted, or when they notice that it is gone.
    """
    resource_tracker.ensure_running()  # starting it later, from within, would lift the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
