"""Worker processes: none is left, and none keeps the program from ending, whatever happens."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from feeder.shards.workers import run_tasks


def hold_nothing() -> None:
    """Stand for the claim of a destination."""


def never_done(task: int) -> None:
    """Stand for a shard that takes long."""
    threading.Event().wait()


def test_a_second_interrupt_ends_workers_that_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    shutdown = ProcessPoolExecutor.shutdown

    def interrupted(pool: ProcessPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        raise KeyboardInterrupt

    monkeypatch.setattr("feeder.shards.workers.ProcessPoolExecutor.shutdown", interrupted)

    def wait(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("feeder.shards.workers.wait", wait)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(never_done, [1, 2], 2, hold_nothing))
    workers = set(multiprocessing.active_children()) - before
    for worker in workers:
        worker.join(60)
    assert {worker.is_alive() for worker in workers} <= {False}
