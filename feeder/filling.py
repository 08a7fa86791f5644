"""From samples to the rows of a batch: reading, windows, decoding and the operations on pixels, a chunk at a time.

Everything here is a pure function of a source, an epoch, sample ids and copies; which thread does which chunk, and
when, is the business of `feeder.pipeline`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.augment import sample_keys
from feeder.engines import Engine
from feeder.errors import ConfigError, TransformError
from feeder.fields import read_values
from feeder.foreign import PerSample, apply_field
from feeder.keyed import derive_key, draw
from feeder.layout import Layout, Source, UnfinishedBatch, entry_name
from feeder.program import Operation, Program, View
from feeder.shards.reading.rows import Rows
from feeder.stages import DECODE, FIELDS, READ, Counters
from feeder.transforms import Normalize
from feeder.windows import Windows


class Filler:
    """Fills rows of batches; safe from many threads as long as these have rows of their own.

    Args:
        sources: the datasets.
        engine: makes pixels.
        counters: where stages are counted.
        layout: of the batches.
    """

    def __init__(self, sources: tuple[Source, ...], engine: Engine, counters: Counters, layout: Layout) -> None:
        self._sources = sources
        self._engine = engine
        self._counters = counters
        self._layout = layout

    def fill(
        self,
        batch: UnfinishedBatch,
        rows: slice,
        source: int,
        epoch: int,
        ids: NDArray[np.int64],
        copies: NDArray[np.int64],
    ) -> dict[int, str]:
        """Fill rows of a batch with samples; return the reasons of those that cannot be decoded, by offset."""
        origin = self._sources[source]
        with self._counters.busy(READ, len(ids)):
            table, images = origin.reader.read(ids)
        self._counters.add(READ, size_bytes=sum(map(len, images)))
        batch.ids[rows] = ids
        batch.label[rows] = _mapped(table.labels, origin.labels)
        batch.keys[rows] = table.keys
        batch.size[rows] = np.stack((table.widths, table.heights), axis=1)
        failures = {}
        if origin.program is None:
            assert batch.encoded is not None
            batch.encoded[rows] = images
        else:
            failures = self._fill_views(batch, rows, origin, origin.program, epoch, ids, copies, table, images)
        if origin.fields.types:
            with self._counters.busy(FIELDS, len(ids)):
                self._fill_values(batch, rows, origin, epoch, ids, copies)
        return failures

    def _fill_views(
        self,
        batch: UnfinishedBatch,
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
        cut = [(view, view.geometry) for view in program.views if view.geometry is not None]
        windows = [
            geometry.windows(source.seed, epoch, ids, copies, table.widths, table.heights, first_view=view.first)
            for view, geometry in cut
        ]
        pixels = [
            batch.images[view.name][rows]
            if view.name in batch.images and batch.images[view.name].dtype == np.uint8
            else np.empty((len(ids), view.count, *geometry.size, 3), np.uint8)
            for view, geometry in cut
        ]
        failures: dict[int, str] = {}
        if cut:
            with self._counters.busy(DECODE, len(ids)):
                failures = self._engine.decode(images, windows, pixels)
        for (view, _), window in zip(cut, windows, strict=True):
            batch.crops[view.name][rows] = window.boxes
            batch.flips[view.name][rows] = window.flips
        for name in source.fields.masks:
            failures |= self._fill_masks(batch, rows, source, program, name, ids, windows)
        for (view, _), array in zip(cut, pixels, strict=True):
            self._operate(batch, rows, source, epoch, view, array, failures)
        for view in program.views:
            if view.geometry is None:
                failures |= self._fill_whole(batch, rows, source, epoch, view, table, images)
        return failures

    def _fill_whole(
        self,
        batch: UnfinishedBatch,
        rows: slice,
        source: Source,
        epoch: int,
        view: View,
        table: Rows,
        images: list[bytes],
    ) -> dict[int, str]:
        """Decode whole images, and let the view's function make of them what it does."""
        failures: dict[int, str] = {}
        keys = view.operations[0].keys(
            view.keys(source.seed, epoch, batch.step.samples.ids[rows], batch.step.samples.copies[rows])
        )
        for offset, data in enumerate(images):
            sides = max(1, int(table.heights[offset])), max(1, int(table.widths[offset]))
            pixels = np.empty((1, 1, *sides, 3), np.uint8)
            with self._counters.busy(DECODE, 1):
                found = self._engine.decode([data], [_whole_window(table, offset)], [pixels])
            batch.crops[view.name][rows.start + offset] = (0, 0, table.widths[offset], table.heights[offset])
            if found:
                failures[offset] = found[0]
            one = slice(rows.start + offset, rows.start + offset + 1)
            shown = np.repeat(pixels, view.count, axis=1)  # functions may change what they get
            self._call(batch, one, view, view.operations[0], shown, keys[offset : offset + 1], found)
        return failures

    def _fill_masks(
        self,
        batch: UnfinishedBatch,
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
            entries = [entry_name(program.views, view, name) for view in program.views if view.geometry is not None]
            failures = decode_masks(masks, windows, [batch.masks[entry][rows] for entry in entries])
        return {offset: f"has a {name} that {reason}" for offset, reason in failures.items()}

    def _operate(
        self,
        batch: UnfinishedBatch,
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
        assert view.geometry is not None
        # the draws are those of the position's own sample: a stand-in takes its place in them
        samples = batch.step.samples
        keys = view.keys(source.seed, epoch, samples.ids[rows], samples.copies[rows])
        flat = pixels.reshape(-1, *pixels.shape[2:])
        for number, operation in enumerate(view.operations):
            own = operation.keys(keys)
            if isinstance(operation.transform, PerSample):
                self._call(batch, rows, view, operation, pixels, own, failures)
                return
            if isinstance(operation.transform, Normalize):
                if not self._layout.deferred:
                    out = batch.images[view.name][rows] if view.function is None else None
                    with self._counters.busy(operation.name, len(pixels)):
                        pixels = operation.transform.apply(pixels, out=out)
                    flat = pixels.reshape(-1, *pixels.shape[2:])
                continue
            with self._counters.busy(operation.name, len(pixels)):
                params = operation.transform.draw(own.reshape(-1), *view.geometry.size)
                if self._layout.deferred:
                    drawn = {name: values.reshape(*own.shape, *values.shape[1:]) for name, values in params.items()}
                    batch.params.append((view.name, number, rows, drawn))
                else:
                    operation.transform.apply(flat, params)

    def _call(
        self,
        batch: UnfinishedBatch,
        rows: slice,
        view: View,
        operation: Operation,
        pixels: NDArray[Any],
        keys: NDArray[np.uint64],
        failures: dict[int, str],
    ) -> None:
        """Call a user's function for each view of each sample."""
        function = operation.transform
        assert isinstance(function, PerSample)
        with self._counters.busy(operation.name, len(pixels)):
            for offset in range(len(pixels)):
                if offset in failures:
                    continue
                row = rows.start + offset
                try:
                    results = [
                        function(pixels[offset, number], int(keys[offset, number])) for number in range(view.count)
                    ]
                except TransformError as error:
                    raise error.at(f"sample {batch.ids[row]} ({batch.keys[row]!r})") from error.__cause__
                batch.results[view.name][row] = results

    @staticmethod
    def _fill_values(
        batch: UnfinishedBatch,
        rows: slice,
        source: Source,
        epoch: int,
        ids: NDArray[np.int64],
        copies: NDArray[np.int64],
    ) -> None:
        """Read the values of fields, and pass them through the user's functions."""
        for name, kind in source.fields.types.items():
            values = read_values(source.reader, kind, ids, name)
            if (function := source.fields.functions.get(name)) is not None:
                keys = draw(sample_keys(source.seed, epoch, ids, copies), derive_key(f"field.{name}"))
                values = apply_field(function, values, keys.tolist())
            batch.values[name][rows] = values


def _whole_window(table: Rows, offset: int) -> Windows:
    """Return the window that is a whole stored image."""
    size = (int(table.widths[offset]), int(table.heights[offset]))
    return Windows(
        sizes=np.array([size], np.int32),
        boxes=np.array([[(0.0, 0.0, max(1, size[0]), max(1, size[1]))]], np.float64),
        flips=np.zeros((1, 1), np.bool_),
        clipped=True,
        interpolation="nearest",  # nothing is resampled
    )


def _mapped(labels: NDArray[np.int64], table: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return labels in the numbers of a mixture."""
    return labels if table is None else np.where(labels >= 0, table[np.maximum(labels, 0)], labels)
