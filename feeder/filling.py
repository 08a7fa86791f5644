"""From samples to the rows of a batch: reading, windows, decoding and the operations on pixels, a chunk at a time.

Everything here is a pure function of a source, an epoch, sample ids and copies; which thread does which chunk, and
when, is the business of `feeder.pipeline`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.engines import Engine
from feeder.errors import ConfigError
from feeder.fields import Fields, read_values, stack_values
from feeder.order import RankBatch
from feeder.program import Operation, Program, View
from feeder.shards.reading.rows import Reader, Rows
from feeder.stages import DECODE, FIELDS, READ, Counters
from feeder.transforms import Normalize
from feeder.windows import Windows

PADDING_LABEL = -100  # torch's cross_entropy leaves it out by default (ignore_index)

Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One dataset as it is streamed.

    Attributes:
        reader: where stored fields come from.
        seed: of crops, flips and everything else that is drawn for its samples.
        program: what is done to its images; None gives their encoded bytes.
        fields: what else batches hold.
        labels: int64[C], what its labels become, or None for as they are.
    """

    reader: Reader
    seed: int
    program: Program | None
    fields: Fields
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Which samples a batch holds, and where it stands."""

    epoch: int
    position: int
    samples: RankBatch

    def runs(self, rows: slice) -> Iterator[tuple[slice, int, int]]:
        """Yield (rows, source, epoch) of the runs of rows that have these in common."""
        sources, epochs = self.samples.sources[rows], self.samples.epochs[rows]
        borders = np.flatnonzero((np.diff(sources) != 0) | (np.diff(epochs) != 0)) + 1
        starts = [0, *borders.tolist()]
        for start, end in zip(starts, [*starts[1:], len(sources)], strict=True):
            if end > start:
                yield slice(rows.start + start, rows.start + end), int(sources[start]), int(epochs[start])


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """A sample that could not be decoded, and what was done about it.

    Attributes:
        row: of the batch.
        id, key: of the sample; source: number of its dataset.
        reason: a clause, to stand after the sample's name.
        stand_in: id and key of the sample in its place; None where it is masked.
    """

    row: int
    source: int
    id: int
    key: str
    reason: str
    stand_in: tuple[int, str] | None = None


@dataclass(slots=True)
class Batch:
    """A batch while it is filled in; rows belong to the chunk that fills them."""

    step: Step
    images: dict[str, NDArray[Any]]  # by view group, where what operations give is known beforehand
    results: dict[str, list[Any]]  # by view group, of user's functions: a list of V results for each row
    encoded: list[bytes] | None
    masks: dict[str, NDArray[np.uint8]]
    values: dict[str, list[Any]]
    crops: dict[str, NDArray[np.float32]]
    flips: dict[str, NDArray[np.bool_]]
    label: NDArray[np.int64]
    ids: NDArray[np.int64]
    keys: list[str]
    valid: NDArray[np.bool_]
    size: NDArray[np.int32]
    params: list[tuple[str, int, slice, dict[str, NDArray[Any]]]] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)


class Filler:
    """Lays out batches and fills their rows; safe from many threads as long as these have rows of their own.

    Args:
        sources: the datasets; all of them give outputs of the same sizes and types.
        engine: makes pixels.
        counters: where stages are counted.
        allocate: gives the memory of images, of a shape and type.
        pixels_on_device: leave operations on pixels to the caller, who finds in the batch what was drawn for them;
            where a user's function is among them, or datasets differ in them, they run here all the same.
    """

    def __init__(
        self,
        sources: tuple[Source, ...],
        engine: Engine,
        *,
        counters: Counters,
        allocate: Allocate = np.empty,
        pixels_on_device: bool = False,
    ) -> None:
        self._sources = sources
        self._engine = engine
        self._counters = counters
        self._allocate = allocate
        programs = [source.program for source in sources]
        operations = None if programs[0] is None else programs[0].operations
        self._defer = pixels_on_device and all(
            program is not None and program.deferrable and program.operations == operations for program in programs
        )

    def lay_out(self, step: Step) -> Batch:
        """Return the empty batch of a step; rows that are padded are zeros."""
        size, model = len(step.samples.ids), self._sources[0]
        views = () if model.program is None else model.program.views
        count = int(np.count_nonzero(step.samples.valid))
        batch = Batch(
            step=step,
            images={view.name: self._empty_images(size, view) for view in views if view.function is None},
            results={view.name: [None] * size for view in views if view.function is not None},
            encoded=[b""] * size if model.program is None else None,
            masks={
                _mask_entry(views, view, name): np.zeros((size, view.geometry.views, *view.geometry.size), np.uint8)
                for view in views
                for name in model.fields.masks
            },
            values={name: [None] * size for name in model.fields.types},
            crops={view.name: np.zeros((size, view.geometry.views, 4), np.float32) for view in views},
            flips={view.name: np.zeros((size, view.geometry.views), np.bool_) for view in views},
            label=np.full(size, PADDING_LABEL, np.int64),
            ids=step.samples.ids.copy(),
            keys=[""] * size,
            valid=step.samples.valid.copy(),
            size=np.zeros((size, 2), np.int32),
        )
        for images in batch.images.values():
            images[count:] = 0
        return batch

    def _empty_images(self, size: int, view: View) -> NDArray[Any]:
        """Return the array that a batch is decoded into."""
        shape = (size, view.geometry.views, *view.geometry.size, 3)
        try:
            return self._allocate(shape, np.uint8 if self._defer else view.dtype)
        except (MemoryError, ValueError):
            raise ConfigError(f"there is no memory for a batch of images {shape}; lower the batch size") from None

    def fill(
        self, batch: Batch, rows: slice, source: int, epoch: int, ids: NDArray[np.int64], copies: NDArray[np.int64]
    ) -> dict[int, str]:
        """Fill rows of a batch with samples; return the reasons of those that cannot be decoded, by offset."""
        origin = self._sources[source]
        with self._counters.busy(READ, len(ids)):
            table, images = origin.reader.read(ids)
        self._counters.add(READ, size_bytes=sum(map(len, images)))
        failures = {}
        if origin.program is None:
            assert batch.encoded is not None
            batch.encoded[rows] = images
        else:
            failures = self._fill_views(batch, rows, origin, origin.program, epoch, ids, copies, table, images)
        batch.ids[rows] = ids
        batch.label[rows] = _mapped(table.labels, origin.labels)
        batch.keys[rows] = table.keys
        batch.size[rows] = np.stack((table.widths, table.heights), axis=1)
        if origin.fields.types:
            with self._counters.busy(FIELDS, len(ids)):
                self._fill_values(batch, rows, origin, ids)
        return failures

    def _fill_views(
        self,
        batch: Batch,
        rows: slice,
        source: Source,
        program: Program,
        epoch: int,
        ids: NDArray[np.int64],
        copies: NDArray[np.int64],
        table: Rows,
        images: list[bytes],
    ) -> dict[int, str]:
        """Decode images into their views, masks into the same, and run the operations."""
        windows = [
            view.geometry.windows(source.seed, epoch, ids, copies, table.widths, table.heights, first_view=view.first)
            for view in program.views
        ]
        pixels = [
            batch.images[view.name][rows]
            if view.name in batch.images and batch.images[view.name].dtype == np.uint8
            else np.empty((len(ids), view.geometry.views, *view.geometry.size, 3), np.uint8)
            for view in program.views
        ]
        with self._counters.busy(DECODE, len(ids)):
            failures = self._engine.decode(images, windows, pixels)
        for view, window in zip(program.views, windows, strict=True):
            batch.crops[view.name][rows] = window.boxes
            batch.flips[view.name][rows] = window.flips
        for name in source.fields.masks:
            failures |= self._fill_masks(batch, rows, source, program, name, ids, windows)
        for view, array in zip(program.views, pixels, strict=True):
            self._operate(batch, rows, source, epoch, view, array, failures)
        return failures

    def _fill_masks(
        self,
        batch: Batch,
        rows: slice,
        source: Source,
        program: Program,
        name: str,
        ids: NDArray[np.int64],
        windows: list[Windows],
    ) -> dict[int, str]:
        """Read masks and cut the windows of their images; return why some cannot be decoded, by offset."""
        from feeder.engines.pillow import decode_masks

        with self._counters.busy(FIELDS, len(ids)):
            table, masks = source.reader.read(ids, name)
            for offset, mask in enumerate(masks):
                if not mask:
                    raise ConfigError(
                        f"sample {table.keys[offset]!r} of {source.reader.url} has no {name!r}, and no pixels stand for"
                        f" none; leave such samples out with where='{name}.width is not None'"
                    )
            failures: dict[int, str] = {}
            for view, window in zip(program.views, windows, strict=True):
                entry = _mask_entry(program.views, view, name)
                failures |= decode_masks(masks, window, batch.masks[entry][rows])
        return {offset: f"has a {name} that {reason}" for offset, reason in failures.items()}

    def _operate(
        self,
        batch: Batch,
        rows: slice,
        source: Source,
        epoch: int,
        view: View,
        pixels: NDArray[Any],
        failures: dict[int, str],
    ) -> None:
        """Run a view's operations on (n, V, H, W, 3) pixels, which are the batch's own where nothing else is said."""
        if not view.operations:
            return
        # the draws are those of the position's own sample: a stand-in takes its place in them
        samples = batch.step.samples
        keys = view.keys(source.seed, epoch, samples.ids[rows], samples.copies[rows])
        flat = pixels.reshape(-1, *pixels.shape[2:])
        for number, operation in enumerate(view.operations):
            own = operation.keys(keys)
            if operation is view.function:
                self._call(batch, rows, view, operation, pixels, own, failures)
                return
            if self._defer:
                self._draw_only(batch, rows, view, number, operation, own)
                continue
            with self._counters.busy(operation.name, len(pixels)):
                if isinstance(operation.transform, Normalize):
                    out = batch.images[view.name][rows] if view.function is None else None
                    pixels = operation.transform.apply(pixels, out=out)
                    flat = pixels.reshape(-1, *pixels.shape[2:])
                else:
                    params = operation.transform.draw(own.reshape(-1), *view.geometry.size)
                    operation.transform.apply(flat, params)

    def _draw_only(
        self, batch: Batch, rows: slice, view: View, number: int, operation: Operation, keys: NDArray[np.uint64]
    ) -> None:
        """Keep what is drawn for an operation that the caller runs."""
        if isinstance(operation.transform, Normalize):
            return
        drawn = operation.transform.draw(keys.reshape(-1), *view.geometry.size)
        params = {name: values.reshape(*keys.shape, *values.shape[1:]) for name, values in drawn.items()}
        batch.params.append((view.name, number, rows, params))

    def _call(
        self,
        batch: Batch,
        rows: slice,
        view: View,
        operation: Operation,
        pixels: NDArray[Any],
        keys: NDArray[np.uint64],
        failures: dict[int, str],
    ) -> None:
        """Call a user's function for each view of each sample."""
        with self._counters.busy(operation.name, len(pixels)):
            for offset in range(len(pixels)):
                if offset in failures:
                    continue
                batch.results[view.name][rows.start + offset] = [
                    operation.transform(pixels[offset, number], int(keys[offset, number]))
                    for number in range(view.geometry.views)
                ]

    @staticmethod
    def _fill_values(batch: Batch, rows: slice, source: Source, ids: NDArray[np.int64]) -> None:
        """Read the values of fields, and pass them through the user's functions."""
        for name, kind in source.fields.types.items():
            values = read_values(source.reader, kind, ids, name)
            if (function := source.fields.functions.get(name)) is not None:
                values = [function(value) for value in values]
            batch.values[name][rows] = values

    def mask_row(self, batch: Batch, row: int) -> None:
        """Make a row one that is not valid."""
        for array in (*batch.images.values(), *batch.masks.values()):
            array[row] = 0
        for results in (*batch.results.values(), *batch.values.values()):
            results[row] = None
        batch.label[row] = PADDING_LABEL
        batch.valid[row] = False

    def finish(self, batch: Batch) -> dict[str, Any]:
        """Return a whole batch as users see it; the axis of views is dropped where there is one view.

        Entries that begin with an underscore are for who hands the batch on: ``_images`` names the entries whose last
        axis is colour, ``_params`` holds what was drawn for operations that are still to be run.
        """
        model = self._sources[0]
        views = () if model.program is None else model.program.views
        entries: dict[str, Any] = {}
        channels_last = []
        for view in views:
            if view.name in batch.images:
                images, last = batch.images[view.name], True
            else:
                images, last = self._stacked(view, batch.results[view.name])
            entries[view.name] = images[:, 0] if view.geometry.views == 1 else images
            channels_last += [view.name] * last
        if batch.encoded is not None:
            entries["image"] = batch.encoded
        entries |= {"label": batch.label, "id": batch.ids, "key": batch.keys, "valid": batch.valid}
        for view in views:
            prefix = "" if len(views) == 1 and view.name == "image" else f"{view.name}."
            one = view.geometry.views == 1
            entries[f"{prefix}crop"] = batch.crops[view.name][:, 0] if one else batch.crops[view.name]
            entries[f"{prefix}flip"] = batch.flips[view.name][:, 0] if one else batch.flips[view.name]
            for name in model.fields.masks:
                mask = batch.masks[_mask_entry(views, view, name)]
                entries[f"{prefix}{name}"] = mask[:, 0] if one else mask
        for name, values in batch.values.items():
            entries[name] = stack_values(model.fields, name, values, batch.valid, batch.keys)
        entries |= {"size": batch.size, "epoch": batch.step.epoch, "position": batch.step.position}
        if len(self._sources) > 1:
            entries["source"] = batch.step.samples.sources
        entries["_images"] = tuple(channels_last)
        if self._defer:
            entries["_params"] = _gathered(batch)
        return entries

    def _stacked(self, view: View, results: list[Any]) -> tuple[NDArray[Any], bool]:
        """Return what a user's function gave, as (B, V, …), and whether its last axis is colour."""
        given = [result for views in results if views is not None for result in views]
        if (
            not given and view.function is not None
        ):  # no row is valid; what shape the zeros have, only the function knows
            given = [view.function.transform(np.zeros((*view.geometry.size, 3), np.uint8), 0)]
        last = isinstance(given[0], np.ndarray) and given[0].ndim == 3
        arrays = [np.asarray(result) for result in given]
        kinds = {(array.shape, str(array.dtype)) for array in arrays}
        if len(kinds) > 1:
            first, second = sorted(kinds)[:2]
            raise ConfigError(
                f"the transforms give images of different shapes or types, {first[0]} {first[1]} and {second[0]}"
                f" {second[1]}, which cannot be one batch; end them with a crop or resize to one size"
            )
        stacked = self._allocate((len(results), view.geometry.views, *arrays[0].shape), arrays[0].dtype)
        stacked[...] = 0
        remaining = iter(arrays)
        for row, views in enumerate(results):
            if views is not None:
                stacked[row] = [next(remaining) for _ in views]
        return stacked, last


def _mask_entry(views: tuple[View, ...], view: View, name: str) -> str:
    return name if len(views) == 1 and view.name == "image" else f"{view.name}.{name}"


def _mapped(labels: NDArray[np.int64], table: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return labels in the numbers of a mixture."""
    return labels if table is None else np.where(labels >= 0, table[np.maximum(labels, 0)], labels)


def _gathered(batch: Batch) -> dict[str, dict[int, dict[str, NDArray[Any]]]]:
    """Return what was drawn, by view group and number of the operation, as arrays over all rows."""
    gathered: dict[str, dict[int, dict[str, NDArray[Any]]]] = {}
    for view, number, rows, params in batch.params:
        arrays = gathered.setdefault(view, {}).setdefault(number, {})
        for name, values in params.items():
            whole = arrays.setdefault(name, np.zeros((len(batch.ids), *values.shape[1:]), values.dtype))
            whole[rows] = values
    return gathered
