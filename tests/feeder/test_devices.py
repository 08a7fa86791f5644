"""Batches on their way to a GPU, held against a stand-in for the functions of torch.cuda that are used."""

import contextlib
import itertools
import logging
import os
import time

import numpy as np
import pytest

from feeder import Loader, tensors
from feeder.errors import ConfigError
from feeder.memory import SharedMemory, anonymous_file
from tests.feeder.workers.streams import At, Numbers, raise_error

torch = pytest.importorskip("torch")
devices = pytest.importorskip("feeder.tensors.devices")


class Event:
    def __init__(self, cuda):
        self.cuda, self.happened = cuda, False

    def query(self):
        return self.happened

    def synchronize(self):
        self.happened = True
        self.cuda.log.append("synchronize")


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record_event(self):
        event = Event(self.cuda)
        self.cuda.events.append(event)
        self.cuda.log.append(f"event on {self.name}")
        return event

    def wait_event(self, event):
        self.cuda.log.append(f"{self.name} waits for event {self.cuda.events.index(event)}")


class Cuda:
    """Keeps a log of what it is asked for; nothing ever ends by itself."""

    class cudaError:  # noqa: N801 - as in CUDA's runtime
        success = 0

    def __init__(self, registers=0):
        self.log, self.events, self.registers = [], [], registers
        self.main = Stream(self, "main")
        self.now = "main"

    def Stream(self, device):  # noqa: N802
        return Stream(self, "side")

    @contextlib.contextmanager
    def stream(self, stream):
        self.now = stream.name
        yield
        self.now = "main"

    def current_stream(self, device):
        return self.main

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        self.log.append(("register", address, size))
        return self.registers

    def cudaHostUnregister(self, address):  # noqa: N802
        self.log.append(("unregister", address))


@pytest.fixture
def cuda(monkeypatch):
    """The stand-in; tensors log what they are asked for."""
    stand_in = Cuda()
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.numel() > 1000)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: stand_in.log.append("pin") or self)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: stand_in.log.append(f"used on {stream.name}")
    )

    def copied(self, device, non_blocking):
        assert non_blocking
        stand_in.log.append(f"copy on {stand_in.now}")
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "to", copied)
    return stand_in


def feed_of(cuda):
    return devices.CudaFeed(torch.device("cuda", 0), cuda)


def test_copies_run_on_the_side_stream_and_the_callers_stream_waits_for_them(cuda):
    feed = feed_of(cuda)
    batch = {"image": torch.ones(2000), "label": torch.arange(3), "key": ["a", "b", "c"], "epoch": 0}
    started = feed.start(batch)
    assert cuda.log == ["copy on side", "pin", "copy on side", "event on side"]
    cuda.log.clear()
    finished = feed.finish(started)
    assert cuda.log == ["main waits for event 0", "used on main", "used on main"]
    assert finished["image"] is not batch["image"]
    assert (finished["key"], finished["epoch"], finished["label"].tolist()) == (["a", "b", "c"], 0, [0, 1, 2])


def test_host_memory_is_let_go_when_its_copy_has_ended_and_not_before(cuda):
    with Loader(Numbers(steps=6, as_tensors=True), prefetch=1) as loader:
        feed = feed_of(cuda)
        views = None
        for batch in itertools.islice(loader, 3):
            feed.finish(feed.start(batch))
            views = loader._source._workers[0].views
        del batch
        let_go = views.take_let_go()
        cuda.events[0].happened = cuda.events[1].happened = True
        feed._let_go()
        assert len(let_go) + len(views.take_let_go()) < 3  # the third copy is under way
        cuda.events[2].happened = True
        feed._let_go()
        assert len(feed._under_way) == 0


def test_closing_waits_for_what_is_under_way(cuda):
    feed = feed_of(cuda)
    feed.start({"image": torch.ones(2000)})
    feed.close()
    assert cuda.log[-1] == "synchronize"


def test_memory_is_pinned_once_and_unpinned_before_it_is_unmapped(cuda):
    descriptor = anonymous_file("feeder-test", 8192)
    memory = SharedMemory(descriptor, 8192)
    os.close(descriptor)
    address = memory.address
    feed_of(cuda).prepare(memory)
    del memory
    assert cuda.log == [("register", address, 8192), ("unregister", address)]


def test_a_forked_process_unpins_nothing(cuda):
    memory = SharedMemory(anonymous_file("feeder-test", 8192), 8192)
    feed_of(cuda).prepare(memory)
    child = os.fork()
    if child == 0:
        memory.__del__()
        os._exit(len(cuda.log))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_memory_that_cannot_be_pinned_is_used_all_the_same_and_said_so(cuda, caplog):
    cuda.registers = 2
    memory = SharedMemory(anonymous_file("feeder-test", 8192), 8192)
    with caplog.at_level(logging.WARNING, "feeder"):
        feed_of(cuda).prepare(memory)
    assert [record.getMessage() for record in caplog.records] == [
        "memory of 8192 bytes for a batch cannot be pinned, so it is copied once more on its way to cuda:0"
    ]
    assert memory.before_unmapping is None


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x"])
def test_devices_that_are_none_are_refused(name):
    with pytest.raises(ConfigError) as caught:
        tensors.open_feed(name)
    assert str(caught.value) == f"device is {name!r}; it must be None, 'cpu', 'cuda' or 'cuda:N'"


def test_a_gpu_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loader = Loader(Numbers(as_tensors=True), device="cuda")
    with pytest.raises(ConfigError, match=r"device is 'cuda', but torch \S+ sees no GPU; leave device out"):
        next(iter(loader))


class Travel:
    """A feed that logs which batches started and which were finished."""

    overlaps = True
    prepare = None

    def __init__(self):
        self.log = []

    def start(self, batch):
        self.log.append(("start", batch["position"]))
        return batch

    def finish(self, started):
        self.log.append(("finish", started["position"]))
        return started

    def close(self):
        self.log.append("close")


@pytest.fixture
def travel(monkeypatch):
    feed = Travel()
    monkeypatch.setattr(tensors, "open_feed", lambda device: feed)
    return feed


def ready(loader):
    """Wait until the worker's next batch is there."""
    deadline = time.monotonic() + 60
    while not loader._source.is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_next_batch_is_on_its_way_before_one_is_handed_over(travel):
    with Loader(Numbers(as_tensors=True), device="cpu") as loader:
        batches = iter(loader)
        next(batches)
        ready(loader)
        travel.log.clear()
        for step in range(1, 4):
            next(batches)
            assert loader.state_dict()["position"] == 2 * step + 2  # what is ahead does not count
            ready(loader)
        assert travel.log[-4:] == [("start", 6), ("finish", 4), ("start", 8), ("finish", 6)]
        assert next(batches)["position"] == 8
        assert list(batches) == []
        assert [batch["position"] for batch in loader] == [0, 2, 4, 6, 8]


def test_an_exception_ahead_waits_for_its_turn(travel):
    fault = At(0, 4, raise_error, ValueError("at four"))
    loader = Loader(Numbers(as_tensors=True, fault=fault), device="cpu", start_method="fork")
    batches = iter(loader)
    next(batches)
    ready(loader)
    assert next(batches)["position"] == 2
    with pytest.raises(ValueError, match="at four"):
        next(batches)
    assert "close" in travel.log


def test_the_cpu_is_where_batches_are_anyway():
    with Loader(Numbers(as_tensors=True), device="cpu") as loader:
        batch = next(iter(loader))
        assert batch["image"].device.type == "cpu"
        assert np.asarray(batch["image"]).shape == (2, 3, 160, 160)
