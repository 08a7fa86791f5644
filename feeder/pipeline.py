"""From positions of an epoch to batches of pixels, by a pool of threads.

What happens, and what happens when it goes wrong:

1. A batch is cut into chunks. A thread reads a chunk's encoded images, draws their windows, and decodes them into the
   batch's one array. A few batches are under way at a time, and come out in order.
2. A sample that the engine cannot decode, though its bytes are those that were written, is bad. Policy "replace" puts
   another sample of its segment in its place, chosen by (seed, epoch, id), so that the result depends on bytes alone;
   "mask" leaves zeros and ``valid`` False; "raise" raises.
3. Anything else (storage, corruption, a bug) is raised where the batch would have come out, and ends the iteration.
4. Leaving the iteration early, or by an exception, cancels the chunks that have not started; those that run finish
   unseen.
5. A chunk that takes longer than `STALL_LIMIT_S` is an error that names the stage, never a hang; nor does its thread
   keep the process from ending.

If the code disagrees with these lines, the code is wrong.
"""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feeder.augment import Geometry
from feeder.engines import Engine
from feeder.errors import ConfigError, SampleError, StalledError, TooManyBadSamplesError
from feeder.keyed import derive_key, draw
from feeder.order import Order, RankBatch
from feeder.shards.reading.rows import Reader
from feeder.threads import Threads

OnError = Literal["replace", "mask", "raise"]

STALL_LIMIT_S = 120.0  # a chunk takes milliseconds; a hung network file system or a stopped process takes for ever
CANDIDATES = 8  # stand-ins tried for a bad sample: with 10 % of a segment bad, 1 in 10**8 samples finds none
BAD_WINDOW = 10_000  # samples over which max_bad_fraction is judged
PADDING_LABEL = -100  # torch's cross_entropy leaves it out by default (ignore_index)
_MAX_CHUNK = 32  # samples of one task: amortises the cost of drawing windows, small enough to balance threads
_CHUNKS_PER_THREAD = 2  # at least, in a batch: keeps all threads busy to its end

_log = logging.getLogger("feeder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Which samples a batch holds, and where it stands."""

    epoch: int
    position: int
    samples: RankBatch


@dataclass(slots=True)
class _Batch:
    """A batch while it is filled in; rows of the arrays belong to the chunk that fills them."""

    step: Step
    image: NDArray[Any]
    label: NDArray[np.int64]
    ids: NDArray[np.int64]
    keys: list[str]
    valid: NDArray[np.bool_]
    crop: NDArray[np.float32]
    flip: NDArray[np.bool_]
    size: NDArray[np.int32]
    bad: list[tuple[int, str]] = field(default_factory=list)  # sample id, what was done about it
    chunks: list[Future[None]] = field(default_factory=list)

    def to_dict(self, views: int) -> dict[str, Any]:
        """Return the batch as users see it; the axis of views is dropped when there is one view."""
        one = views == 1
        return {
            "image": self.image[:, 0] if one else self.image,
            "label": self.label,
            "id": self.ids,
            "key": self.keys,
            "valid": self.valid,
            "crop": self.crop[:, 0] if one else self.crop,
            "flip": self.flip[:, 0] if one else self.flip,
            "size": self.size,
            "epoch": self.step.epoch,
            "position": self.step.position,
        }


class Pipeline:
    """Makes batches in this process.

    Args:
        source: where encoded images come from.
        order: names the stand-ins of bad samples.
        geometry: the transforms.
        engine: makes pixels.
        on_error: what to do with bad samples, see the module.
        max_bad_fraction: more bad samples than this fraction of the last 10,000 is an error.
        threads: threads that read and decode, at least 1.
        prefetch: batches under way beyond the one that is waited for.
    """

    def __init__(
        self,
        *,
        source: Reader,
        order: Order,
        geometry: Geometry,
        engine: Engine,
        on_error: OnError,
        max_bad_fraction: float,
        threads: int,
        prefetch: int = 2,
    ) -> None:
        self._source = source
        self._order = order
        self._geometry = geometry
        self._engine = engine
        self._on_error = on_error
        self._max_bad = round(max_bad_fraction * BAD_WINDOW)  # int() would make 2 of 0.0003
        self._threads = threads
        self._prefetch = prefetch
        self._pool = Threads(threads, "feeder-decode")
        self._pid = os.getpid()
        self._logged: set[int] = set()
        self._seen = 0
        self._bad_at: deque[int] = deque()

    @property
    def usable(self) -> bool:
        """Whether this process is the one that made the pipeline: threads do not survive a fork."""
        return self._pid == os.getpid()

    def batches(self, steps: Iterable[Step]) -> Iterator[dict[str, Any]]:
        """Yield the batch of each step, in order."""
        pending: deque[_Batch] = deque()
        try:
            for step in steps:
                pending.append(self._start(step))
                if len(pending) > self._prefetch:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:
            for batch in pending:
                for chunk in batch.chunks:
                    chunk.cancel()

    def batch(self, step: Step) -> dict[str, Any]:
        """Return the batch of one step."""
        return self._finish(self._start(step))

    def close(self) -> None:
        """Stop the threads, once they have finished what they are at."""
        self._pool.close()

    def _start(self, step: Step) -> _Batch:
        """Lay out a batch and hand its chunks to the pool."""
        size, views = len(step.samples.ids), self._geometry.views
        batch = _Batch(
            step=step,
            image=self._empty_images(size),
            label=np.full(size, PADDING_LABEL, np.int64),
            ids=step.samples.ids.copy(),
            keys=[""] * size,
            valid=step.samples.valid.copy(),
            crop=np.zeros((size, views, 4), np.float32),
            flip=np.zeros((size, views), np.bool_),
            size=np.zeros((size, 2), np.int32),
        )
        count = int(np.count_nonzero(batch.valid))
        batch.image[count:] = 0
        length = max(1, min(_MAX_CHUNK, -(-count // (_CHUNKS_PER_THREAD * self._threads))))
        for start in range(0, count, length):
            rows = slice(start, min(count, start + length))
            batch.chunks.append(self._submit(batch, rows))
        return batch

    def _empty_images(self, size: int) -> NDArray[Any]:
        """Return the array that a batch is decoded into."""
        height, width = self._geometry.size
        shape = (size, self._geometry.views, height, width, 3)
        try:
            return np.empty(shape, np.uint8 if self._geometry.normalize is None else np.float32)
        except (MemoryError, ValueError):
            raise ConfigError(f"there is no memory for a batch of images {shape}; lower the batch size") from None

    def _submit(self, batch: _Batch, rows: slice) -> Future[None]:
        """Hand rows of a batch to the pool."""
        try:
            return self._pool.submit(self._fill, batch, rows)
        except RuntimeError as error:
            raise ConfigError("the dataset was closed while it was iterated over; iterate over it anew") from error

    def _finish(self, batch: _Batch) -> dict[str, Any]:
        """Wait for a batch's chunks, and judge its bad samples."""
        try:
            for chunk in batch.chunks:
                _wait(chunk, batch.step)
        except BaseException:
            for chunk in batch.chunks:
                chunk.cancel()
            raise
        self._judge(batch)
        return batch.to_dict(self._geometry.views)

    def _fill(self, batch: _Batch, rows: slice) -> None:
        """Read and decode some rows of a batch; runs in a thread."""
        step = batch.step
        ids, copies = batch.ids[rows], step.samples.copies[rows]
        failures = self._decode(batch, rows, ids, copies)
        for offset, reason in sorted(failures.items()):
            self._handle_bad(batch, rows.start + offset, reason)

    def _decode(self, batch: _Batch, rows: slice, ids: NDArray[np.int64], copies: NDArray[np.int64]) -> dict[int, str]:
        """Fill rows of a batch with samples; return the reasons of those that cannot be decoded, by offset."""
        geometry = self._geometry
        table, images = self._source.read(ids)
        windows = geometry.windows(
            self._order.settings.seed, batch.step.epoch, ids, copies, table.widths, table.heights
        )
        if geometry.normalize is None:
            failures = self._engine.decode(images, windows, batch.image[rows])
        else:
            pixels = np.empty(batch.image[rows].shape, np.uint8)
            failures = self._engine.decode(images, windows, pixels)
            geometry.normalize.apply(pixels, out=batch.image[rows])
        batch.ids[rows] = ids
        batch.label[rows] = table.labels
        batch.keys[rows] = table.keys
        batch.crop[rows] = windows.boxes
        batch.flip[rows] = windows.flips
        batch.size[rows] = windows.sizes
        return failures

    def _handle_bad(self, batch: _Batch, row: int, reason: str) -> None:
        """Apply the policy to a bad sample."""
        epoch, sample = batch.step.epoch, int(batch.ids[row])
        name = f"sample {sample} ({batch.keys[row]!r})"
        if self._on_error == "raise":
            raise SampleError(f"{name} {reason}; on_error='replace' would put another in its place")
        if self._on_error == "mask":
            batch.image[row] = 0
            batch.label[row] = PADDING_LABEL
            batch.valid[row] = False
            batch.bad.append((sample, f"{name} {reason}; it is masked"))
            return
        one = slice(row, row + 1)
        numbers = draw(derive_key("replace", self._order.settings.seed, epoch, sample), np.arange(2 * CANDIDATES))
        for number, copy_number in zip(numbers[:CANDIDATES], numbers[CANDIDATES:] >> np.uint64(1), strict=True):
            candidate, _ = self._order.stand_in(sample, int(number))
            # a copy number of its own, so that the stand-in's crop is not the one it has at its own position
            if not self._decode(batch, one, np.array([candidate]), np.array([copy_number], dtype=np.int64)):
                stands_in = f"sample {candidate} ({batch.keys[row]!r}) stands in"
                batch.bad.append((sample, f"{name} {reason}; {stands_in}"))
                return
        raise SampleError(
            f"{name} {reason}; nor can {CANDIDATES} others of its shard be decoded, one of which would stand in for it:"
            " run 'feeder verify DATASET --level deep'"
        )

    def _judge(self, batch: _Batch) -> None:
        """Log a batch's bad samples, and raise when there are too many."""
        for sample, sentence in sorted(batch.bad):
            self._bad_at.append(self._seen)
            if sample not in self._logged:
                self._logged.add(sample)
                _log.warning("epoch %d, position %d: %s", batch.step.epoch, batch.step.position, sentence)
        self._seen += len(batch.ids)
        while self._bad_at and self._bad_at[0] <= self._seen - BAD_WINDOW:
            self._bad_at.popleft()
        if batch.bad and len(self._bad_at) > self._max_bad:
            raise TooManyBadSamplesError(
                f"{len(self._bad_at)} of the last {min(self._seen, BAD_WINDOW)} samples cannot be decoded, and"
                f" max_bad_fraction allows {self._max_bad} of {BAD_WINDOW}; the last: {batch.bad[-1][1]}; run"
                " 'feeder verify DATASET --level deep' to find them all"
            )


def _wait(chunk: Future[None], step: Step) -> None:
    """Wait until a chunk is done; raise what it raised."""
    try:
        chunk.result(timeout=STALL_LIMIT_S)
    except FutureTimeoutError:
        if chunk.done():
            raise  # a timeout inside the chunk, not ours
        raise StalledError(
            f"reading and decoding made no progress for {STALL_LIMIT_S:.0f} s at epoch {step.epoch}, position"
            f" {step.position}; check the storage that holds the dataset"
        ) from None
