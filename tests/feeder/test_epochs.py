"""Workers agree on the epoch without talking, whatever their number and however they were started."""

import copy
import multiprocessing
import os
import pickle
import sys
import threading

import pytest

from feeder import epochs
from feeder.epochs import EpochCounter


def serve(counter, worker, workers, channel):
    """Begin an iteration as a DataLoader worker each time that the channel says so."""
    while channel.recv() == "begin":
        channel.send(counter.begin(worker, workers))


class Loader:
    """Worker processes as a DataLoader makes them; those of `dead` are started and never begin."""

    def __init__(self, counter, workers, *, method="fork", dead=()):
        context = multiprocessing.get_context(method)
        self.channels = []
        self.processes = []
        for worker in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(counter, worker, workers, theirs), daemon=True)
            process.start()
            self.processes.append(process)
            if worker not in dead:
                self.channels.append(ours)

    def begin(self, worker):
        self.channels[worker].send("begin")
        return self.channels[worker].recv()

    def iterate(self):
        """Begin an iteration in every worker; return what they agree on."""
        found = {self.begin(worker) for worker in range(len(self.channels))}
        assert len(found) == 1
        return found.pop()

    def close(self):
        for channel in self.channels:
            channel.send("end")
        for process in self.processes:
            process.terminate()
            process.join()


@pytest.fixture
def make_loader():
    """Make loaders that end with the test."""
    loaders = []

    def make(*arguments, **options):
        loaders.append(Loader(*arguments, **options))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def test_each_iteration_is_the_next_epoch(make_loader):
    counter = EpochCounter()
    assert [counter.begin(0, 0) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    persistent = make_loader(counter, 3)
    assert [persistent.iterate() for _ in range(2)] == [(3, 0), (4, 0)]
    assert counter.epoch == 5


def test_the_number_of_workers_may_change_between_iterations(make_loader):
    counter = EpochCounter()
    epochs = []
    for workers in (3, 4, 3, 3, 0, 1, 4, 4, 0, 0, 2):
        epochs.append(make_loader(counter, workers).iterate()[0] if workers else counter.begin(0, 0)[0])
    assert epochs == list(range(11))


def test_workers_may_begin_at_any_time(make_loader):
    counter = EpochCounter()
    make_loader(counter, 2).iterate()
    loader = make_loader(counter, 4)
    assert [loader.begin(worker) for worker in (3, 0, 2)] == [(1, 0)] * 3
    assert loader.begin(1) == (1, 0)
    assert loader.iterate() == (2, 0)


def test_a_worker_that_died_before_it_began_is_not_missed(make_loader):
    counter = EpochCounter()
    assert make_loader(counter, 3, dead=[1]).iterate() == (0, 0)
    assert make_loader(counter, 3, dead=[0]).iterate() == (1, 0)
    assert make_loader(counter, 3).iterate() == (2, 0)


def test_loaders_that_run_at_once_have_epochs_of_their_own(make_loader):
    counter = EpochCounter()
    first, second = make_loader(counter, 2), make_loader(counter, 2)
    assert first.begin(0) == (0, 0)
    assert second.begin(1) == (1, 0)
    assert second.begin(0) == (1, 0)
    assert first.begin(1) == (0, 0)
    assert second.iterate() == (2, 0)
    assert first.iterate() == (3, 0)


def test_only_the_first_iteration_starts_at_the_position_that_was_set(make_loader):
    counter = EpochCounter()
    loader = make_loader(counter, 2)
    loader.iterate()
    counter.set(7, 640)
    assert (counter.epoch, counter.position) == (7, 640)
    assert loader.iterate() == (7, 640)
    assert (counter.epoch, counter.position) == (8, 0)
    assert loader.iterate() == (8, 0)


def test_workers_of_an_iteration_agree_though_another_epoch_is_set_meanwhile(make_loader):
    counter = EpochCounter()
    loader = make_loader(counter, 2)
    assert loader.begin(0) == (0, 0)
    counter.set(7, 64)
    assert loader.begin(1) == (0, 0)
    assert (counter.epoch, counter.position) == (7, 64)
    assert loader.iterate() == (7, 64)


def test_that_workers_were_started_is_not_forgotten(make_loader):
    counter = EpochCounter()
    assert not counter.had_workers
    make_loader(counter, 1).iterate()
    counter.begin(0, 0)
    counter.set(7)
    assert counter.had_workers


def test_it_is_known_whether_the_last_iteration_ran_in_workers(make_loader):
    counter = EpochCounter()
    assert not counter.in_workers
    make_loader(counter, 1).iterate()
    assert counter.in_workers
    counter.begin(0, 0)
    assert not counter.in_workers


def test_threads_of_a_process_begin_one_after_the_other(make_loader):
    counter = EpochCounter()
    begun, found = threading.Event(), []

    def begin():
        found.append(counter.begin(0, 0))
        begun.set()

    thread = threading.Thread(target=begin)
    with counter._locked():
        thread.start()
        assert not begun.wait(0.1)
    thread.join()
    assert found == [(0, 0)]
    assert make_loader(counter, 2).iterate() == (1, 0)


def test_copies_and_pickles_are_snapshots():
    counter = EpochCounter(2, 64)
    twins = [pickle.loads(pickle.dumps(counter)), copy.deepcopy(counter)]
    counter.begin(0, 0)
    for twin in twins:
        assert (twin.epoch, twin.position) == (2, 64)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_the_count_and_see_it_set(method, make_loader):
    counter = EpochCounter()
    loader = make_loader(counter, 2, method=method)
    assert loader.iterate() == (0, 0)
    assert loader.iterate() == (1, 0)
    counter.set(9, 32)
    assert loader.iterate() == (9, 32)
    assert counter.epoch == 10


def train(counter, channel):
    """Iterate as a rank that got its dataset from the process that launched it."""
    loader = Loader(counter, 2)
    found = [loader.iterate(), loader.iterate()]
    channel.send("ready")
    channel.recv()
    counter.set(5)
    found += [loader.iterate(), counter.begin(0, 0)]
    channel.send(found)
    loader.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ranks_that_share_a_dataset_count_apart(method):
    context = multiprocessing.get_context(method)
    counter = EpochCounter(3)
    channels, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        channels.append(ours)
        processes.append(context.Process(target=train, args=(counter, theirs)))
        processes[-1].start()
    assert [channel.recv() for channel in channels] == ["ready", "ready"]
    for channel in channels:
        channel.send("go on")
        assert channel.recv() == [(3, 0), (4, 0), (5, 0), (6, 0)]
    for process in processes:
        process.join()
    assert counter.epoch == 3


def test_processes_that_have_ended_make_no_living_one_forget_its_epochs(monkeypatch):
    """Each worker of a loader is a process of its own, and a long run may start thousands."""
    counter = EpochCounter()
    living, ended = os.getppid(), 2**22 + 1  # above all ids that Linux gives
    monkeypatch.setattr(os, "getpid", lambda: living)
    assert [counter.begin(0, 0) for _ in range(2)] == [(0, 0), (1, 0)]
    for pid in range(ended, ended + 3000):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        assert counter.begin(0, 0) == (0, 0)
    monkeypatch.setattr(os, "getpid", lambda: living)
    assert counter.begin(0, 0) == (2, 0)


def test_nothing_stays_open():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        EpochCounter()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_counter_may_outlive_the_modules_of_the_interpreter(monkeypatch):
    """At the end, what a module has imported is None before the last objects are gone."""
    counter, said = EpochCounter(), []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: said.append(problem.exc_value))
    with monkeypatch.context() as patch:
        patch.setattr(epochs, "os", None)
        del counter
    assert said == []
