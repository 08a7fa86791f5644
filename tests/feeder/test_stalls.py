"""Seconds by cause sum to the wall time."""

import pytest

from feeder.stalls import COMPUTE, HAND_OVER, WORKER, StallClock


class Time:
    """A clock that goes when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


def counts(**busy_s: float) -> dict[str, tuple[int, int, float]]:
    return {stage: (1, 0, seconds) for stage, seconds in busy_s.items()}


def test_each_piece_of_time_has_one_cause(time):
    clock = StallClock(time)
    clock.start(4)
    for cause, seconds in [(COMPUTE, 8.0), (HAND_OVER, 1.0), (COMPUTE, 2.0)]:
        time.now_s += seconds
        clock.note(cause)
        clock.count_batch()
    stats = clock.stats
    assert (stats.epoch, stats.batches, stats.wall_s, stats.compute_s) == (4, 3, 11.0, 10.0)
    assert (stats.stalls_s, stats.stall_s, stats.utilization) == ({HAND_OVER: 1.0}, 1.0, 10 / 11)
    assert (
        str(stats) == "epoch 4: 3 batches in 11.00 s, of which compute 10.00 s (90.9%), stalls 1.00 s: hand-over 1.00 s"
    )


def test_waiting_for_a_worker_is_shared_among_the_stages_it_was_busy_with_meanwhile(time):
    clock = StallClock(time)
    clock.start(0)
    time.now_s += 4
    clock.note_waiting(0, counts(read=1.0, decode=3.0))
    time.now_s += 4
    clock.note_waiting(0, counts(read=3.0, decode=5.0))
    time.now_s += 1
    clock.note_waiting(0, counts(read=3.0, decode=5.0))
    assert clock.stats.stalls_s == {"read": 3.0, "decode": 5.0, WORKER: 1.0}


def test_workers_are_counted_apart_and_new_ones_from_zero(time):
    clock = StallClock(time)
    clock.start(0)
    clock.note_waiting(0, counts(read=5.0))
    time.now_s += 2
    clock.note_waiting(1, counts(decode=1.0))
    clock.forget_workers()
    time.now_s += 3
    clock.note_waiting(0, counts(read=1.0, decode=2.0))
    assert clock.stats.stalls_s == {"read": 1.0, "decode": 4.0}


def test_epochs_are_counted_apart_and_together_without_the_time_between(time):
    clock = StallClock(time)
    for epoch in range(2):
        clock.start(epoch)
        time.now_s += 1
        clock.note(COMPUTE)
        time.now_s += 50  # an evaluation
    assert (clock.stats.wall_s, clock.total.wall_s, clock.total.epoch) == (1.0, 2.0, None)
    assert str(clock.total).startswith("all epochs: 0 batches in 2.00 s")


def test_nothing_is_divided_by_nothing():
    assert StallClock().stats.utilization == 0.0
