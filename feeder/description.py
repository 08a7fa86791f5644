"""What a dataset does, in words: which samples, in which order, what runs where on their images, and what it costs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from feeder.batches import BatchDataset
from feeder.errors import ConfigError, FeederError
from feeder.layout import Source, Step
from feeder.order import RankBatch
from feeder.order_settings import OrderSettings
from feeder.program import Program, View
from feeder.stages import DECODE, FIELDS, READ, Counts

MEASURED = 16  # samples that are streamed to measure costs, where none were yet
_WHERE = {"batch": "in decode threads", "per sample": "per sample"}


def describe(dataset: BatchDataset[Any], num_samples: int, sources: Mapping[str, Source]) -> str:
    """Return a few lines about a dataset.

    Costs are thread time a sample: of what this process has streamed so far, or of a few samples that are streamed now.

    Args:
        dataset: a dataset, or a mixture of several.
        num_samples: what it holds.
        sources: the datasets by name.
    """
    counts, said = _counted(dataset, sources)
    lines = [f"{type(dataset).__name__} {dataset.name}: {num_samples:,} samples, digest {dataset.digest}"]
    lines += [f"  {name:<12}{text}" for name, text in _of_order(dataset)]
    for name, source in sources.items():
        if len(sources) > 1:
            lines.append(f"  {name}")
        for what, text in _of_images(source.program, dataset.engine, counts):
            lines.append(f"  {what:<12}{text}")
        entries = [*source.fields.types, *source.fields.masks]
        if entries:
            lines.append(f"  {'fields':<12}{', '.join(entries)}{_cost(counts, FIELDS)}")
    read, decode = _cost(counts, READ), _cost(counts, DECODE)
    lines.append(
        f"  {'cost':<12}reading{read or ': unknown'}, decoding{decode or ': none'} a sample in one thread; {said}"
    )
    return "\n".join(lines)


def _of_order(dataset: BatchDataset[Any]) -> Iterator[tuple[str, str]]:
    try:
        settings, steps, global_batch = dataset.order_settings, len(dataset), dataset.global_batch()
    except ConfigError as error:
        yield "order", f"not settled: {error}"
        return
    if isinstance(settings, OrderSettings):
        yield "order", str(settings)
    else:
        yield "order", f"seed {settings.seed}, epochs of {settings.length:,} samples"
    yield "batches", f"{steps:,} steps an epoch, of {global_batch:,} samples over all ranks"


def _of_images(program: Program | None, engine: str, counts: Counts) -> Iterator[tuple[str, str]]:
    if program is None:
        yield "image", "encoded, as stored"
        return
    for view in program.views:
        yield view.name, _shape(view)
        for placement in view.placements:
            where = f"in engine {engine}" if placement.where == "engine" else _WHERE[placement.where]
            yield "", f"{placement.name}, {where}: {placement.why}"
        costs = [f"{operation.name}{_cost(counts, operation.name)}" for operation in view.operations]
        if costs:
            yield "", f"cost: {'; '.join(costs)} a sample"


def _shape(view: View) -> str:
    size = "of any size" if view.geometry is None else f"{view.geometry.size[0]} x {view.geometry.size[1]}"
    views = "" if view.count == 1 else f", {view.count} of each sample"
    if view.function is not None:
        return f"{size}, then what the functions give{views}"
    return f"{size}, {np.dtype(view.dtype).name}{views}"


def _counted(dataset: BatchDataset[Any], sources: Mapping[str, Source]) -> tuple[Counts, str]:
    """Return what stages have counted, and of how many samples that is."""
    counts: Counts = dataset.counters.snapshot()
    if counts.get(READ, (0, 0, 0.0))[0] < MEASURED:
        try:
            counts = _measured(dataset, next(iter(sources.values())))
        except FeederError as error:
            return {}, f"not measured: {error}"
    return counts, f"measured over {counts[READ][0]:,} samples"


def _measured(dataset: BatchDataset[Any], source: Source) -> Counts:
    """Stream a few samples from all over the first dataset, and return what was counted."""
    total = source.reader.manifest.num_samples
    ids = np.unique(np.linspace(0, total - 1, min(MEASURED, total)).astype(np.int64))
    samples = RankBatch.of_one(ids, np.zeros_like(ids), np.ones(len(ids), np.bool_), 0)
    dataset.made(Step(epoch=0, position=0, samples=samples))
    return dataset.counters.snapshot()


def _cost(counts: Counts, stage: str) -> str:
    samples, _, busy_s = counts.get(stage, (0, 0, 0.0))
    return f": {1000 * busy_s / samples:.2f} ms" if samples else ""
