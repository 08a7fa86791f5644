"""`ImageDataset`: seeded, resumable batches of images, as a PyTorch ``IterableDataset`` or plain NumPy."""

import logging
import multiprocessing.context
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from feeder import tensors
from feeder.arguments import as_integer, checked_integer, one_of
from feeder.augment import Geometry, Transform, compile_transforms
from feeder.engines import PIXEL_CONTRACT, Engine, open_engine
from feeder.epochs import EpochCounter
from feeder.errors import ConfigError, StateError
from feeder.order import COUNT_LIMIT, Order, OrderSettings, RankBatch, Shuffle, resolve_settings, unset_settings
from feeder.pipeline import OnError, Pipeline, Step
from feeder.placement import Placement, local_world_size, resolve_placement
from feeder.resources import usable_cores
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.reading.opening import open_dataset
from feeder.state import State

Arrays = Literal["auto", "torch", "numpy"]
Batch = dict[str, Any]

DEFAULT_SEED = 0
_MAX_BATCH = 1 << 20  # samples of a rank's batch: more is a slip, and its padding alone would fill the memory
SEED_LIMIT = 1 << 127  # what `feeder.keyed.derive_key` takes

_log = logging.getLogger("feeder")


class ImageDataset(tensors.IterableDataset[Batch]):
    """Whole batches of decoded, augmented images, in an order that is a pure function of seed, epoch and position.

    Works in ``DataLoader(dataset, batch_size=None, num_workers=…)`` under fork, spawn and forkserver, and on its own. A
    batch is a dictionary of

    - ``image``: uint8, (B, 3, H, W) in torch's channels_last memory format, or (B, H, W, 3) as NumPy; (B, V, …) with
      V > 1 views; float32 when the transform ends with `Normalize`
    - ``label``: int64 (B,), number of the class, -1 where the dataset has no labels, -100 where not valid
    - ``id``: int64 (B,), position in manifest order; -1 where padded. ``key``: list of B names
    - ``valid``: bool (B,), False where padded (ranks get equal shapes) or masked (a bad sample in evaluation)
    - ``crop``: float32 (B, 4), the box (x0, y0, x1, y1) in pixels of the stored image; ``flip``: bool (B,), whether the
      box was mirrored; ``size``: int32 (B, 2), width and height of the stored image; with V views crop is (B, V, 4),
      flip (B, V)
    - ``epoch``, ``position``: where the batch stands; ``state``: a state to resume behind it

    Iterating yields the next epoch each time, whether or not the one before was finished; `set_epoch` chooses another.

    Args:
        source: a dataset made by ``feeder build`` or a plain folder of images; a path or fsspec URL.
        batch_size: samples of a batch of one rank.
        global_batch_size: samples of a step of all ranks together; give one of the two.
        transform: a list of transforms, such as `feeder.presets.imagenet_train`.
        seed: of order and augmentation; None is 0, or the seed of a loaded state.
        shuffle: True, a `Shuffle`, or False for evaluation: manifest order, every sample once, the last batch padded.
        views: crops of each sample in a batch.
        rank, world_size: None asks the launcher's environment when iteration starts.
        engine: "auto", or the name of an engine.
        threads: decode threads of a process; None divides the usable cores among local ranks and workers.
        on_error: what a sample that cannot be decoded does: "replace" puts another of its shard in its place, "mask"
            sets ``valid`` False, "raise" raises `SampleError`. With ``shuffle=False``, "replace" means "mask".
        max_bad_fraction: more bad samples than this fraction of the last 10,000 raises `TooManyBadSamplesError`.
        arrays: "torch" tensors, "numpy" arrays, or "auto" for torch where it is installed.

    Raises:
        ConfigError: arguments that cannot work, or contradict each other.
        ShardsError: the source is missing, or not whole.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        transform: Sequence[Transform],
        seed: int | None = None,
        shuffle: bool | Shuffle = True,
        views: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        engine: str = "auto",
        threads: int | None = None,
        on_error: OnError = "replace",
        max_bad_fraction: float = 0.001,
        arrays: Arrays = "auto",
    ) -> None:
        super().__init__()
        self._batch_size, self._global_batch_size = _checked_batch_sizes(batch_size, global_batch_size)
        self._seed = _checked_seed(seed)
        self._shuffle = shuffle
        self._rank, self._world_size = rank, world_size
        self._threads = None if threads is None else checked_integer("threads", threads, least=1)
        self._on_error: OnError = one_of("on_error", on_error, ("replace", "mask", "raise"))
        self._max_bad_fraction = max_bad_fraction
        if not isinstance(max_bad_fraction, float | int | np.floating) or not 0 <= max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {max_bad_fraction!r}; it must be a number from 0 to 1")
        if not isinstance(shuffle, bool | Shuffle):
            raise ConfigError(f"shuffle is {shuffle!r}; it must be True, False or a feeder.Shuffle")
        if rank is not None or world_size is not None:
            resolve_placement(rank, world_size)
        if arrays == "torch":
            tensors.require()
        self._as_tensors = one_of("arrays", arrays, ("auto", "torch", "numpy")) != "numpy" and tensors.AVAILABLE
        self._geometry: Geometry = compile_transforms(transform, views=views)
        self._engine: Engine = open_engine(engine)
        self._reader = open_dataset(source)
        self._epochs = EpochCounter()
        self._loaded_settings: OrderSettings | None = None  # of a state; without one, arguments and global batch decide
        self._order: Order | None = None
        self._pipeline: Pipeline | None = None
        self._state: State | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_pipeline"] = None
        if multiprocessing.context.get_spawning_popen() is not None and (group := tensors.process_group()) is not None:
            # a spawned worker has neither torch.distributed nor, perhaps, the launcher's environment
            state["_rank"], state["_world_size"] = group["rank"], group["world_size"]
        return state

    @property
    def manifest(self) -> Manifest:
        """What the dataset holds."""
        return self._reader.manifest

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in order of their labels."""
        return self.manifest.classes

    @property
    def num_samples(self) -> int:
        """The number of samples of the dataset."""
        return self.manifest.num_samples

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        return self._engine.name

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be."""
        return self._epochs.epoch

    @property
    def order_settings(self) -> OrderSettings:
        """What determines the order, with everything that was left to "auto" filled in."""
        return self._resolved_order().settings

    def global_batch(self, world_size: int | None = None) -> int:
        """Return the samples of a step of all ranks together."""
        world_size = world_size or self._placement().world_size
        if self._global_batch_size is None:
            assert self._batch_size is not None
            global_batch = self._batch_size * world_size
        else:
            global_batch = self._global_batch_size
        if global_batch > _MAX_BATCH * world_size:
            raise ConfigError(f"the batch of a rank is {global_batch // world_size} samples; at most {_MAX_BATCH} fit")
        if global_batch < world_size:
            raise ConfigError(
                f"global_batch_size is {global_batch} and there are {world_size} ranks, so that some would never get a"
                " sample; raise it to a multiple of the world size"
            )
        return global_batch

    def __len__(self) -> int:
        """Return the steps of a whole epoch, the same for every rank."""
        return self._steps_per_epoch(self.global_batch())

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch; reaches the persistent workers of a DataLoader, too.

        It starts at the epoch's beginning, unless a loaded state stands inside that very epoch: then it goes on from
        there, so that a loop that sets every epoch may resume.
        """
        number = _checked_count("epoch", epoch)
        if number != self._epochs.epoch:
            self._epochs.set(number)
            self._state = None

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over an epoch's batches of this rank: in a DataLoader worker, over its share of them."""
        worker, workers = tensors.worker()
        placement = self._placement()
        global_batch = self.global_batch(placement.world_size)
        self._steps_per_epoch(global_batch)
        order = self._resolved_order(global_batch)
        epoch, position = self._epochs.begin(worker, workers)
        return self._iterate(order, placement, global_batch, epoch, position, worker, max(1, workers))

    def _iterate(
        self,
        order: Order,
        placement: Placement,
        global_batch: int,
        epoch: int,
        position: int,
        worker: int,
        workers: int,
    ) -> Iterator[Batch]:
        """Yield every ``workers``-th batch from the ``worker``-th on."""
        positions = range(position, position + order.steps(global_batch, position) * global_batch, global_batch)
        steps = (
            Step(
                epoch=epoch,
                position=at,
                samples=order.rank_batch(epoch, at, global_batch, placement.rank, placement.world_size),
            )
            for at in positions[worker::workers]
        )
        for batch in self._resolved_pipeline(order, workers).batches(steps):
            state = self._state = self._state_behind(order, epoch, batch["position"] + global_batch)
            yield self._finished(batch, state)

    def batch(self, *, epoch: int, step: int, rank: int | None = None, world_size: int | None = None) -> Batch:
        """Return the batch that a rank gets at a step of an epoch that started at its beginning; a pure function.

        Args:
            epoch, step: from 0.
            rank, world_size: None takes this process's own.
        """
        placement = self._placement() if rank is None and world_size is None else resolve_placement(rank, world_size)
        global_batch = self.global_batch(placement.world_size)
        steps = self._steps_per_epoch(global_batch)
        epoch, step = _checked_count("epoch", epoch), checked_integer("step", step)
        if not 0 <= step < steps:
            raise ConfigError(
                f"there is no step {step} of epoch {epoch}; steps count from 0 to {steps - 1} at global batch"
                f" {global_batch}"
            )
        return self.batch_at(epoch=epoch, position=step * global_batch, placement=placement)

    def batch_at(self, *, epoch: int, position: int, placement: Placement | None = None) -> Batch:
        """Return the batch that starts at a position of an epoch, such as the one that follows a state."""
        epoch, position = _checked_count("epoch", epoch), _checked_count("position", position)
        placement = placement or self._placement()
        global_batch = self.global_batch(placement.world_size)
        order = self._resolved_order(global_batch)
        samples = order.rank_batch(epoch, position, global_batch, placement.rank, placement.world_size)
        batch = self._resolved_pipeline(order, 1).batch(Step(epoch=epoch, position=position, samples=samples))
        return self._finished(batch, self._state_behind(order, epoch, position + global_batch))

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        """Return one sample as `epoch` shows it: the entries of a batch without their first axis."""
        number = as_integer(sample_id)
        if number is None:
            raise TypeError(f"the sample id is {sample_id!r}; it must be an integer")
        if not -self.num_samples <= number < self.num_samples:
            raise IndexError(f"there is no sample {number}; the dataset has {self.num_samples}")
        ids = np.array([number % self.num_samples])
        samples = RankBatch(ids=ids, copies=np.zeros(1, np.int64), valid=np.ones(1, np.bool_))
        step = Step(epoch=self.epoch, position=0, samples=samples)
        batch = self._resolved_pipeline(self._resolved_order(), 1).batch(step)
        if self._as_tensors:
            batch = tensors.from_arrays(batch)
        return {name: batch[name][0] for name in ("image", "label", "id", "key", "valid", "crop", "flip", "size")}

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last batch that this process iterated over, as JSON values.

        Raises:
            StateError: the batches were made in worker processes, which run ahead of what was received.
        """
        if self._epochs.in_workers:
            raise StateError(
                "the batches were made in DataLoader workers, which run ahead of your loop; save the state of the last"
                " batch you received: batch['state']"
            )
        if self._state is not None:
            return self._state.to_json()
        return self._state_behind(self._resolved_order(), self._epochs.epoch, self._epochs.position).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on behind the batch whose state this is, at any world size, batch and workers.

        Seed and shuffle settings that were left unset are taken from the state.

        Raises:
            StateError: the state belongs to another dataset or another order, or is damaged; the message names both.
        """
        loaded = State.from_json(state)
        digest = self.manifest.digest
        if loaded.dataset != digest:
            raise StateError(
                f"the state belongs to the dataset with digest {loaded.dataset}, but {self._reader.url} has digest"
                f" {digest}; open the dataset that the state was made with"
            )
        asked = self._requested_settings(loaded.order.seed if self._seed is None else self._seed, self.global_batch())
        unset = unset_settings(self._shuffle) | ({"seed"} if self._seed is None else set())
        settings = loaded.order_for(asked, unset)
        if self._epochs.had_workers and settings != self.order_settings:
            raise StateError(
                "the state has another order than the one that DataLoader workers were started with; load it before the"
                " first iteration, or open the dataset anew"
            )
        if (loaded.engine, loaded.pixels) != (self._engine.name, PIXEL_CONTRACT):
            _log.warning(
                "the state was made with engine %s (pixel contract %s), this run has %s (%s): pixels may differ",
                *(loaded.engine, loaded.pixels, self._engine.name, PIXEL_CONTRACT),
            )
        order = Order(self.manifest.segments.samples, settings)
        if settings != self._loaded_settings:
            self._loaded_settings, self._order, self._pipeline = settings, order, None
        epoch, position = loaded.epoch, loaded.position
        if order.steps(self.global_batch(), position) == 0:
            epoch, position = epoch + 1, 0  # the state behind the last batch of an epoch
        self._epochs.set(epoch, position)
        self._state = None

    def close(self) -> None:
        """Stop this process's decode threads and release its open files; iterating again opens them anew."""
        if self._pipeline is not None and self._pipeline.usable:
            self._pipeline.close()
        self._pipeline = None
        self._reader.close()

    def _steps_per_epoch(self, global_batch: int) -> int:
        """Return the steps of a whole epoch; refuse a training epoch that would have none."""
        order = self._resolved_order(global_batch)
        steps = order.steps(global_batch)
        if steps == 0 and order.settings.shuffle:
            raise ConfigError(
                f"the global batch is {global_batch} and {self._reader.url} has {order.num_positions} samples; a"
                " training epoch drops the last part of a step, so it would have no step: lower batch_size, or set"
                " shuffle=False"
            )
        return steps

    def _placement(self) -> Placement:
        """Return this process's rank and world size."""
        return resolve_placement(self._rank, self._world_size)

    def _requested_settings(self, seed: int, global_batch: int) -> OrderSettings:
        """Return what the arguments ask for."""
        manifest = self.manifest
        return resolve_settings(
            self._shuffle,
            seed=seed,
            segment_samples=manifest.segments.samples,
            shuffled_when_written=manifest.shuffled,
            global_batch=global_batch,
        )

    def _resolved_order(self, global_batch: int | None = None) -> Order:
        """Return the order of a loaded state, else the one that the arguments give at a global batch."""
        settings = self._loaded_settings
        if settings is None:
            seed = DEFAULT_SEED if self._seed is None else self._seed
            settings = self._requested_settings(seed, global_batch or self.global_batch())
        order = self._order
        if order is None or order.settings != settings:
            order = self._order = Order(self.manifest.segments.samples, settings)
        return order

    def _resolved_pipeline(self, order: Order, workers: int) -> Pipeline:
        """Return this process's pipeline: threads and descriptors belong to one process.

        Of the order it keeps seed and segments, which global batch and world size do not change.
        """
        if self._pipeline is None or not self._pipeline.usable:
            masks = self._on_error == "replace" and self._shuffle is False
            self._pipeline = Pipeline(
                source=self._reader,
                order=order,
                geometry=self._geometry,
                engine=self._engine,
                on_error="mask" if masks else self._on_error,
                max_bad_fraction=self._max_bad_fraction,
                threads=self._threads or max(1, int(usable_cores()) // local_world_size() // workers),
            )
        return self._pipeline

    def _state_behind(self, order: Order, epoch: int, position: int) -> State:
        """Return the state from which the given position is the next."""
        return State(
            dataset=self.manifest.digest,
            order=order.settings,
            epoch=epoch,
            position=position,
            engine=self._engine.name,
            pixels=PIXEL_CONTRACT,
        )

    def _finished(self, batch: Batch, state: State) -> Batch:
        """Complete a batch with the state behind it, in the kind of arrays that was asked for."""
        batch["state"] = state.to_json()
        return tensors.from_arrays(batch) if self._as_tensors else batch


def _checked_batch_sizes(batch_size: int | None, global_batch_size: int | None) -> tuple[int | None, int | None]:
    """Return the two sizes, of which just one is given, at least 1."""
    if (batch_size is None) == (global_batch_size is None):
        given = "both" if batch_size is not None else "neither"
        raise ConfigError(
            f"{given} of batch_size ({batch_size}, per rank) and global_batch_size ({global_batch_size}, of all ranks)"
            " is given; give exactly one"
        )
    if batch_size is not None:
        return checked_integer("batch_size", batch_size, least=1), None
    return None, checked_integer("global_batch_size", global_batch_size, least=1)


def _checked_count(name: str, value: Any) -> int:
    """Return an epoch or a position as Python's own integer."""
    number = as_integer(value)
    if number is None or not 0 <= number < COUNT_LIMIT:
        raise ConfigError(f"{name} is {value!r}; it must be an integer from 0 to 2**62 - 1")
    return number


def _checked_seed(seed: Any) -> int | None:
    """Return a seed that keys of random numbers can hold."""
    number = as_integer(seed)
    if seed is not None and (number is None or not -SEED_LIMIT <= number < SEED_LIMIT):
        raise ConfigError(f"seed is {seed!r}; it must be None or an integer from -2**127 to 2**127 - 1")
    return number
