"""`Loader`: batches made in worker processes, ahead of the training loop, and an account of where its seconds go."""

import copy
import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, Self

from feeder import tensors
from feeder.arguments import checked_integer, one_of
from feeder.errors import ConfigError, FeederError
from feeder.stalls import COMPUTE, DEVICE, WORKER, WORKER_START, LoaderStats, StallClock
from feeder.workers.local import LocalSource
from feeder.workers.pool import PoolOptions, WorkerPool
from feeder.workers.protocol import Call
from feeder.workers.serving import Streams

Batch = dict[str, Any]

# With the three batches that a worker has under way, enough for a loop that works by fits and starts: where each fourth
# step took as long as four batches, steps took 195 ms with 1, 166 with 2, 167 with 4 and 161 with 8 (decoding: 115).
PREFETCH = 2

_START_METHODS = ("fork", "spawn", "forkserver")

_log = logging.getLogger("feeder")


class Loadable(Streams, Protocol):
    """What a dataset must be able to do in the process of the loader."""

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be."""
        ...

    @property
    def as_tensors(self) -> bool:
        """Whether users get torch's tensors."""
        ...

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...

    def set_transform(self, transform: Any, *, views: int = 1) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def begin_epoch(self) -> tuple[dict[str, Any], int]:
        """Count an iteration; return the state from which it starts, and its steps."""
        ...

    def handed_over(self, batch: Batch) -> Batch:
        """Return a batch of `stream` in the kind of arrays that users asked for."""
        ...

    def deferral(self) -> "Deferral":
        """Return what tells what remains to be done on a device to a batch of the streams that start now."""
        ...


Deferral = Callable[[Batch], "tensors.Deferred | None"]


class Loader:
    """Iterates over the batches of a dataset, which worker processes make ahead of the loop.

    Each iteration is the next epoch, or the rest of the one in which a loaded state stands; the workers go on into the
    next epoch by themselves. Order and pixels are those of the dataset, whatever the number of workers::

        loader = Loader(dataset, device="cuda")
        if checkpoint:
            loader.load_state_dict(checkpoint["data"])
        for epoch in range(loader.epoch, 90):
            for batch in loader:
                step(batch["image"], batch["label"])  # checkpoint["data"] = loader.state_dict()

    Workers start with the first iteration and end with `close`, with the loader, or with the process. What is raised in
    one is raised here, in place of the batch.

    Args:
        dataset: `feeder.ImageDataset`, or what `feeder.mix` returns.
        workers: processes that make batches, each with the dataset's decode threads; 0 makes them in this process.
        prefetch: batches that are ready and wait for the loop, at most; a worker has about three more under way.
        prefetch_bytes: the most bytes that wait so, in addition; one batch always may.
        device: where batches are copied to, "cuda" or "cuda:1" or a ``torch.device``, on a stream beside the loop's
            own; "cpu" and None leave them in the host's memory.
        pixels_on_device: whether operations on pixels (colours, normalising) run there: True, False, or "auto" for
            where ``device`` is a GPU.
        start_method: of worker processes: "fork", "spawn", "forkserver", or None for the platform's default.

    Raises:
        ConfigError: arguments that cannot work.
    """

    def __init__(
        self,
        dataset: Loadable,
        *,
        workers: int = 1,
        prefetch: int = PREFETCH,
        prefetch_bytes: int | None = None,
        device: object = None,
        pixels_on_device: bool | Literal["auto"] = "auto",
        start_method: str | None = None,
    ) -> None:
        if not hasattr(dataset, "begin_epoch"):
            raise ConfigError(
                f"Loader got {type(dataset).__name__}; give a feeder.ImageDataset, or what feeder.mix returns"
            )
        self._dataset = dataset
        self._device = None if device is None else str(device)
        self._options = PoolOptions(
            workers=checked_integer("workers", workers, least=0),
            start_method=None if start_method is None else one_of("start_method", start_method, _START_METHODS),
            prefetch=checked_integer("prefetch", prefetch, least=1),
            prefetch_bytes=None
            if prefetch_bytes is None
            else checked_integer("prefetch_bytes", prefetch_bytes, least=1),
            pixels_on_device=_on_device(pixels_on_device, self._device),
        )
        if self._device is not None and not dataset.as_tensors:
            raise ConfigError(
                f"device is {self._device!r}, but the dataset gives NumPy arrays; leave device or arrays out"
            )
        self._feed: tensors.Feed | None = None
        self._clock = StallClock()
        self._source: WorkerPool | LocalSource | None = None
        self._calls: list[Call] = []  # for the dataset in the workers, before they begin next
        self._outdated = False  # the workers have transforms that no call can change: others take their place
        self._iteration = 0
        self._expected: dict[str, Any] | None = None  # the state from which the source would go on by itself
        self._state: dict[str, Any] | None = None  # behind the last batch that was handed out

    @property
    def dataset(self) -> Any:
        """The dataset; what is set on it reaches the workers only through the loader."""
        return self._dataset

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be."""
        return self._dataset.epoch

    @property
    def stats(self) -> LoaderStats:
        """Where the seconds of the last epoch went, or of the one under way so far."""
        return self._clock.stats

    def summary(self) -> str:
        """Return where the seconds of all epochs went, in a sentence."""
        return str(self._clock.total)

    def __str__(self) -> str:
        return self.summary()

    def __len__(self) -> int:
        """Return the steps of a whole epoch, the same for every rank."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of the next epoch, or of the rest of the one in which a loaded state stands.

        The iteration begins, and counts, when its first batch is asked for: who makes an iterator to see whether that
        can be done, as Lightning does, uses up no epoch.

        Raises:
            ConfigError: arguments of the dataset that cannot work in this process, or a dataset that cannot be sent to
                a worker.
        """
        self._iteration = iteration = self._iteration + 1
        self._clock.start(self._dataset.epoch)
        source, feed = self._opened()
        self._clock.note(WORKER_START)
        state, steps = self._dataset.begin_epoch()
        if state != self._expected or self._calls:
            source.begin(state, tuple(self._calls))
            self._calls.clear()
        self._expected, self._state = None, state
        try:
            yield from self._batches(source, feed, state, steps)
        except BaseException:
            if self._iteration == iteration:
                self._clock.note(COMPUTE)  # of a loop that is left early, in whatever way
            raise

    def _batches(
        self, source: WorkerPool | LocalSource, feed: "tensors.Feed", state: dict[str, Any], steps: int
    ) -> Iterator[Batch]:
        """Yield an iteration's batches, and keep the books."""
        iteration, epoch, deferral = self._iteration, int(state["epoch"]), self._dataset.deferral()
        ahead: deque[Any] = deque()  # batches on their way to the device, or the exception that came in place of one
        taken = 0
        for _ in range(steps):
            self._clock.note(COMPUTE)
            self._check_current(iteration, epoch)
            if not ahead:
                ahead.append(self._taken(source, feed, epoch, deferral))
                taken += 1
            if feed.overlaps and taken < steps and not isinstance(ahead[-1], Exception) and source.is_ready:
                ahead.append(self._taken(source, feed, epoch, deferral))
                taken += 1
            if isinstance(first := ahead.popleft(), Exception):
                self._check_current(iteration, epoch)  # another thread may have ended it while this one waited
                raise first
            started, remaining = first
            batch = feed.finish(started)
            if remaining is not None:
                batch = remaining.run(batch)
            del first, started, remaining
            self._clock.note(DEVICE)
            self._state = batch["state"]
            if taken == steps and not ahead:
                self._expected = {**state, "epoch": epoch + 1, "position": 0}
            self._clock.count_batch()
            yield batch
            del batch  # whoever asks for the next one has let go of this one, and so do we
        self._clock.note(COMPUTE)
        _log.info("%s", self._clock.stats)

    def _check_current(self, iteration: int, epoch: int) -> None:
        """Refuse to go on with an iteration that is not the last one."""
        if self._iteration != iteration:
            raise ConfigError(
                f"this iteration over epoch {epoch} was ended by a later one, by load_state_dict or by close: a Loader"
                " runs one at a time; make a second Loader to run two"
            )

    def _taken(self, source: WorkerPool | LocalSource, feed: "tensors.Feed", epoch: int, deferral: Deferral) -> Any:
        """Take a batch and start it on its way to the device; return an exception that came in its place.

        After an exception, Ctrl-C included, nobody knows what is left on the way: the workers end, and the next
        iteration starts others.
        """
        try:
            batch = source.take()
            if batch["epoch"] != epoch:
                raise FeederError(
                    f"a worker sent a batch of epoch {batch['epoch']} in epoch {epoch}; the dataset has another length"
                    " there: has its source changed?"
                )
            remaining = deferral(batch)
            return feed.start(self._dataset.handed_over(batch)), remaining
        except BaseException as error:
            self._clock.note(WORKER)
            self._drop_source()
            if isinstance(error, Exception):
                return error
            raise

    def to_tuple(self, *names: str) -> "TupleLoader":
        """Return what iterates over the same batches as tuples of some of their entries.

        Args:
            names: of the entries, as in ``for images, labels in loader.to_tuple("image", "label")``.
        """
        return TupleLoader(self, names)

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last batch that the loop received, as JSON values, whatever is ahead of it."""
        return self._dataset.state_dict() if self._state is None else copy.deepcopy(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on behind the batch whose state this is, at any world size, batch and workers.

        Raises:
            StateError: the state belongs to another dataset or another order, or is damaged; the message names both.
        """
        self._dataset.load_state_dict(dict(state))
        self._forget_place()

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch.

        It starts at the epoch's beginning, unless a loaded state stands inside that very epoch.
        """
        if epoch != self._dataset.epoch:
            self._dataset.set_epoch(epoch)
            self._state = None

    def set_transform(self, transform: Any, *, views: int = 1) -> None:
        """Give the iterations that start from now on other transforms, as `ImageDataset.set_transform` does."""
        self._dataset.set_transform(transform, views=views)
        call: Call = ("set_transform", (transform,), {"views": views})
        self._expected = None
        try:
            pickle.dumps(call)
        except Exception:  # noqa: BLE001 - a lambda, or whatever else cannot be sent to workers that run
            self._outdated = True
        else:
            if self._source is not None:
                self._calls.append(call)

    def close(self) -> None:
        """End the workers; batches that were handed out stay valid, and another iteration starts new workers."""
        self._iteration += 1
        self._drop_source()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has workers of its own."""
        return {**self.__dict__, "_source": None, "_feed": None, "_expected": None, "_calls": []}

    def _forget_place(self) -> None:
        """End the iteration under way, and the memory of what it handed out."""
        self._iteration += 1
        self._state = None

    def _opened(self) -> tuple[WorkerPool | LocalSource, "tensors.Feed"]:
        """Return what makes batches in this process, and what brings them to the device; start them if need be."""
        if self._source is not None and self._source.owner != os.getpid():
            self._source = self._feed = None  # a fork has other workers, and no GPU of its parent's
        if self._outdated:
            self._drop_source()
        if self._feed is None:
            self._feed = tensors.open_feed(self._device)
        if self._source is None:
            self._calls.clear()
            self._expected, self._outdated = None, False
            if self._options.workers:
                self._source = WorkerPool(self._dataset, self._options, self._feed.prepare, self._clock)
            else:
                self._source = LocalSource(self._dataset, self._clock, self._options.pixels_on_device)
        return self._source, self._feed

    def _drop_source(self) -> None:
        """End the workers, and wait for copies under way."""
        source, self._source = self._source, None
        self._expected = None
        if source is not None:
            source.close()
        if self._feed is not None:
            self._feed.close()


class TupleLoader:
    """A loader's batches as tuples; see `Loader.to_tuple`."""

    def __init__(self, loader: Loader, names: tuple[str, ...]) -> None:
        self._loader = loader
        self._names = names

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._tuples(iter(self._loader))

    def _tuples(self, batches: Iterator[Batch]) -> Iterator[tuple[Any, ...]]:
        for batch in batches:
            if missing := [name for name in self._names if name not in batch]:
                raise ConfigError(f"batches have no entry {missing[0]!r}; they have {', '.join(map(repr, batch))}")
            chosen = tuple(batch[name] for name in self._names)
            del batch
            yield chosen
            del chosen


def _on_device(pixels_on_device: object, device: str | None) -> bool:
    """Return whether operations on pixels are left to the device."""
    if device is not None and not isinstance(device, str):
        raise ConfigError(f"device is {device!r}; it must be None, 'cpu', 'cuda' or 'cuda:N'")
    if pixels_on_device == "auto":
        return device is not None and device.startswith("cuda")
    if not isinstance(pixels_on_device, bool):
        raise ConfigError(f"pixels_on_device is {pixels_on_device!r}; it must be True, False or 'auto'")
    if pixels_on_device and device is None:
        raise ConfigError("pixels_on_device is True and device is None; say on which device, such as device='cuda'")
    return pixels_on_device
