"""`BatchDataset`: iterating over whole batches, at any world size, with a state; what all datasets of ours share."""

import copy
import functools
import logging
import multiprocessing.context
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from feeder import tensors
from feeder.arguments import as_integer, checked_integer
from feeder.audit import AuditLog
from feeder.delivery import Delivery
from feeder.engines import PIXEL_CONTRACT, Engine, open_engine
from feeder.epochs import EpochCounter
from feeder.errors import ConfigError, StateError
from feeder.layout import MIXER, Allocate, Source, Step
from feeder.mixture import MixtureSettings
from feeder.order import COUNT_LIMIT, Plan
from feeder.order_settings import OrderSettings
from feeder.pipeline import Pipeline
from feeder.placement import Placement, local_world_size
from feeder.program import OURS, Program
from feeder.resources import usable_cores
from feeder.stages import Counters
from feeder.state import State

Batch = dict[str, Any]
Settings = TypeVar("Settings", OrderSettings, MixtureSettings)

_MAX_BATCH = 1 << 20  # samples of a rank's batch: more is a slip, and its padding alone would fill the memory

_log = logging.getLogger("feeder")


class BatchDataset(tensors.IterableDataset[Batch], Generic[Settings]):
    """Whole batches in an order that is a pure function; `feeder.ImageDataset` and `feeder.mix` make such datasets.

    A subclass says which plan its settings give, and which sources it streams. Iterating yields the next epoch each
    time, whether or not the one before was finished; `set_epoch` chooses another.

    Args:
        delivery: how batches are handed over.
        engine: "auto", or the name of an engine.
    """

    def __init__(self, delivery: Delivery, engine: str) -> None:
        super().__init__()
        self._delivery = delivery
        self._engine: Engine = open_engine(engine)
        self._epochs = EpochCounter()
        self._counters = Counters()
        self._loaded_settings: Settings | None = None  # of a state; without one, arguments and global batch decide
        self._plan: tuple[Settings, Plan] | None = None
        self._pipelines: dict[tuple[Allocate, bool], Pipeline] = {}
        self._state: dict[str, Any] | None = None
        self._share: tuple[int, int] | None = None  # where this worker process goes on, see `_load_share`

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_pipelines"] = {}
        if multiprocessing.context.get_spawning_popen() is not None and (group := tensors.process_group()) is not None:
            # a spawned worker has neither torch.distributed nor, perhaps, the launcher's environment
            state["_delivery"] = replace(self._delivery, rank=group["rank"], world_size=group["world_size"])
        return state

    @property
    @abstractmethod
    def digest(self) -> str:
        """Identifies the data."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the dataset is called in messages."""

    @abstractmethod
    def _requested_settings(self, global_batch: int) -> Settings:
        """Return what the arguments ask for."""

    @abstractmethod
    def _loaded(self, state: State, global_batch: int) -> Settings:
        """Return the settings of a state; StateError says why it does not belong to what the arguments ask for."""

    @abstractmethod
    def _make_plan(self, settings: Settings) -> Plan:
        """Return which samples stand where."""

    @abstractmethod
    def _sources(self, settings: Settings) -> tuple[Source, ...]:
        """Return the datasets that are streamed."""

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        return self._engine.name

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be."""
        return self._epochs.epoch

    @property
    def as_tensors(self) -> bool:
        """Whether batches hold torch's tensors."""
        return self._delivery.as_tensors

    @property
    def order_settings(self) -> Settings:
        """What determines the order, with everything that was left to "auto" filled in."""
        return self._resolved_plan()[0]

    @property
    def counters(self) -> Counters:
        """What the stages of this process's pipelines have done."""
        return self._counters

    @property
    def num_positions(self) -> int:
        """Samples of an epoch, copies included, before training drops the last part of a step."""
        return self._resolved_plan()[1].num_positions

    def global_batch(self, world_size: int | None = None) -> int:
        """Return the samples of a step of all ranks together."""
        world_size = world_size or self._placement().world_size  # ranks with a part of their own
        if self._delivery.global_batch_size is None:
            assert self._delivery.batch_size is not None
            global_batch = self._delivery.batch_size * world_size
        else:
            global_batch = self._delivery.global_batch_size
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

    def samples_per_epoch(self) -> int:
        """Return the valid samples that this rank gets in a whole epoch."""
        placement = self._placement()
        global_batch = self.global_batch(placement.world_size)
        settings, plan = self._resolved_plan(global_batch)
        steps, rest = divmod(plan.num_positions, global_batch)

        def share(samples: int) -> int:
            return (samples + placement.world_size - 1 - placement.rank) // placement.world_size

        return steps * share(global_batch) + (0 if settings.shuffle else share(rest))

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch; reaches the persistent workers of a DataLoader, too.

        It starts at the epoch's beginning, unless a loaded state stands inside that very epoch: then it goes on from
        there, so that a loop that sets every epoch may resume.
        """
        number = _checked_count("epoch", epoch)
        if number != self._epochs.epoch:
            self._epochs.set(number)
            self._state = None

    def begin_epoch(self) -> tuple[dict[str, Any], int]:
        """Count an iteration whose batches are made elsewhere; return the state that it starts from, and its steps."""
        self._steps_per_epoch(self.global_batch())
        epoch, position = self._epochs.begin(0, 0)
        self._state = None
        settings, plan = self._resolved_plan()
        return self._state_at(settings, epoch, position).to_json(), plan.steps(self.global_batch(), position)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over an epoch's batches of this rank: in a DataLoader worker, over its share of them."""
        worker, workers = tensors.worker()
        self._steps_per_epoch(self.global_batch())
        self._resolved_plan()
        if workers == 0:
            return self._iterate()
        epoch, position = self._epochs.begin(worker, workers, self._share)
        self._share = None
        self._state = self._share_state(epoch, position, worker, workers)
        return self._iterate_share(epoch, position, worker, workers)

    def _iterate(self) -> Iterator[Batch]:
        """Yield an epoch's batches as users get them, and keep the state behind the last.

        The iteration counts when its first batch is asked for, so that a state taken before is that of its start.
        """
        epoch, position = self._epochs.begin(0, 0)
        self._state = None
        for batch in self.stream(epoch=epoch, position=position):
            self._state = batch["state"]
            yield self.handed_over(batch)

    def _iterate_share(self, epoch: int, position: int, worker: int, workers: int) -> Iterator[Batch]:
        """Yield a DataLoader worker's batches, every ``workers``-th, and keep the state of the share that is left."""
        round_of_all = workers * self.global_batch()
        for batch in self.stream(epoch=epoch, position=position, worker=worker, workers=workers):
            position += round_of_all
            self._state = self._share_state(epoch, position, worker, workers)
            yield self.handed_over(batch)

    def stream(
        self,
        *,
        epoch: int,
        position: int = 0,
        worker: int = 0,
        workers: int = 1,
        allocate: Allocate = np.empty,
        pixels_on_device: bool = False,
    ) -> Generator[Batch, None, None]:
        """Return the batches of the rest of an epoch as NumPy arrays: every ``workers``-th from the ``worker``-th on.

        They have entries of our own, which `handed_over` takes out.

        Args:
            epoch, position: where to start.
            worker, workers: which share of the steps.
            allocate: gives the memory of images, of a shape and type.
            pixels_on_device: leave operations on pixels to the caller, see `feeder.layout.Layout`.
        """
        placement = self._placement()
        global_batch = self.global_batch(placement.world_size)
        settings, plan = self._resolved_plan(global_batch)
        steps_left = plan.steps(global_batch, position)
        positions = range(position, position + steps_left * global_batch, global_batch)
        steps = (self._step(plan, epoch, at, placement, global_batch) for at in positions[worker::workers])
        pipeline = self._resolved_pipeline(settings, plan, workers, allocate, pixels_on_device)
        return (self._with_state(batch, settings, global_batch) for batch in pipeline.batches(steps))

    def _with_state(self, batch: Batch, settings: Settings, global_batch: int) -> Batch:
        """Return the batch with the state behind it."""
        batch["state"] = self._state_at(settings, batch["epoch"], batch["position"] + global_batch).to_json()
        return batch

    def batch(self, *, epoch: int, step: int, rank: int | None = None, world_size: int | None = None) -> Batch:
        """Return the batch that a rank gets at a step of an epoch that started at its beginning; a pure function.

        Args:
            epoch, step: from 0.
            rank, world_size: None takes this process's own.
        """
        given = rank is not None or world_size is not None
        placement = self._delivery.placement(rank, world_size) if given else self._placement()
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
        settings, plan = self._resolved_plan(global_batch)
        batch = self._resolved_pipeline(settings, plan, 1).batch(
            self._step(plan, epoch, position, placement, global_batch)
        )
        return self.handed_over(self._with_state(batch, settings, global_batch))

    def deferral(self) -> "Callable[[Batch], tensors.Deferred | None]":
        """Return what tells, of a batch of the streams that start now, what remains to be done on a device; or None.

        Transforms that are set later do not change it.
        """
        return functools.partial(_deferred, self._sources(self._resolved_plan()[0])[0].program)

    def handed_over(self, batch: Batch) -> Batch:
        """Return a batch of `stream` in the kind of arrays that users asked for, without entries of our own."""
        images = batch["_images"]
        batch = {name: value for name, value in batch.items() if name not in OURS}
        return tensors.from_arrays(batch, images) if self._delivery.as_tensors else batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last batch that this process iterated over, as JSON values.

        In a DataLoader worker it is that of the worker's share, which torchdata's StatefulDataLoader collects.

        Raises:
            StateError: the batches were made in worker processes, which run ahead of what was received.
        """
        if tensors.worker()[1] == 0 and self._epochs.in_workers:
            raise StateError(
                "the batches were made in DataLoader workers, which run ahead of your loop; save the state of the last"
                " batch you received: batch['state']"
            )
        if self._state is not None:
            return copy.deepcopy(self._state)
        return self._state_at(self.order_settings, self._epochs.epoch, self._epochs.position).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on behind the batch whose state this is, at any world size, batch and workers.

        Seed and shuffle settings that were left unset are taken from the state.

        Raises:
            StateError: the state belongs to another dataset or another order, or is damaged; the message names both.
        """
        worker, workers = tensors.worker()
        if workers:
            self._load_share(state, worker, workers)
            return
        loaded = State.from_json(state)
        settings = self._loaded(loaded, self.global_batch())
        if self._epochs.had_workers and settings != self.order_settings:
            raise StateError(
                "the state has another order than the one that DataLoader workers were started with; load it before the"
                " first iteration, or open the dataset anew"
            )
        self._warn_of_other_pixels(loaded)
        plan = self._make_plan(settings)
        if settings != self._loaded_settings:
            self._loaded_settings, self._plan, self._pipelines = settings, (settings, plan), {}
        epoch, position = loaded.epoch, loaded.position
        if plan.steps(self.global_batch(), position) == 0:
            epoch, position = epoch + 1, 0  # the state behind the last batch of an epoch
        self._epochs.set(epoch, position)
        self._state = None

    def _share_state(self, epoch: int, position: int, worker: int, workers: int) -> dict[str, Any]:
        """Return the state of a DataLoader worker's share: it goes on with its part of the steps from the position."""
        return {
            "worker": worker,
            "workers": workers,
            "global_batch": self.global_batch(),
            "rest": self._state_at(self.order_settings, epoch, position).to_json(),
        }

    def _load_share(self, state: Mapping[str, Any], worker: int, workers: int) -> None:
        """Make this DataLoader worker go on with its share, which needs what determines the shares to be the same."""
        loaded = State.from_json(state.get("rest", state))
        place = {"worker": worker, "workers": workers, "global_batch": self.global_batch()}
        differing = [
            f"{name} {state.get(name)} in the state and {here} here"
            for name, here in place.items()
            if state.get(name) != here
        ]
        if differing:
            raise StateError(
                f"the state of a DataLoader worker's share has {', '.join(differing)}; keep num_workers and the global"
                " batch, or use feeder.Loader, whose state goes on with any"
            )
        if self._loaded(loaded, self.global_batch()) != self.order_settings:
            raise StateError(
                "the state has another order than the arguments give, which the workers of later epochs will follow;"
                " give the dataset the seed and shuffle of the run that saved it"
            )
        self._warn_of_other_pixels(loaded)
        self._share, self._state = (loaded.epoch, loaded.position), None

    def _warn_of_other_pixels(self, loaded: State) -> None:
        if (loaded.engine, loaded.pixels) != (self._engine.name, PIXEL_CONTRACT):
            _log.warning(
                "the state was made with engine %s (pixel contract %s), this run has %s (%s): pixels may differ",
                *(loaded.engine, loaded.pixels, self._engine.name, PIXEL_CONTRACT),
            )

    def close(self) -> None:
        """Stop this process's decode threads and release its open files; iterating again opens them anew."""
        for pipeline in self._pipelines.values():
            if pipeline.usable:
                pipeline.close()
        self._pipelines = {}

    def _steps_per_epoch(self, global_batch: int) -> int:
        """Return the steps of a whole epoch; refuse a training epoch that would have none."""
        settings, plan = self._resolved_plan(global_batch)
        steps = plan.steps(global_batch)
        if steps == 0 and settings.shuffle:
            raise ConfigError(
                f"the global batch is {global_batch} and {self.name} has {plan.num_positions} samples; a"
                " training epoch drops the last part of a step, so it would have no step: lower batch_size, or set"
                " shuffle=False"
            )
        return steps

    def _placement(self) -> Placement:
        """Return whose part of the data this process gets, among how many."""
        return self._delivery.placement(self._delivery.rank, self._delivery.world_size)

    def _resolved_plan(self, global_batch: int | None = None) -> tuple[Settings, Plan]:
        """Return the order of a loaded state, else the one that the arguments give at a global batch."""
        settings = self._loaded_settings
        if settings is None:
            settings = self._requested_settings(global_batch or self.global_batch())
        if self._plan is None or self._plan[0] != settings:
            self._plan = settings, self._make_plan(settings)
        return self._plan

    def made(self, step: Step) -> Batch:
        """Return the batch of any samples, made in this process, as `stream` gives them but without a state.

        It stands at no place of a run, so nothing is written of bad samples.
        """
        settings, plan = self._resolved_plan()
        return self._resolved_pipeline(settings, plan, 1).batch(step, noted=False)

    def _step(self, plan: Plan, epoch: int, position: int, placement: Placement, global_batch: int) -> Step:
        samples = plan.rank_batch(epoch, position, global_batch, placement.rank, placement.world_size)
        return Step(epoch=epoch, position=position, samples=samples)

    def _resolved_pipeline(
        self,
        settings: Settings,
        plan: Plan,
        workers: int,
        allocate: Allocate = np.empty,
        pixels_on_device: bool = False,
    ) -> Pipeline:
        """Return a pipeline of this process, made on first use: threads and descriptors belong to one process.

        Of settings and plan it keeps seeds and segments, which global batch and world size do not change.
        """
        pipeline = self._pipelines.get((allocate, pixels_on_device))
        if pipeline is None or not pipeline.usable:
            delivery = self._delivery
            audit = None if delivery.audit_log is None else AuditLog(delivery.audit_log, self._placement().rank)
            pipeline = self._pipelines[allocate, pixels_on_device] = Pipeline(
                sources=self._sources(settings),
                plan=plan,
                engine=self._engine,
                on_error="mask" if delivery.on_error == "replace" and not settings.shuffle else delivery.on_error,
                max_bad_fraction=delivery.max_bad_fraction,
                threads=delivery.threads or max(1, int(usable_cores()) // local_world_size() // workers),
                audit=audit,
                counters=self._counters,
                allocate=allocate,
                pixels_on_device=pixels_on_device,
            )
        return pipeline

    def _state_at(self, settings: Settings, epoch: int, position: int) -> State:
        """Return the state from which the given position is the next."""
        return State(
            dataset=self.digest,
            order=settings,
            epoch=epoch,
            position=position,
            engine=self._engine.name,
            pixels=PIXEL_CONTRACT,
        )


def _deferred(program: Program | None, batch: Batch) -> "tensors.Deferred | None":
    """Return what of a program remains to be done to a batch; None where nothing does."""
    params = batch.get("_params")
    if params is None:
        return None
    assert program is not None  # encoded images have no operations
    views = {name: {number: part[number] for number in part if number != MIXER} for name, part in params.items()}
    mixing = next((part[MIXER] for part in params.values() if MIXER in part), None)
    return tensors.deferred(
        views=program.views, params=views, mixing=mixing, label=batch["label"], valid=batch["valid"]
    )


def _checked_count(name: str, value: Any) -> int:
    """Return an epoch or a position as Python's own integer."""
    number = as_integer(value)
    if number is None or not 0 <= number < COUNT_LIMIT:
        raise ConfigError(f"{name} is {value!r}; it must be an integer from 0 to 2**62 - 1")
    return number
