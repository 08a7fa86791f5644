"""The pipeline does what the numbered lines of its module say, when things go wrong above all."""

import threading

import numpy as np
import pytest

from feeder import pipeline
from feeder.errors import StalledError, TooManyBadSamplesError
from feeder.fields import Fields
from feeder.layout import Source, Step
from feeder.order import Order, RankBatch
from feeder.order_settings import OrderSettings
from feeder.pipeline import Pipeline
from feeder.program import compile_program
from feeder.shards.reading.rows import Rows
from feeder.transforms import RandomResizedCrop


class Memory:
    """A reader whose images are their ids; it fails at some, and can be held."""

    def __init__(self, broken=()):
        self.broken = set(broken)
        self.gate = threading.Event()
        self.gate.set()
        self.reads = []

    def read(self, ids):
        self.gate.wait()
        self.reads.append(ids.tolist())
        for sample in ids.tolist():
            if sample in self.broken:
                raise OSError(f"disk error at {sample}")
        size = np.full(len(ids), 8, np.int32)
        rows = Rows(
            keys=[f"k{sample}" for sample in ids],
            labels=ids % 3,
            widths=size,
            heights=size,
            formats=["raw"] * len(ids),
        )
        return rows, [bytes([sample]) for sample in ids.tolist()]


class Fill:
    """An engine that fills an image with its only byte, and fails at some."""

    name = "fill"

    def __init__(self, bad=()):
        self.bad = set(bad)

    def decode(self, images, windows, out):
        (out,) = out
        for row, data in zip(out, images, strict=True):
            row[:] = data[0]
        return {row: "is bad" for row, data in enumerate(images) if data[0] in self.bad}


def make(reader, **changes):
    """Make a pipeline over 100 samples."""
    settings = OrderSettings(seed=0, shuffle=False, lanes=1, window=0, sticky=False)
    chosen = {"engine": Fill(), "on_error": "raise", "max_bad_fraction": 0.0, "threads": 2, **changes}
    source = Source(
        reader=reader,
        seed=0,
        program=compile_program([RandomResizedCrop(4)]),
        fields=Fields(types={}, masks=(), functions={}),
    )
    return Pipeline(sources=(source,), plan=Order(np.array([100]), settings), **chosen)


def steps(count, size=5):
    """Yield steps of consecutive ids."""
    for number in range(count):
        ids = np.arange(number * size, (number + 1) * size)
        samples = RankBatch.of_one(ids, np.zeros(size, np.int64), np.ones(size, np.bool_), 0)
        yield Step(epoch=0, position=number * size, samples=samples)


def test_batches_come_out_in_order_and_filled():
    batches = list(make(Memory()).batches(steps(20)))
    assert [batch["id"].tolist() for batch in batches] == [list(range(5 * n, 5 * n + 5)) for n in range(20)]
    assert all((batch["image"] == batch["id"][:, None, None, None]).all() for batch in batches)
    assert batches[3]["key"] == ["k15", "k16", "k17", "k18", "k19"]


def test_an_error_of_the_storage_comes_out_where_its_batch_would():
    batches = make(Memory(broken=[12])).batches(steps(20))
    assert [next(batches)["position"] for _ in range(2)] == [0, 5]
    with pytest.raises(OSError, match="disk error at 12"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_only_a_few_batches_are_under_way():
    reader = Memory()
    batches = make(reader, prefetch=2, threads=1).batches(steps(20))
    next(batches)
    assert max(max(ids) for ids in reader.reads) < 15


def test_leaving_early_cancels_what_has_not_started():
    reader = Memory()
    machine = make(reader, threads=1, prefetch=3)
    batches = machine.batches(steps(20))
    next(batches)
    reader.gate.clear()
    batches.close()
    reader.gate.set()
    machine.close()
    assert len(reader.reads) < 4 * 5


@pytest.mark.parametrize("allowed", [1, 3, 29])
def test_a_fraction_of_bad_samples_is_what_it_says(allowed):
    bad = range(30)
    batches = make(Memory(), on_error="mask", max_bad_fraction=allowed / 10_000, engine=Fill(bad)).batches(steps(20))
    with pytest.raises(TooManyBadSamplesError) as caught:
        list(batches)
    first_over = -(-(allowed + 1) // 5) * 5
    assert str(caught.value).startswith(
        f"{first_over} of the last {first_over} samples cannot be decoded, and max_bad_fraction allows {allowed} of"
    )


def test_a_hung_storage_is_an_error_that_names_the_stage(monkeypatch):
    monkeypatch.setattr(pipeline, "STALL_LIMIT_S", 0.05)
    reader = Memory()
    reader.gate.clear()
    with pytest.raises(StalledError) as caught:
        next(make(reader).batches(steps(1)))
    assert str(caught.value) == (
        "reading and decoding made no progress for 0 s at epoch 0, position 0; check the storage that holds the dataset"
    )
    reader.gate.set()


def test_a_timeout_of_the_storage_is_not_taken_for_ours():
    class Impatient(Memory):
        def read(self, ids):
            raise TimeoutError("the storage gave up")

    with pytest.raises(TimeoutError, match="the storage gave up"):
        next(make(Impatient()).batches(steps(1)))
