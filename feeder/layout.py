"""The memory of a batch, from the step that says which samples it holds to the dictionary that users get."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.fields import Fields, stack_values
from feeder.order import RankBatch
from feeder.pixels import Params
from feeder.program import Program, View
from feeder.shards.reading.rows import Reader

MIXER = -1  # in the place of an operation's number: what was drawn for the mixer
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
class UnfinishedBatch:
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
    params: list[tuple[str, int, slice, Params]] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)


class Layout:
    """Lays out empty batches, and hands out full ones.

    Args:
        sources: the datasets; all of them give outputs of the same sizes and types.
        allocate: gives the memory of images, of a shape and type.
        pixels_on_device: leave operations on pixels to the caller, who finds in the batch what was drawn for them;
            where one of them is a user's own, or datasets differ in them, they run here all the same.
    """

    def __init__(
        self, sources: tuple[Source, ...], *, allocate: Allocate = np.empty, pixels_on_device: bool = False
    ) -> None:
        self._sources = sources
        self._allocate = allocate
        programs = [source.program for source in sources]
        first = programs[0]
        self._views = () if first is None else first.views
        self.deferred = pixels_on_device and all(
            program is not None and first is not None and program.deferrable and program.operations == first.operations
            for program in programs
        )

    def lay_out(self, step: Step) -> UnfinishedBatch:
        """Return the empty batch of a step; rows that are padded are zeros."""
        size, model, views = len(step.samples.ids), self._sources[0], self._views
        count = int(np.count_nonzero(step.samples.valid))
        batch = UnfinishedBatch(
            step=step,
            images={view.name: self._empty_images(size, view) for view in views if view.function is None},
            results={view.name: [None] * size for view in views if view.function is not None},
            encoded=[b""] * size if model.program is None else None,
            masks={
                entry_name(views, view, name): np.zeros((size, view.count, *view.geometry.size), np.uint8)
                for view in views
                for name in model.fields.masks
                if view.geometry is not None
            },
            values={name: [None] * size for name in model.fields.types},
            crops={view.name: np.zeros((size, view.count, 4), np.float32) for view in views},
            flips={view.name: np.zeros((size, view.count), np.bool_) for view in views},
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
        assert view.geometry is not None  # without a function there is one
        shape = (size, view.count, *view.geometry.size, 3)
        try:
            return self._allocate(shape, np.uint8 if self.deferred else view.dtype)
        except (MemoryError, ValueError):
            raise ConfigError(f"there is no memory for a batch of images {shape}; lower the batch size") from None

    @staticmethod
    def mask_row(batch: UnfinishedBatch, row: int) -> None:
        """Make a row one that is not valid."""
        for array in (*batch.images.values(), *batch.masks.values()):
            array[row] = 0
        for results in (*batch.results.values(), *batch.values.values()):
            results[row] = None
        batch.label[row] = PADDING_LABEL
        batch.valid[row] = False

    def finish(self, batch: UnfinishedBatch) -> dict[str, Any]:
        """Return a whole batch as users see it; the axis of views is dropped where there is one view.

        Entries that begin with an underscore are for who hands the batch on: ``_images`` names the entries whose last
        axis is colour, ``_params`` holds what was drawn for operations that are still to be run.
        """
        model, views = self._sources[0], self._views
        entries: dict[str, Any] = {}
        channels_last = []
        for view in views:
            if view.name in batch.images:
                images, last = batch.images[view.name], True
            else:
                images, last = self._stacked(view, batch.results[view.name])
            entries[view.name] = images[:, 0] if view.count == 1 else images
            channels_last += [view.name] * last
        if batch.encoded is not None:
            entries["image"] = batch.encoded
        label: NDArray[Any] = batch.label
        params = _gathered(batch)
        if views and (mixer := views[0].mixer) is not None:
            mixed = self._mixing(batch, views[0])
            if self.deferred:
                params.setdefault(views[0].name, {})[MIXER] = mixed
            else:
                label = mixer.mix(entries[views[0].name], batch.label, batch.valid, mixed)
        entries |= {"label": label, "id": batch.ids, "key": batch.keys, "valid": batch.valid}
        for view in views:
            arrays = {"crop": batch.crops[view.name], "flip": batch.flips[view.name]}
            arrays |= {name: batch.masks[entry_name(views, view, name)] for name in model.fields.masks}
            for name, array in arrays.items():
                entries[entry_name(views, view, name)] = array[:, 0] if view.count == 1 else array
        for name, values in batch.values.items():
            entries[name] = stack_values(model.fields, name, values, batch.valid, batch.keys)
        entries |= {"size": batch.size, "epoch": batch.step.epoch, "position": batch.step.position}
        if len(self._sources) > 1:
            entries["source"] = batch.step.samples.sources
        entries["_images"] = tuple(channels_last)
        if self.deferred:
            entries["_params"] = params
        return entries

    def _mixing(self, batch: UnfinishedBatch, view: View) -> Params:
        """Return what is drawn for mixing: by the sample that stands first, so that a batch is a pure function."""
        samples = batch.step.samples
        seed, first = self._sources[int(samples.sources[0])].seed, max(0, int(samples.ids[0]))
        return view.mixing(seed, int(samples.epochs[0]), first, int(samples.copies[0]))

    def _stacked(self, view: View, results: list[Any]) -> tuple[NDArray[Any], bool]:
        """Return what a user's function gave, as (B, V, …), and whether its last axis is colour."""
        function = view.function
        assert function is not None
        given = [result for views in results if views is not None for result in views]
        if not given:  # no row is valid; what shape the zeros have, only the function knows
            sides = self._sides_of_first() if view.geometry is None else view.geometry.size
            given = [function(np.zeros((*sides, 3), np.uint8), 0)]
        first = given[0]
        for result in given:
            if (result.shape, result.dtype) != (first.shape, first.dtype):
                raise ConfigError(
                    f"transform {function.names[-1]} returned {_shape(first)} for one sample and {_shape(result)} for"
                    " another, which cannot be one batch; end with an operation that gives one size, such as a crop, or"
                    " begin with one that the engine executes, such as feeder.RandomResizedCrop(224)"
                )
        last = isinstance(first, np.ndarray) and first.ndim == 3
        arrays = [np.asarray(result) for result in given]
        stacked = self._allocate((len(results), view.count, *arrays[0].shape), arrays[0].dtype)
        stacked[...] = 0
        remaining = iter(arrays)
        for row, views in enumerate(results):
            for number in range(0 if views is None else len(views)):
                stacked[row, number] = next(remaining)
        return stacked, last

    def _sides_of_first(self) -> tuple[int, int]:
        """Return height and width of the first stored sample, where anything of that kind will do."""
        table, _ = self._sources[0].reader.read(np.zeros(1, np.int64))
        return max(1, int(table.heights[0])), max(1, int(table.widths[0]))


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def entry_name(views: tuple[View, ...], view: View, name: str) -> str:
    """Return what something of a view is called in a batch: "crop", or "local.crop" where there are several groups."""
    return name if len(views) == 1 and view.name == "image" else f"{view.name}.{name}"


def _gathered(batch: UnfinishedBatch) -> dict[str, dict[int, Params]]:
    """Return what was drawn, by view group and number of the operation, as arrays over all rows."""
    gathered: dict[str, dict[int, Params]] = {}
    for view, number, rows, params in batch.params:
        arrays = gathered.setdefault(view, {}).setdefault(number, {})
        for name, values in params.items():
            whole = arrays.setdefault(name, np.zeros((len(batch.ids), *values.shape[1:]), values.dtype))
            whole[rows] = values
    return gathered
