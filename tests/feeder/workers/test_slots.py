"""Memory of batches is used again when all have let go of it, and never before."""

import gc
import os

import numpy as np
import pytest

from feeder.memory import SharedMemory, anonymous_file
from feeder.workers.slots import SMALLEST_BYTES, SlotMaker, SlotViews

BIG = (SMALLEST_BYTES,)


def mappings() -> int:
    gc.collect()  # what tests before this one have left in cycles
    with open("/proc/self/maps") as file:
        return sum("memfd:feeder-batch" in line for line in file)


def announce(maker: SlotMaker, views: SlotViews) -> None:
    """Tell the receiving side what is new and what is gone, as messages do."""
    new, dropped = maker.news()
    for number, size, descriptor in new:
        views.add(number, size, descriptor)
        os.close(descriptor)
    for number in dropped:
        views.drop(number)


def number_of(maker: SlotMaker, array: np.ndarray) -> int:
    place = maker.place(array.reshape(-1).view(np.uint8))
    assert place is not None
    return place.slot


def test_two_mappings_show_the_same_bytes_and_keep_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    descriptor = anonymous_file("feeder-test", 4096)
    one, other = SharedMemory(descriptor, 4096), SharedMemory(descriptor, 4096)
    os.close(descriptor)
    one.array()[7] = 42
    assert other.array()[7] == 42
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_memory_than_there_are_addresses_is_a_memory_error():
    descriptor = anonymous_file("feeder-test", 1)
    with pytest.raises(MemoryError, match="mapping 4611686018427387904 bytes of shared memory failed: "):
        SharedMemory(descriptor, 1 << 62)


def test_what_is_to_be_done_before_unmapping_is_done_once():
    done = []
    memory = SharedMemory(anonymous_file("feeder-test", 4096), 4096)
    memory.before_unmapping = lambda: done.append(1)
    del memory
    assert done == [1]


def test_small_arrays_take_no_slot():
    maker = SlotMaker(spare=1)
    array = maker.allocate((SMALLEST_BYTES - 1,), np.uint8)
    assert maker.place(array) is None


def test_an_array_has_the_shape_and_type_that_was_asked_for():
    array = SlotMaker(spare=1).allocate((3, 100, 100, 3), np.float32)
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (
        (3, 100, 100, 3),
        np.float32,
        True,
        True,
    )


def test_a_slot_that_was_never_sent_is_used_again_when_the_last_view_of_it_is_gone():
    maker = SlotMaker(spare=4)
    array = maker.allocate(BIG, np.uint8)
    first = number_of(maker, array)
    kept = array[10:20]
    del array
    assert number_of(maker, maker.allocate(BIG, np.uint8)) != first
    del kept
    assert number_of(maker, maker.allocate(BIG, np.uint8)) in (0, 1)
    assert maker.news()[0][-1][0] == 1  # there never was a third


def test_a_slot_that_was_sent_is_used_again_when_both_sides_have_let_go():
    maker, views = SlotMaker(spare=4), SlotViews(None)
    array = maker.allocate(BIG, np.uint8)
    array[:] = 7
    first = number_of(maker, array)
    maker.sent({first})
    announce(maker, views)
    received = np.frombuffer(memoryview(views.hold(first))[100:200], np.uint8)
    del array
    second = maker.allocate(BIG, np.uint8)
    assert number_of(maker, second) != first
    assert received.tolist() == [7] * 100
    assert views.take_let_go() == []
    del received
    gc.collect()
    let_go = views.take_let_go()
    assert let_go == [first]
    maker.let_go(let_go)
    assert number_of(maker, maker.allocate(BIG, np.uint8)) == first


def test_a_slot_whose_array_lives_on_in_the_worker_is_not_used_again_when_the_receiver_lets_go():
    """A decode thread may still write into a batch that was given up."""
    maker = SlotMaker(spare=4)
    array = maker.allocate(BIG, np.uint8)
    first = number_of(maker, array)
    maker.sent({first})
    maker.let_go([first])
    assert number_of(maker, maker.allocate(BIG, np.uint8)) != first
    del array
    assert number_of(maker, maker.allocate(BIG, np.uint8)) == first


def test_torch_tensors_hold_the_slot():
    torch = pytest.importorskip("torch")
    maker, views = SlotMaker(spare=4), SlotViews(None)
    array = maker.allocate((2, 200, 200, 3), np.uint8)
    maker.sent({0})
    announce(maker, views)
    cut = memoryview(views.hold(0))[: array.nbytes]
    tensor = torch.from_numpy(np.frombuffer(cut, np.uint8).reshape(array.shape)).movedim(-1, -3)[1]
    del cut
    assert views.take_let_go() == []
    del tensor
    assert views.take_let_go() == [0]


def test_memory_stays_mapped_for_whoever_holds_it_after_the_views_are_cleared():
    before = mappings()
    maker, views = SlotMaker(spare=4), SlotViews(None)
    maker.allocate(BIG, np.uint8)[:] = 9
    maker.sent({0})
    announce(maker, views)
    held = views.hold(0)
    views.clear()
    del maker
    assert held[5] == 9
    del held
    gc.collect()
    assert mappings() == before


def test_slots_that_are_too_many_are_given_back_on_both_sides():
    before = mappings()
    maker, views = SlotMaker(spare=2), SlotViews(None)
    arrays = [maker.allocate(BIG, np.uint8) for _ in range(10)]
    announce(maker, views)
    assert mappings() == before + 20
    del arrays
    kept = maker.allocate(BIG, np.uint8)
    announce(maker, views)
    assert mappings() == before + 4
    kept[:] = 1


def test_slots_of_another_size_are_not_wasted_on_small_arrays():
    maker = SlotMaker(spare=4)
    maker.allocate((SMALLEST_BYTES * 3,), np.uint8)
    assert number_of(maker, maker.allocate(BIG, np.uint8)) == 1
    assert number_of(maker, maker.allocate((SMALLEST_BYTES * 2,), np.uint8)) == 0


def test_new_memory_is_shown_to_who_prepares_it():
    seen = []
    maker, views = SlotMaker(spare=1), SlotViews(seen.append)
    maker.allocate(BIG, np.uint8)
    announce(maker, views)
    assert [memory.size for memory in seen] == [SMALLEST_BYTES]
