"""Batches go over as pickles whose arrays stay where they are."""

import multiprocessing.connection
import os

import numpy as np
import pytest

from feeder.workers.protocol import Made, batch_of, map_new, pack_batch, receive, send_packed
from feeder.workers.slots import SMALLEST_BYTES, SlotMaker, SlotViews


@pytest.fixture
def sides():
    """The slots of a worker, their views, and a function that sends a batch over."""
    maker, views = SlotMaker(spare=4), SlotViews(None)
    here, there = multiprocessing.connection.Pipe()

    def sent(batch):
        packed = pack_batch(batch, maker, generation=1, epoch=2, counts={})
        send_packed(there, packed, os.getpid())
        message = receive(here)
        map_new(here, message, views)
        assert here.poll() is False
        return message

    yield maker, views, sent
    here.close()
    there.close()


def test_arrays_in_slots_are_not_copied(sides):
    maker, views, sent = sides
    image = maker.allocate((2, 160, 160, 3), np.uint8)
    message = sent({"image": image, "label": np.arange(2)})
    assert isinstance(message, Made)
    assert len(message.body) < 1000
    received = batch_of(message, views)["image"]
    image[1, 2, 3, 0] = 99  # the same memory
    assert received[1, 2, 3, 0] == 99
    assert received.flags.writeable


def test_a_view_of_part_of_a_slot_comes_over_as_that_part(sides):
    maker, views, sent = sides
    image = maker.allocate((4, 1, 160, 160, 3), np.uint8)
    image[:] = np.arange(4)[:, None, None, None, None]
    received = batch_of(sent({"image": image[1:3, 0]}), views)["image"]
    assert received.shape == (2, 160, 160, 3)
    assert [received[0].max(), received[1].min()] == [1, 2]


def test_other_large_values_go_by_slots_too_and_small_ones_by_the_pickle(sides):
    _, views, sent = sides
    batch = {
        "large": np.arange(SMALLEST_BYTES, dtype=np.int64),
        "fortran": np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        "strided": np.arange(400_000).reshape(2000, 200)[:, ::2],
        "small": np.arange(5),
        "empty": np.empty((0, 3), np.float32),
        "encoded": [os.urandom(100_000), os.urandom(3)],
        "state": {"epoch": 3, "nested": [1, None, "x"]},
    }
    message = sent(batch)
    assert len(message.buffers) == 2
    assert not isinstance(message.body, bytes)
    received = batch_of(message, views)
    for name in ("large", "fortran", "strided", "small", "empty"):
        np.testing.assert_array_equal(received[name], batch[name])
        assert received[name].flags.writeable
    assert (received["encoded"], received["state"]) == (batch["encoded"], batch["state"])


def test_slots_are_let_go_with_the_batch(sides):
    maker, views, sent = sides
    message = sent({"one": maker.allocate((SMALLEST_BYTES,), np.uint8), "two": np.zeros(SMALLEST_BYTES)})
    received = batch_of(message, views)
    two = received.pop("two")
    assert views.take_let_go() == []
    del received
    assert views.take_let_go() == [0]
    del two
    assert views.take_let_go() == [1]
