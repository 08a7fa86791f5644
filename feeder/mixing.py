"""`feeder.mix`: batches from several datasets, in fixed proportions.

Which sample of which dataset stands where is `feeder.mixture`'s business, and a pure function. Here, the datasets are
held together: what each of them was told about order, transforms and fields it keeps; what must be one, the mixture
checks.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from feeder.arguments import checked_integer, one_of
from feeder.batches import Batch, BatchDataset
from feeder.dataset import DEFAULT_SEED, ImageDataset, checked_seed
from feeder.delivery import Delivery
from feeder.description import describe
from feeder.errors import ConfigError
from feeder.layout import Source
from feeder.mixture import Mixture, MixtureSettings, SourceSettings, integer_weights
from feeder.samples import Samples
from feeder.state import State

Labels = Literal["same", "own", "union"]

_REMEDY = "give all datasets the same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How much of one dataset a mixture has handed out.

    Attributes:
        samples: how many, copies included.
        epochs: how many of the dataset's own epochs these are.
    """

    samples: int
    epochs: float


def mix(
    datasets: Sequence[tuple[ImageDataset, float]],
    *,
    batch_size: int | None = None,
    global_batch_size: int | None = None,
    seed: int | None = None,
    length: int | None = None,
    names: Sequence[str] | None = None,
    labels: Labels = "same",
) -> "MixedDataset":
    """Return a dataset whose batches hold samples of several datasets, in proportion to weights.

    A mixture is used as an `ImageDataset` is, and resumes as exactly, at any world size, batch and number of workers.
    In every run of as many positions as the weights sum up to, each dataset has exactly its weight. Each dataset runs
    through its own epochs, with its own shuffle, selection and transforms, whatever the others do: all of its samples
    come up once before one comes up again.

    Batches have the entries of `ImageDataset`'s, and ``source``, int64 (B,), the number of the dataset; ``id`` counts
    in that dataset.

    Args:
        datasets: (dataset, weight) each. Weights are positive numbers; they become integers in lowest terms, exactly
            where these sum up to 65,536 at most, else with an error below 0.0001 of the whole: ``print`` shows them.
        batch_size: samples of a batch of one rank.
        global_batch_size: samples of a step of all ranks together. Without either, what the datasets were given counts,
            and must be one; with one of the two, it is ignored. Rank, threads, engine, ``on_error`` and the like are
            those of the datasets, too, and must be one.
        seed: of the mixture, and of datasets that were given none; None is 0, or the seed of a loaded state.
        length: positions of an epoch of the mixture; None for as many samples as the datasets have together. It only
            says when an epoch ends: none of a dataset's own epochs is cut short, but for what training drops at the end
            of an epoch that is no multiple of the global batch.
        names: what the datasets are called; None for the last parts of their paths.
        labels: "same" asks that all datasets have the same classes; "union" numbers classes by name, those of the
            first dataset first; "own" leaves each dataset its own numbers, which ``source`` tells apart.

    Raises:
        ConfigError: the datasets do not fit together, or an argument cannot work.
    """
    parts = _checked_parts(datasets)
    return MixedDataset(
        tuple(dataset for dataset, _ in parts),
        weights=tuple(weight for _, weight in parts),
        names=_checked_names([dataset for dataset, _ in parts], names),
        batch_size=batch_size,
        global_batch_size=global_batch_size,
        seed=checked_seed(seed),
        length=length,
        labels=labels,
    )


class MixedDataset(BatchDataset[MixtureSettings]):
    """What `mix` returns, where its arguments are explained.

    Attributes:
        datasets: in order of their numbers.
        names: what they are called.
        weights: what was asked for.
    """

    def __init__(
        self,
        datasets: tuple[ImageDataset, ...],
        *,
        weights: tuple[float, ...],
        names: tuple[str, ...],
        batch_size: int | None,
        global_batch_size: int | None,
        seed: int | None,
        length: int | None,
        labels: Labels,
    ) -> None:
        self.datasets, self.names, self.weights = datasets, names, weights
        self._seed = seed
        self._integer_weights = integer_weights(weights)
        engine = _agreed("engine", [dataset.engine for dataset in datasets], names)
        super().__init__(_common_delivery(datasets, names, batch_size, global_batch_size), engine)
        self._classes, self._label_tables = _common_labels(datasets, names, labels)
        orders = [dataset._requested_settings(1) for dataset in datasets]
        # neither seed nor shuffle changes how long a dataset's own epoch is
        self._own_lengths = tuple(
            dataset._make_plan(order).num_positions for dataset, order in zip(datasets, orders, strict=True)
        )
        for name, positions in zip(names, self._own_lengths, strict=True):
            if positions == 0:
                raise ConfigError(f"{name} has no samples to mix; leave it out")
        self._length = sum(self._own_lengths) if length is None else checked_integer("length", length, least=1)
        self._check_outputs()

    @property
    def digest(self) -> str:
        """Digest of the digests of the datasets."""
        return self._requested_settings(1).digest

    @property
    def name(self) -> str:
        """The names of the datasets."""
        return f"the mixture of {' and '.join(self.names)}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in order of their labels; none with ``labels="own"``."""
        return self._classes

    @property
    def num_samples(self) -> int:
        """The number of samples of all datasets together."""
        return sum(dataset.num_samples for dataset in self.datasets)

    def counts(self, state: Any = None) -> dict[str, Seen]:
        """Return how much of each dataset stands before a state, by name; computed, not counted.

        Positions that a training epoch drops at its end stand before the next epoch like all others.

        Args:
            state: what `state_dict` returned or a batch holds as ``state``; None for the current one.

        Raises:
            StateError: the state is that of another mixture.
        """
        loaded = State.from_json(self.state_dict() if state is None else state)
        plan = self._make_plan(self._loaded(loaded, self.global_batch()))
        return {
            name: Seen(samples=samples, epochs=samples / positions)
            for name, samples, positions in zip(
                self.names, plan.counts(loaded.epoch, loaded.position), self._own_lengths, strict=True
            )
        }

    def samples(self) -> Samples:
        """Return an iterable of single samples, as `ImageDataset.samples` does."""
        return Samples(self)

    def set_transform(self, transform: Any, *, views: int = 1) -> None:
        """Give the iterations that start from now on other transforms, the same for all datasets.

        As with `ImageDataset.set_transform`, workers that are kept from epoch to epoch do not see it.
        """
        before = [dataset._program for dataset in self.datasets]
        try:
            for dataset in self.datasets:
                dataset.set_transform(transform, views=views)
            self._check_outputs()
        except ConfigError:
            for dataset, program in zip(self.datasets, before, strict=True):
                dataset._program = program
            raise
        self._pipelines = {}  # an iteration under way keeps the one that it has

    def close(self) -> None:
        """Stop this process's decode threads and release open files; iterating again opens them anew."""
        super().close()
        for dataset in self.datasets:
            dataset.close()

    def __repr__(self) -> str:
        total = sum(self._integer_weights)
        parts = [
            f"{name}: {weight} of {total} ({100 * weight / total:.4g} %; weight {asked!r})"
            for name, weight, asked in zip(self.names, self._integer_weights, self.weights, strict=True)
        ]
        return f"mix({', '.join(parts)})"

    def __str__(self) -> str:
        """Return in words what the datasets give, in which proportions, what runs where, and what it costs."""
        sources = self._sources(self._requested_settings(1))
        return f"{self!r}\n{describe(self, self.num_samples, dict(zip(self.names, sources, strict=True)))}"

    def _requested_settings(self, global_batch: int) -> MixtureSettings:
        seed = DEFAULT_SEED if self._seed is None else self._seed
        return self._settings_with(seed, [seed] * len(self.datasets), global_batch)

    def _settings_with(self, seed: int, own_seeds: Sequence[int], global_batch: int) -> MixtureSettings:
        """Return what the arguments ask for: a mixture with a seed, and datasets with these if they have none."""
        total = sum(self._integer_weights)
        sources = (
            SourceSettings(
                name=name,
                dataset=dataset.digest,
                weight=weight,
                # the default number of lanes is that for the dataset's part of a step
                order=dataset._settings_with(own_seed, max(1, global_batch * weight // total)),
            )
            for dataset, name, weight, own_seed in zip(
                self.datasets, self.names, self._integer_weights, own_seeds, strict=True
            )
        )
        return MixtureSettings(seed=seed, length=self._length, sources=tuple(sources))

    def _loaded(self, state: State, global_batch: int) -> MixtureSettings:
        asked = self._requested_settings(global_batch)
        is_open = self._seed is None
        if is_open and isinstance(state.order, MixtureSettings) and state.order.mixed == asked.mixed:
            own_seeds = [source.order.seed for source in state.order.sources]
            asked = self._settings_with(state.order.seed, own_seeds, global_batch)
        unset_of_sources = [dataset._unset_settings() - {"seed"} for dataset in self.datasets]
        return state.mixture_for(asked, (), unset_of_sources)

    def _make_plan(self, settings: MixtureSettings) -> Mixture:
        orders = [dataset._make_plan(of.order) for dataset, of in zip(self.datasets, settings.sources, strict=True)]
        return Mixture(orders, [of.weight for of in settings.sources], settings.seed, settings.length)

    def _sources(self, settings: MixtureSettings) -> tuple[Source, ...]:
        return tuple(
            dataclasses.replace(dataset._sources(of.order)[0], labels=labels)
            for dataset, of, labels in zip(self.datasets, settings.sources, self._label_tables, strict=True)
        )

    def _with_state(self, batch: Batch, settings: MixtureSettings, global_batch: int) -> Batch:
        batch.setdefault("source", np.zeros(len(batch["id"]), np.int64))  # a mixture of one dataset is one, too
        return super()._with_state(batch, settings, global_batch)

    def _check_outputs(self) -> None:
        """Refuse datasets whose samples do not fit into one batch."""
        sources = self._sources(self._requested_settings(1))
        outputs = [_output(source) for source in sources]
        for name, output in zip(self.names, outputs, strict=True):
            if output != outputs[0]:
                raise ConfigError(
                    f"{self.names[0]} gives {outputs[0]}, and {name} gives {output}, which cannot be one batch; give"
                    " both transforms of one output size and type, and the same fields"
                )
        views = () if sources[0].program is None else sources[0].program.views
        kinds = [type(view.mixer).__name__ for view in views if view.mixer is not None]
        if kinds and len({dataset.classes for dataset in self.datasets}) > 1 and not self._classes:
            raise ConfigError(
                f"{kinds[0]} blends the classes of a batch, and with labels='own' one number means different classes;"
                " give labels='union'"
            )


def _output(source: Source) -> str:
    """Return in words what a dataset puts into batches."""
    parts = ["encoded images"] if source.program is None else []
    for view in () if source.program is None else source.program.views:
        size = "" if view.geometry is None else f" of {view.geometry.size[0]} x {view.geometry.size[1]}"
        kind = np.dtype(view.dtype).name if view.function is None else "put through a function"
        views = "" if view.count == 1 else f" in {view.count} views"
        mixed = "" if view.mixer is None else f" mixed by {view.mixer}"
        parts.append(f"{view.name}{size} {kind}{views}{mixed}")
    fields = source.fields
    parts += [f"{name} ({kind})" for name, kind in sorted(fields.types.items()) if name not in fields.functions]
    parts += [f"{name} (a mask)" for name in sorted(fields.masks)]
    parts += [f"{name} (put through a function)" for name in sorted(fields.functions)]
    return ", ".join(parts)


def _checked_parts(datasets: Any) -> list[tuple[ImageDataset, float]]:
    """Return (dataset, weight) of each part of a mixture."""
    try:
        parts = [tuple(part) for part in datasets]
    except TypeError:
        parts = []
    if not parts or any(len(part) != 2 for part in parts):
        raise ConfigError(
            f"mix got {datasets!r}; give a list of (dataset, weight), such as [(photos, 0.7), (art, 0.3)]"
        )
    for dataset, _ in parts:
        if not isinstance(dataset, ImageDataset):
            raise ConfigError(
                f"mix got {type(dataset).__name__} as a dataset; give ImageDatasets, and of a mixture its parts"
            )
    return [(dataset, weight) for dataset, weight in parts]


def _checked_names(datasets: Sequence[ImageDataset], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of datasets: those given, else the last parts of their paths, numbered where they recur."""
    if names is None:
        found: list[str] = []
        for dataset in datasets:
            name = dataset.name.rstrip("/").rpartition("/")[2] or dataset.name
            recurs = sum(1 for other in found if other == name or other.startswith(f"{name}-"))
            found.append(f"{name}-{recurs + 1}" if name in found else name)
        return tuple(found)
    given = () if isinstance(names, str) else tuple(names)
    if len(given) != len(datasets) or len(set(given)) < len(given) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"names is {names!r}; give {len(datasets)} different names, one for each dataset")
    return given


def _agreed(what: str, values: Sequence[Any], names: Sequence[str], remedy: str = _REMEDY) -> Any:
    """Return a value that all datasets have in common."""
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise ConfigError(f"{what} is {values[0]!r} in {names[0]} and {value!r} in {name}; {remedy}")
    return values[0]


def _common_delivery(
    datasets: Sequence[ImageDataset], names: Sequence[str], batch_size: int | None, global_batch_size: int | None
) -> Delivery:
    """Return how a mixture is handed over: as its datasets, but for batch sizes that it is given itself."""
    chosen = {"batch_size": batch_size, "global_batch_size": global_batch_size}
    given = any(size is not None for size in chosen.values())
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Delivery):
        if field.name in chosen and given:
            values[field.name] = chosen[field.name]
            continue
        own = [getattr(dataset._delivery, field.name) for dataset in datasets]
        remedy = f"give mix({field.name}=), or all datasets the same" if field.name in chosen else _REMEDY
        values[field.name] = _agreed(field.name, own, names, remedy)
    return Delivery(**values)


def _common_labels(
    datasets: Sequence[ImageDataset], names: Sequence[str], labels: Labels
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the class names of a mixture, and by dataset the table from its labels to the mixture's, or None."""
    one_of("labels", labels, ("same", "own", "union"))
    unchanged = (None,) * len(datasets)
    first = datasets[0].classes
    if all(dataset.classes == first for dataset in datasets):
        return (() if labels == "own" else first), unchanged
    if labels == "own":
        return (), unchanged
    if labels == "same":
        name, classes = next(
            (name, dataset.classes) for name, dataset in zip(names, datasets, strict=True) if dataset.classes != first
        )
        raise ConfigError(
            f"{names[0]} has {_summary(first)} and {name} has {_summary(classes)}, so that labels would mean different"
            " things; give labels='union' to number classes by name over all datasets, or labels='own' to keep each"
            " dataset's numbers"
        )
    for name, dataset in zip(names, datasets, strict=True):
        if not dataset.classes and "label" in dataset.manifest.fields:
            raise ConfigError(
                f"{name} has labels but no names of classes, by which labels='union' could number them; give"
                " labels='own'"
            )
    union = tuple(dict.fromkeys(name for dataset in datasets for name in dataset.classes))
    numbers = {name: number for number, name in enumerate(union)}
    tables = tuple(
        np.array([numbers[name] for name in dataset.classes], np.int64) if dataset.classes else None
        for dataset in datasets
    )
    return union, tables


def _summary(classes: tuple[str, ...]) -> str:
    """Return how many classes there are, and the first of them."""
    if not classes:
        return "no classes"
    shown = ", ".join(classes[:3])
    return f"{len(classes)} classes ({shown}{', …' if len(classes) > 3 else ''})"
