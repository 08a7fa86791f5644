"""A pool of threads that does not keep its process from ending.

The threads of ``concurrent.futures`` are joined when the interpreter ends, however long that takes: after a read that
hangs, a rank that has raised its error would stay, and the others wait for it. These here are daemons. They are stopped
in good order all the same, since a daemon that is cut off inside a library may take the process down with it.
"""

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

STOP_LIMIT_S = 5.0  # a task takes milliseconds; one that hangs is not waited for longer

_Task = tuple[Future[None], Callable[..., None], tuple[Any, ...]]


class Threads:
    """Runs tasks in the order in which they were submitted; one thread submits them.

    Args:
        count: the most threads, at least 1; they are started as tasks come.
        name: of the threads, as debuggers show it.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stop = weakref.finalize(self, _stop, self._tasks, self._threads)  # at the end of the process, too

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Return the future of a call; RuntimeError if the pool was closed."""
        if not self._stop.alive:
            raise RuntimeError("the threads were stopped")
        future: Future[None] = Future()
        self._tasks.put((future, function, arguments))
        if len(self._threads) < self._count and not self._tasks.empty():
            thread = threading.Thread(target=_work, args=(self._tasks,), name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return future

    def close(self) -> None:
        """Cancel the tasks that have not started, and wait for the others, `STOP_LIMIT_S` at most."""
        self._stop()


def _work(tasks: "SimpleQueue[_Task | None]") -> None:
    """Run tasks until there is a None."""
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if future.set_running_or_notify_cancel():
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the future is waited for
                future.set_exception(error)
            else:
                future.set_result(None)
        del task, future, function, arguments  # an idle thread keeps no batch alive


def _stop(tasks: "SimpleQueue[_Task | None]", threads: list[threading.Thread]) -> None:
    """Cancel what waits, and end the threads."""
    try:
        while (task := tasks.get_nowait()) is not None:
            task[0].cancel()
    except Empty:
        pass
    for _ in threads:
        tasks.put(None)
    deadline = time.monotonic() + STOP_LIMIT_S
    for thread in threads:
        if thread is not threading.current_thread():  # the garbage collector runs anywhere
            thread.join(max(0.0, deadline - time.monotonic()))
