"""A pool of threads runs tasks, passes on what they raise, and never holds up the end of its process."""

import gc
import subprocess
import sys
import threading

import pytest

from feeder import threads
from feeder.threads import Threads


def test_tasks_run_in_order_of_submission():
    done = []
    pool = Threads(1, "test")
    for future in [pool.submit(done.append, number) for number in range(100)]:
        future.result()
    assert done == list(range(100))
    pool.close()


def test_tasks_run_at_once():
    pool = Threads(3, "test")
    meeting = threading.Barrier(3)
    for future in [pool.submit(meeting.wait, 60) for _ in range(3)]:
        future.result()
    pool.close()


def test_what_a_task_raises_comes_out_of_its_future_and_the_thread_goes_on():
    pool = Threads(1, "test")
    failed = pool.submit(int, "x")
    pool.submit(int, "1").result()
    with pytest.raises(ValueError, match="invalid literal"):
        failed.result()
    pool.close()


def test_closing_cancels_what_waits_and_refuses_more():
    pool = Threads(1, "test")
    begun, gate = threading.Event(), threading.Event()

    def hold():
        begun.set()
        gate.wait()

    held = pool.submit(hold)
    begun.wait()
    waiting = pool.submit(int)
    threading.Thread(target=waiting.add_done_callback, args=(lambda _: gate.set(),)).start()
    pool.close()
    assert held.done()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="the threads were stopped"):
        pool.submit(int)


def test_a_pool_that_is_let_go_ends_its_threads():
    pool = Threads(2, "let-go")
    pool.submit(int).result()
    del pool
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "let-go"]


HANG = """
import threading
from feeder import threads
threads.STOP_LIMIT_S = 0.1
begun = threading.Event()
def hang():
    begun.set()
    threading.Event().wait()
pool = threads.Threads(1, "hung")
pool.submit(hang)
begun.wait()
"""


def test_a_task_that_hangs_does_not_keep_the_process():
    assert threads.STOP_LIMIT_S < 10
    assert subprocess.run([sys.executable, "-c", HANG], timeout=60, check=False).returncode == 0
