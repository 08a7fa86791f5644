"""Worker processes: none keeps the program from ending, whatever happens."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from feeder.shards import workers
from feeder.shards.workers import run_tasks


def test_a_second_interrupt_ends_workers_that_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", interrupted)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(time.sleep, [600, 600], 2, os.getpid))  # type: ignore[arg-type]
    left = set(multiprocessing.active_children()) - before
    for worker in left:
        worker.join(60)
    assert not any(worker.is_alive() for worker in left)
