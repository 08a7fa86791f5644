"""Worker processes: none keeps the program from ending, whatever happens."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection

import pytest

from feeder.shards.building import workers
from feeder.shards.building.workers import run_tasks


def test_a_second_interrupt_ends_workers_that_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", interrupted)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(time.sleep, [600, 600], 2, os.getpid))  # type: ignore[arg-type]
    left = set(multiprocessing.active_children()) - before
    # The pool's own thread may have joined them already, after which `is_alive` is not to be relied on.
    assert all(connection.wait([worker.sentinel], timeout=60) for worker in left)
