"""Workers agree on the epoch without talking, whatever their number and however they were started."""

import copy
import multiprocessing
import pickle

import pytest

from feeder.epochs import MAX_WORKERS, EpochCounter
from feeder.errors import ConfigError


def begin_all(counter, workers):
    """Begin an iteration in every worker; return what they agree on."""
    found = {counter.begin(worker, workers) for worker in range(max(1, workers))}
    assert len(found) == 1
    return found.pop()


def test_each_iteration_is_the_next_epoch():
    counter = EpochCounter()
    assert [begin_all(counter, 0) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert [begin_all(counter, 3) for _ in range(2)] == [(3, 0), (4, 0)]
    assert counter.epoch == 5


def test_the_number_of_workers_may_change_between_iterations():
    counter = EpochCounter()
    epochs = [begin_all(counter, workers)[0] for workers in (3, 4, 3, 3, 0, 1, 4, 4, 0, 0, 2)]
    assert epochs == list(range(11))


def test_workers_may_begin_at_any_time():
    counter = EpochCounter()
    begin_all(counter, 2)
    assert counter.begin(0, 4) == (1, 0)
    assert counter.begin(3, 4) == (1, 0)
    assert counter.begin(1, 4) == (1, 0)
    assert counter.begin(2, 4) == (1, 0)
    assert begin_all(counter, 4) == (2, 0)


def test_only_the_first_iteration_starts_at_the_position_that_was_set():
    counter = EpochCounter()
    begin_all(counter, 2)
    counter.set(7, 640)
    assert (counter.epoch, counter.position) == (7, 640)
    assert begin_all(counter, 2) == (7, 640)
    assert (counter.epoch, counter.position) == (8, 0)
    assert begin_all(counter, 2) == (8, 0)


def test_iterations_in_workers_are_told_apart():
    counter = EpochCounter()
    begin_all(counter, 0)
    assert (counter.iterations, counter.worker_iterations) == (1, 0)
    begin_all(counter, 1)
    assert (counter.iterations, counter.worker_iterations) == (2, 2)
    begin_all(counter, 0)
    assert (counter.iterations, counter.worker_iterations) == (3, 2)


def test_copies_and_pickles_are_snapshots():
    counter = EpochCounter(2, 64)
    twins = [pickle.loads(pickle.dumps(counter)), copy.deepcopy(counter)]
    begin_all(counter, 0)
    for twin in twins:
        assert (twin.epoch, twin.position) == (2, 64)


def begin_and_wait(counter, number, channel):
    """Begin an iteration as a worker each time that the channel says so."""
    while channel.recv() == "begin":
        channel.send(counter.begin(number, 2))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_the_count_and_see_it_set(method):
    context = multiprocessing.get_context(method)
    counter = EpochCounter()
    channels, processes = [], []
    for number in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=begin_and_wait, args=(counter, number, theirs), daemon=True)
        process.start()
        channels.append(ours)
        processes.append(process)

    def begin():
        for channel in channels:
            channel.send("begin")
        return [channel.recv() for channel in channels]

    assert begin() == [(0, 0), (0, 0)]
    assert begin() == [(1, 0), (1, 0)]
    counter.set(9, 32)
    assert begin() == [(9, 32), (9, 32)]
    assert counter.epoch == 10
    for channel, process in zip(channels, processes, strict=True):
        channel.send("end")
        process.join()
        assert process.exitcode == 0


def test_the_largest_number_of_workers_fits():
    counter = EpochCounter()
    assert begin_all(counter, MAX_WORKERS) == (0, 0)
    assert begin_all(counter, MAX_WORKERS - 1) == (1, 0)
    with pytest.raises(ConfigError, match="num_workers is 257; at most 256 worker processes are supported"):
        counter.begin(0, MAX_WORKERS + 1)
