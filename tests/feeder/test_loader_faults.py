"""What a loader says, and what it leaves behind, when its workers are killed, crash, stop, hang, or raise."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feeder import ImageDataset, Loader, RandomResizedCrop
from feeder.errors import ConfigError, FeederError, SampleError, StalledError, WorkerDiedError
from feeder.workers import pool, process
from feeder.workers.failures import WorkerTraceback
from tests.feeder.workers.streams import (
    At,
    Numbers,
    Picky,
    crash,
    kill_self,
    never_return,
    raise_error,
    raise_local,
    raise_picky,
)
from tests.images import write_image_folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall is one after a fraction of a second, and a process that does not hear is killed at once."""
    monkeypatch.setattr(process, "STALL_LIMIT_S", 0.3)
    monkeypatch.setattr(process, "TICK_S", 0.05)
    monkeypatch.setattr(pool, "STOP_GRACE_S", 0.1)


def failing(action, *arguments, epoch=0, position=4, **options):
    """Return a loader whose worker does something before the batch at a position."""
    return Loader(Numbers(fault=At(epoch, position, action, *arguments)), prefetch=1, start_method="fork", **options)


def until_failure(loader, kind):
    """Return the batches that came before an exception, and the exception."""
    found = []

    def loop():
        for batch in loader:
            found.append((batch["epoch"], batch["position"]))

    with pytest.raises(kind) as caught:
        loop()
    return found, caught.value


def pid_of(loader):
    (pid,) = loader._source.pids()
    return pid


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


# death


def test_a_worker_that_is_killed_is_a_sentence_with_the_likely_cause():
    loader = failing(kill_self)
    found, error = until_failure(loader, WorkerDiedError)
    assert found == [(0, 0), (0, 2)]  # what was made before comes over
    sentence = str(error)
    assert sentence.startswith("worker 0 of the loader (process ")
    assert (
        ") was killed by SIGKILL: most often the kernel because memory ran out, or an operator; this process may use "
        in sentence
    )
    assert sentence.endswith(
        " GB with its workers: lower prefetch or the batch size, or raise the limit; it was making a batch at epoch 0,"
        " position 4"
    )


def test_a_worker_that_crashes_says_where():
    loader = failing(crash)
    _, error = until_failure(loader, WorkerDiedError)
    said = ") was killed by SIGSEGV: native code crashed: a library that a transform uses, or one that decodes; it was "
    assert f"{said}making a batch at epoch 0, position 4; its threads:\nFatal Python error: Segmentation fa" in str(
        error
    )
    assert "streams.py" in str(error)
    assert "in crash" in str(error)


@pytest.mark.parametrize(
    ("number", "clause"),
    [
        (signal.SIGTERM, "was killed by SIGTERM: somebody, such as the scheduler, ended it"),
        (signal.SIGBUS, "was killed by SIGBUS: memory or a mapped file was cut away under it"),
        (signal.SIGRTMIN + 3, f"was killed by signal {signal.SIGRTMIN + 3}: native code crashed"),
    ],
)
def test_each_signal_has_its_likely_cause(number, clause):
    _, error = until_failure(failing(kill_self, number), WorkerDiedError)
    assert clause in str(error)


def test_a_worker_that_ends_by_itself_is_named_with_its_exit_code():
    _, error = until_failure(failing(os._exit, 7), WorkerDiedError)
    assert ") ended by itself with exit code 7: something in it calls exit; it was making a batch" in str(error)


def test_a_worker_that_ends_while_it_starts_is_most_likely_one_that_cannot_import():
    """Spawn imports the main script, and what the dataset uses from there."""
    loader = Loader(Numbers(fault=_Unimportable()), start_method="spawn")
    _, error = until_failure(loader, WorkerDiedError)
    assert (
        ") ended with exit code 1 and a traceback: what the dataset uses must be defined at the top of a module that"
        " can be imported, and a script that starts workers by spawn or forkserver guarded by if __name__ =="
        " '__main__'; it was starting and importing"
    ) in str(error)


class _Unimportable:
    def __reduce__(self):
        return _raise_import_error, ()


def _raise_import_error():
    raise ImportError("not here")


def test_a_worker_whose_end_somebody_else_has_waited_for_has_ended_all_the_same():
    loader = failing(never_return)
    batches = iter(loader)
    next(batches)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        os.kill(pid_of(loader), signal.SIGKILL)
        with pytest.raises(WorkerDiedError) as caught:
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (
        ") has ended, and its exit code went elsewhere: SIGCHLD is ignored, or something waits for all children; it was"
        in str(caught.value)
    )


def test_a_process_that_may_open_no_more_files_is_told_so():
    with Loader(Numbers(steps=40)) as loader:
        batches = iter(loader)
        kept = [next(batches)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.close(lowest_unused := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_unused, limits[1]))
        try:
            with pytest.raises(ConfigError) as caught:
                kept.extend(batches)  # which makes the worker send new memory
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert str(caught.value) == (
        "this process has as many files open as it may, and the memory of a new batch comes over as one: close some, or"
        " raise the limit (ulimit -n)"
    )


def test_a_worker_that_is_killed_from_outside_while_it_is_waited_for_is_noticed():
    loader = failing(never_return)
    batches = iter(loader)
    next(batches)
    pid = pid_of(loader)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerDiedError, match="was killed by SIGKILL"):
        list(batches)


def test_one_of_several_workers_that_dies_takes_the_others_along():
    loader = Loader(Numbers(fault=At(0, 4, kill_self)), workers=3)
    batches = iter(loader)
    next(batches)
    pids = loader._source.pids()
    with pytest.raises(WorkerDiedError, match="worker 2 of the loader"):
        list(batches)
    assert all(map(is_gone, pids))


def test_after_a_death_the_next_iteration_is_the_next_epoch_with_a_new_worker():
    loader = failing(kill_self)
    until_failure(loader, WorkerDiedError)
    assert loader.state_dict() == {"epoch": 0, "position": 4}
    assert [batch["position"] for batch in loader] == [0, 2, 4, 6, 8]
    assert loader.epoch == 2
    loader.close()


# exceptions


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no such label"), ValueError),
        (ConfigError("batch_size is 0"), ConfigError),
        (MemoryError("there is none"), MemoryError),
        (OSError(5, "input/output error"), OSError),
    ],
)
def test_an_exception_is_raised_in_the_loop_as_what_it_is(error, kind, workers):
    loader = failing(raise_error, error)
    loader = Loader(loader.dataset, workers=workers, start_method="fork")
    found, raised = until_failure(loader, kind)
    assert found == [(0, 0), (0, 2)]
    assert (type(raised), str(raised)) == (kind, str(error))
    if workers:
        assert isinstance(raised.__cause__, WorkerTraceback)
        assert "in raise_error" in str(raised.__cause__)
        assert "in worker 0 (process " in str(raised.__cause__)
    loader.close()


def test_exceptions_that_cannot_be_pickled_keep_type_and_sentence():
    _, error = until_failure(failing(raise_picky), Picky)
    assert str(error) == "salt and pepper"
    _, error = until_failure(failing(raise_local), ValueError)
    assert (type(error).__name__, str(error)) == ("LocalError", "from within")


def test_a_batch_that_cannot_be_sent_is_a_sentence():
    _, error = until_failure(Loader(_Unsendable(), start_method="fork"), ConfigError)
    assert str(error) == (
        "a batch cannot be sent from a worker: cannot pickle 'generator' object; let the functions of map_fields return"
        " arrays, numbers, text or bytes, or pass workers=0"
    )


class _Unsendable(Numbers):
    def stream(self, **options):
        for batch in super().stream(**options):
            yield {**batch, "tokens": (token for token in ())}


def test_an_exit_in_a_worker_does_not_end_this_process():
    _, error = until_failure(failing(sys.exit, 3), FeederError)
    assert str(error) == "a function of the dataset raised SystemExit(3) in a worker process"


def test_after_an_exception_the_next_iteration_is_the_next_epoch():
    loader = failing(raise_error, ValueError("once"))
    until_failure(loader, ValueError)
    assert [batch["position"] for batch in loader] == [0, 2, 4, 6, 8]
    loader.close()


def test_a_bad_sample_of_a_real_dataset_is_its_own_error(tmp_path):
    folder = write_image_folder(tmp_path / "images")
    (folder / "ant" / "ant-03.jpg").write_bytes(b"\xff\xd8\xff nothing else")
    dataset = ImageDataset(folder, batch_size=4, transform=[RandomResizedCrop(32)], seed=1, on_error="raise", threads=1)
    with (
        Loader(dataset) as loader,
        pytest.raises(SampleError, match=r"sample 3 \('ant/ant-03.jpg'\) .*; on_error='replace'"),
    ):
        list(loader)


# stops and stalls


def test_a_worker_that_is_stopped_goes_on_afterwards():
    with Loader(Numbers(steps=30), prefetch=1) as loader:
        batches = iter(loader)
        next(batches)
        os.kill(pid_of(loader), signal.SIGSTOP)
        threading.Timer(1.5, os.kill, (pid_of(loader), signal.SIGCONT)).start()
        assert len(list(batches)) == 29


def test_a_worker_that_stays_stopped_is_an_error_that_says_so(impatient):
    loader = Loader(Numbers(steps=30), prefetch=1)
    batches = iter(loader)
    next(batches)
    pid = pid_of(loader)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StalledError) as caught:
        list(batches)
    assert str(caught.value).startswith(f"worker 0 of the loader (process {pid}) made no progress for 0 s; it is ")
    assert str(caught.value).endswith("; it is stopped: send it SIGCONT, or find out who sent it SIGSTOP")
    assert is_gone(pid)


def test_a_function_that_never_returns_is_an_error_that_shows_it(impatient):
    loader = failing(never_return)
    batches = iter(loader)
    next(batches)
    pid = pid_of(loader)
    with pytest.raises(StalledError) as caught:
        list(batches)
    sentence = str(caught.value)
    assert sentence.startswith(
        f"worker 0 of the loader (process {pid}) made no progress for 0 s; it is making a batch at epoch 0, position 4;"
        " check the storage that holds the dataset, and the functions that the transform calls; where stacks"
        " end in a library that had threads before workers were forked, such as OpenCV, start_method='forkserver'"
        " helps; its threads:\n"
    )
    assert "in never_return" in sentence
    assert is_gone(pid)


def test_a_slow_function_that_makes_progress_is_no_stall(impatient, monkeypatch):
    monkeypatch.setattr(process, "STALL_LIMIT_S", 1.0)  # less than all steps take, and far more than one does
    with Loader(Numbers(steps=8, fault=_slow), prefetch=1) as loader:
        assert len(list(loader)) == 8


def _slow(epoch, position):
    time.sleep(0.15)


def test_the_time_in_which_this_process_was_stopped_is_no_stall(impatient, monkeypatch):
    """A tick counts for no more than it should have lasted."""
    ticks = itertools.chain([0.0, 1000.0, 1000.0, 2000.0], itertools.count(2000.0, 0.01))
    monkeypatch.setattr(process.time, "monotonic", lambda: next(ticks))
    work = Loader(Numbers(steps=3, fault=_slow), prefetch=1)
    batches = iter(work)
    monkeypatch.undo()
    assert len(list(batches)) == 3
    work.close()


@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_closing_ends_workers_that_do_not_hear(how, impatient):
    loader = failing(never_return) if how == "hung" else Loader(Numbers())
    next(iter(loader))
    pid = pid_of(loader)
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    loader.close()
    assert is_gone(pid)


def test_limits_are_what_they_are_said_to_be():
    assert process.STALL_LIMIT_S == 120
    assert process.STOP_GRACE_S + process.KILL_LIMIT_S < 10


# Ctrl-C


INTERRUPTED = """
import sys
sys.modules["torch"] = None
import os, signal, threading
from feeder import Loader
from tests.feeder.workers.streams import At, Numbers, never_return
loader = Loader(Numbers(fault=At(0, 4, never_return)), prefetch=1)
batches = iter(loader)
next(batches)
pid = loader._source.pids()[0]
threading.Timer(0.5, os.killpg, (0, signal.SIGINT)).start()
try:
    list(batches)
except KeyboardInterrupt:
    assert not os.path.exists(f"/proc/{pid}")  # it ended with the wait
    print([batch["position"] for batch in loader])
"""


def test_after_ctrl_c_while_waiting_the_loader_can_be_used_again():
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, start_new_session=True)
    assert (done.stdout, done.returncode) == ("[0, 2, 4, 6, 8]\n", 0), done.stderr


TWICE = """
import sys
sys.modules["torch"] = None
import os, signal, threading
from feeder import Loader
from tests.feeder.workers.streams import Numbers
batches = iter(Loader(Numbers(), workers=2))
first = next(batches)
for pid in (other := [first["process"], next(batches)["process"]]):
    os.kill(pid, signal.SIGSTOP)
print(*other, flush=True)
from feeder.workers import pool
wait = pool.Worker.join
def interrupted(worker, deadline):
    os.kill(os.getpid(), signal.SIGINT)
    wait(worker, deadline)
pool.Worker.join = interrupted
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_second_ctrl_c_ends_stopped_workers_and_the_process():
    command = [sys.executable, "-c", TWICE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, start_new_session=True)
    assert done.returncode == -signal.SIGINT, done.stderr
    states = [process._process_state(int(pid)) for pid in done.stdout.split()]
    assert len(states) == 2
    assert set(states) <= {"", "Z"}  # that of a process whose parent has ended lasts until init has taken notice


# other jobs


JOB = """
import sys
sys.modules["torch"] = None
import multiprocessing.popen_fork, os, signal, tempfile
from feeder import Loader
from tests.feeder.workers.streams import Numbers
if {user} and os.getuid() == 0:
    os.setgid({user})
    os.setuid({user})
loader = Loader(Numbers(), workers=2)
print(len(list(loader)), flush=True)
os.kill(os.getpid(), signal.{signal})
"""


def test_a_job_that_crashed_leaves_nothing_that_another_could_meet(tmp_path):
    """Nor do two that run at once, of two users where the tests may change theirs: nothing of a loader has a name."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    tmp_path.chmod(0o777)

    def start(number, user=0):
        command = [sys.executable, "-c", JOB.replace("{signal}", number).replace("{user}", str(user))]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    jobs = [start("SIGKILL"), start("SIGCONT", user=65534)]
    assert [job.communicate(timeout=120)[0] for job in jobs] == ["5\n", "5\n"]
    assert [job.returncode for job in jobs] == [-9, 0]
    assert list(tmp_path.iterdir()) == []
    assert start("SIGCONT", user=65534).communicate(timeout=120)[0] == "5\n"
