"""What a checkpoint holds: which dataset, which order, and one integer, the position in the epoch.

The state of a mixture is the same, but its order is made of the orders of its datasets.

A state is a dictionary of JSON values, so that it goes into any checkpoint and loads with
``torch.load(weights_only=True)``. Global batch and world size are not in it: both may change at a resume.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from feeder import mixture, order_settings
from feeder.errors import StateError
from feeder.mixture import MixtureSettings, SourceSettings
from feeder.order import COUNT_LIMIT
from feeder.order_settings import OrderSettings

STATE_VERSION = 1

_SELECTING = "where, exclude, limit, sample_weights, balance"
_ARGUMENTS = {"sticky": "sticky_shards"}  # whose name is another than that of the setting


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A position in the order of a dataset, or of a mixture.

    Attributes:
        dataset: digest of the dataset; of a mixture, `MixtureSettings.digest`.
        order: settings of its order.
        epoch: from 0.
        position: the first position of the epoch that was not yet handed out.
        engine: name of the engine that made the pixels.
        pixels: version of the pixel contract that the engine follows.
    """

    dataset: str
    order: OrderSettings | MixtureSettings
    epoch: int
    position: int
    engine: str
    pixels: int

    def order_for(self, asked: OrderSettings, unset: Collection[str]) -> OrderSettings:
        """Return the order of the state, for a user who asked for an order and left some of its settings unset.

        Raises:
            StateError: what was set differs from the state, or the state is that of a mixture.
        """
        if isinstance(self.order, MixtureSettings):
            raise StateError(
                f"the state belongs to {self.order}, and this is one dataset; load it into a feeder.mix of these"
            )
        _refuse(_differences(self.order, asked, unset))
        return self.order

    def mixture_for(
        self, asked: MixtureSettings, unset: Collection[str], unset_of_sources: Sequence[Collection[str]]
    ) -> MixtureSettings:
        """Return the mixture of the state, for a user who asked for one and left some settings unset.

        Args:
            asked: what the arguments say.
            unset: which of seed and length they leave open.
            unset_of_sources: what they leave open of the order of each source.

        Raises:
            StateError: what was set differs from the state, or the state is that of one dataset.
        """
        if isinstance(self.order, OrderSettings):
            raise StateError(
                f"the state belongs to one dataset, with digest {self.dataset}, and this is {asked}; load it into that"
                " dataset alone"
            )
        if self.order.mixed != asked.mixed:
            raise StateError(
                f"the state belongs to {self.order}, and this is {asked}; mix the same datasets, with the same weights,"
                " in the same order"
            )
        differing = _differences(self.order, asked, {"sources", *unset})
        for mine, theirs, of_source in zip(self.order.sources, asked.sources, unset_of_sources, strict=True):
            differing |= {
                f"{mine.name}: {words}": settled
                for words, settled in _differences(mine.order, theirs.order, of_source).items()
            }
        _refuse(differing)
        return self.order

    def to_json(self) -> dict[str, Any]:
        """Return the state as a dictionary of JSON values."""
        return {
            "version": STATE_VERSION,
            "dataset": self.dataset,
            "order": self.order.to_json(),
            "epoch": self.epoch,
            "position": self.position,
            "engine": self.engine,
            "pixels": self.pixels,
        }

    @classmethod
    def from_json(cls, state: Any) -> "State":
        """Read a state; StateError says what is wrong with it."""
        if not isinstance(state, Mapping):
            raise StateError(f"a state is a dictionary; got {type(state).__name__}: pass what state_dict() returned")
        version = _value(state, "version", int)
        if version != STATE_VERSION:
            raise StateError(
                f"the state has version {version}; this release reads version {STATE_VERSION}: use the release that"
                " wrote it"
            )
        settings = _value(state, "order", Mapping)
        return cls(
            dataset=_value(state, "dataset", str),
            order=_mixture_settings(settings) if "sources" in settings else _order_settings(settings, "order."),
            epoch=_count(state, "epoch"),
            position=_count(state, "position"),
            engine=_value(state, "engine", str),
            pixels=_value(state, "pixels", int),
        )


def _order_settings(settings: Mapping[str, Any], where: str) -> OrderSettings:
    """Read the settings of an order."""
    _check_algorithm(settings, where, order_settings.ALGORITHM, "the order")
    return OrderSettings(
        seed=_value(settings, "seed", int, where),
        shuffle=_value(settings, "shuffle", bool, where),
        lanes=_value(settings, "lanes", int, where),
        window=_value(settings, "window", (int, type(None)), where),
        sticky=_value(settings, "sticky", bool, where),
        copies_digest=_value(settings, "copies", (str, type(None)), where),
    )


def _mixture_settings(settings: Mapping[str, Any]) -> MixtureSettings:
    """Read the settings of a mixture."""
    _check_algorithm(settings, "order.", mixture.ALGORITHM, "mixtures")
    sources = []
    for number, source in enumerate(_value(settings, "sources", list, "order.")):
        where = f"order.sources[{number}]"
        if not isinstance(source, Mapping):
            raise StateError(f"the state has {source!r} at {where}: pass what state_dict() returned, unchanged")
        where += "."
        sources.append(
            SourceSettings(
                name=_value(source, "name", str, where),
                dataset=_value(source, "dataset", str, where),
                weight=_value(source, "weight", int, where),
                order=_order_settings(_value(source, "order", Mapping, where), f"{where}order."),
            )
        )
    return MixtureSettings(
        seed=_value(settings, "seed", int, "order."),
        length=_value(settings, "length", int, "order."),
        sources=tuple(sources),
    )


def _check_algorithm(settings: Mapping[str, Any], where: str, known: int, what: str) -> None:
    """Refuse settings whose order this release would compute otherwise."""
    algorithm = _value(settings, "algorithm", int, where)
    if algorithm != known:
        raise StateError(
            f"the state was made with version {algorithm} of {what}; this release has version {known},"
            " which orders samples otherwise: finish the epoch with the release that wrote it"
        )


def _differences(mine: Any, asked: Any, unset: Collection[str]) -> dict[str, bool]:
    """Return in words which settings, of those that were asked for, differ from those in the state.

    The values say of each whether leaving it unset would take it from the state.
    """
    names = [
        field.name
        for field in dataclasses.fields(asked)
        if field.name not in unset and getattr(mine, field.name) != getattr(asked, field.name)
    ]
    if "shuffle" in names:  # which the others follow from
        names = [name for name in names if name not in ("lanes", "window", "sticky")]
    return dict(_difference(name, getattr(mine, name), getattr(asked, name)) for name in names)


def _difference(name: str, mine: Any, asked: Any) -> tuple[str, bool]:
    """Return one difference in a user's words, and whether leaving it unset would take it from the state."""
    match name:
        case "copies_digest":
            here = "none" if asked is None else "one" if mine is None else "another"
            return f"{'no' if mine is None else 'a'} selection ({_SELECTING}) in the state and {here} here", False
        case "window":
            mine, asked = ("all" if value is None else f"of {value} samples" for value in (mine, asked))
    return f"{_ARGUMENTS.get(name, name)} {mine} in the state and {asked} here", name not in ("shuffle", "length")


def _refuse(differing: Mapping[str, bool]) -> None:
    """Raise StateError if there are differences."""
    if differing:
        settled = all(differing.values())
        raise StateError(
            f"the state belongs to another order than the arguments ask for: {'; '.join(differing)};"
            f" {'leave them unset to take them from the state' if settled else 'give what the state was made with'}"
        )


def _value(state: Mapping[str, Any], name: str, kind: Any, where: str = "") -> Any:
    """Return a value of a state, of the right type."""
    if name not in state:
        raise StateError(f"the state has no value at {where}{name}: pass what state_dict() returned, whole")
    value = state[name]
    wrong = isinstance(value, bool) and kind is not bool  # to Python, True is an integer
    if wrong or not isinstance(value, kind):
        raise StateError(f"the state has {value!r} at {where}{name}: pass what state_dict() returned, unchanged")
    return value


def _count(state: Mapping[str, Any], name: str) -> int:
    """Return an epoch or a position."""
    value = _value(state, name, int)
    if not 0 <= value < COUNT_LIMIT:
        raise StateError(f"the state has {value} at {name}; it must be from 0 to 2**62 - 1")
    return int(value)
