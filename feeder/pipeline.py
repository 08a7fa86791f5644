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

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from feeder.audit import AuditLog
from feeder.engines import Engine
from feeder.errors import ConfigError, SampleError, StalledError, TooManyBadSamplesError
from feeder.filling import Filler
from feeder.keyed import derive_key, draw
from feeder.layout import Allocate, BadSample, Layout, Source, Step, UnfinishedBatch
from feeder.order import Plan
from feeder.stages import Counters
from feeder.threads import Threads

OnError = Literal["replace", "mask", "raise"]

STALL_LIMIT_S = 120.0  # a chunk takes milliseconds; a hung network file system or a stopped process takes for ever
CANDIDATES = 8  # stand-ins tried for a bad sample: with 10 % of a segment bad, 1 in 10**8 samples finds none
BAD_WINDOW = 10_000  # samples over which max_bad_fraction is judged
_MAX_CHUNK = 32  # samples of one task: amortises the cost of drawing windows, small enough to balance threads
_CHUNKS_PER_THREAD = 2  # at least, in a batch: keeps all threads busy to its end

_log = logging.getLogger("feeder")


class Pipeline:
    """Makes batches in this process.

    Args:
        sources: the datasets, each with its transforms.
        plan: names the stand-ins of bad samples.
        engine: makes pixels.
        on_error: what to do with bad samples, see the module.
        max_bad_fraction: more bad samples than this fraction of the last 10,000 is an error.
        threads: threads that read and decode, at least 1.
        prefetch: batches under way beyond the one that is waited for.
        audit: a file to which a line is added for each bad sample, or None.
        counters: where stages are counted.
        allocate: gives the memory of images.
        pixels_on_device: see `feeder.layout.Layout`.
    """

    def __init__(
        self,
        *,
        sources: tuple[Source, ...],
        plan: Plan,
        engine: Engine,
        on_error: OnError,
        max_bad_fraction: float,
        threads: int,
        prefetch: int = 2,
        audit: AuditLog | None = None,
        counters: Counters | None = None,
        allocate: Allocate = np.empty,
        pixels_on_device: bool = False,
    ) -> None:
        self.counters = Counters() if counters is None else counters
        self._sources = sources
        self._plan = plan
        self._layout = Layout(sources, allocate=allocate, pixels_on_device=pixels_on_device)
        self._filler = Filler(sources, engine, self.counters, self._layout)
        self._on_error = on_error
        self._max_bad = round(max_bad_fraction * BAD_WINDOW)  # int() would make 2 of 0.0003
        self._threads = threads
        self._prefetch = prefetch
        self._audit = audit
        self._pool = Threads(threads, "feeder-decode")
        self._pid = os.getpid()
        self._logged: set[tuple[int, int]] = set()
        self._seen = 0
        self._bad_at: deque[int] = deque()

    @property
    def usable(self) -> bool:
        """Whether this process is the one that made the pipeline: threads do not survive a fork."""
        return self._pid == os.getpid()

    def batches(self, steps: Iterable[Step]) -> Iterator[dict[str, Any]]:
        """Yield the batch of each step, in order."""
        pending: deque[_Pending] = deque()
        try:
            for step in steps:
                pending.append(self._start(step))
                if len(pending) > self._prefetch:
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())
        finally:
            if self.usable:  # in a fork a thread that is not there may hold what cancelling needs
                for waiting in pending:
                    waiting.cancel()

    def batch(self, step: Step, *, noted: bool = True) -> dict[str, Any]:
        """Return the batch of one step that was asked for by itself, which does not count as streamed.

        Args:
            step: says which samples.
            noted: whether bad samples are logged, in the audit log, too.
        """
        pending = self._start(step)
        self._await(pending)
        if noted:
            self._note(pending.batch)
        return self._layout.finish(pending.batch)

    def close(self) -> None:
        """Stop the threads, once they have finished what they are at."""
        self._pool.close()

    def _start(self, step: Step) -> "_Pending":
        """Lay out a batch and hand its chunks to the pool."""
        batch = self._layout.lay_out(step)
        count = int(np.count_nonzero(batch.valid))
        length = max(1, min(_MAX_CHUNK, -(-count // (_CHUNKS_PER_THREAD * self._threads))))
        chunks = [self._submit(batch, slice(start, min(count, start + length))) for start in range(0, count, length)]
        return _Pending(batch, chunks)

    def _submit(self, batch: UnfinishedBatch, rows: slice) -> Future[None]:
        """Hand rows of a batch to the pool."""
        try:
            return self._pool.submit(self._fill, batch, rows)
        except RuntimeError as error:
            raise ConfigError("the dataset was closed while it was iterated over; iterate over it anew") from error

    def _finish(self, pending: "_Pending") -> dict[str, Any]:
        """Wait for a batch's chunks, and judge its bad samples."""
        self._await(pending)
        self._judge(pending.batch, self._note(pending.batch))
        return self._layout.finish(pending.batch)

    def _await(self, pending: "_Pending") -> None:
        """Wait for a batch's chunks; raise what one raised."""
        if not self.usable:
            raise ConfigError("this iteration began before the process was forked; begin another one here")
        try:
            for chunk in pending.chunks:
                _wait(chunk, pending.batch.step)
        except BaseException:
            pending.cancel()
            raise

    def _fill(self, batch: UnfinishedBatch, rows: slice) -> None:
        """Read and decode some rows of a batch; runs in a thread."""
        for run, source, epoch in batch.step.runs(rows):
            ids, copies = batch.ids[run], batch.step.samples.copies[run]
            failures = self._filler.fill(batch, run, source, epoch, ids, copies)
            for offset, reason in sorted(failures.items()):
                self._handle_bad(batch, run.start + offset, source, epoch, reason)

    def _handle_bad(self, batch: UnfinishedBatch, row: int, source: int, epoch: int, reason: str) -> None:
        """Apply the policy to a bad sample."""
        sample, key = int(batch.ids[row]), batch.keys[row]
        name = f"sample {sample} ({key!r})"
        if self._on_error == "raise":
            raise SampleError(f"{name} {reason}; on_error='replace' would put another in its place")
        bad = BadSample(row=row, source=source, id=sample, key=key, reason=reason)
        if self._on_error == "mask":
            self._layout.mask_row(batch, row)
            batch.bad.append(bad)
            return
        one = slice(row, row + 1)
        numbers = draw(derive_key("replace", self._sources[source].seed, epoch, sample), np.arange(2 * CANDIDATES))
        for number, copy_number in zip(numbers[:CANDIDATES], numbers[CANDIDATES:] >> np.uint64(1), strict=True):
            candidate = self._plan.stand_in(source, sample, int(number))
            # a copy number of its own, so that the stand-in's crop is not the one it has at its own position
            copies = np.array([copy_number], dtype=np.int64)
            if not self._filler.fill(batch, one, source, epoch, np.array([candidate]), copies):
                batch.bad.append(dataclasses.replace(bad, stand_in=(candidate, batch.keys[row])))
                return
        raise SampleError(
            f"{name} {reason}; nor can {CANDIDATES} others of its shard be decoded, one of which would stand in for it:"
            " run 'feeder verify DATASET --level deep'"
        )

    def _note(self, batch: UnfinishedBatch) -> str:
        """Log a batch's bad samples; return what is said of the last."""
        step, sentence = batch.step, ""
        for bad in sorted(batch.bad, key=lambda bad: (bad.source, bad.id, bad.row)):
            outcome = "it is masked"
            if bad.stand_in is not None:
                outcome = f"sample {bad.stand_in[0]} ({bad.stand_in[1]!r}) stands in"
            sentence = f"sample {bad.id} ({bad.key!r}) {bad.reason}; {outcome}"
            if self._audit is not None:
                self._audit.add(self._sources[bad.source].reader.url, step.epoch, step.position, bad)
            if (bad.source, bad.id) not in self._logged:
                self._logged.add((bad.source, bad.id))
                _log.warning("epoch %d, position %d: %s", step.epoch, step.position, sentence)
        return sentence

    def _judge(self, batch: UnfinishedBatch, sentence: str) -> None:
        """Raise when there are too many bad samples; ``sentence`` is about the last."""
        self._bad_at.extend([self._seen] * len(batch.bad))
        self._seen += len(batch.ids)
        while self._bad_at and self._bad_at[0] <= self._seen - BAD_WINDOW:
            self._bad_at.popleft()
        if batch.bad and len(self._bad_at) > self._max_bad:
            raise TooManyBadSamplesError(
                f"{len(self._bad_at)} of the last {min(self._seen, BAD_WINDOW)} samples cannot be decoded, and"
                f" max_bad_fraction allows {self._max_bad} of {BAD_WINDOW}; the last: {sentence}; run"
                " 'feeder verify DATASET --level deep' to find them all"
            )


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch under way, and the tasks that fill it."""

    batch: UnfinishedBatch
    chunks: list[Future[None]]

    def cancel(self) -> None:
        """Cancel what has not started."""
        for chunk in self.chunks:
            chunk.cancel()


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
