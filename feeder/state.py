"""What a checkpoint holds: which dataset, which order, and one integer, the position in the epoch.

A state is a dictionary of JSON values, so that it goes into any checkpoint and loads with
``torch.load(weights_only=True)``. Global batch and world size are not in it: both may change at a resume.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from feeder.errors import StateError
from feeder.order import ALGORITHM, COUNT_LIMIT, OrderSettings

STATE_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A position in the order of a dataset.

    Attributes:
        dataset: digest of the dataset.
        order: settings of its order.
        epoch: from 0.
        position: the first position of the epoch that was not yet handed out.
        engine: name of the engine that made the pixels.
        pixels: version of the pixel contract that the engine follows.
    """

    dataset: str
    order: OrderSettings
    epoch: int
    position: int
    engine: str
    pixels: int

    def order_for(self, asked: OrderSettings, unset: Collection[str]) -> OrderSettings:
        """Return the order of the state, for a user who asked for an order and left some of its settings unset.

        Raises:
            StateError: what was set differs from the state.
        """
        differing = [
            f"{field.name} {getattr(self.order, field.name)} in the state and {getattr(asked, field.name)} here"
            for field in dataclasses.fields(asked)
            if field.name not in unset and getattr(self.order, field.name) != getattr(asked, field.name)
        ]
        if differing:
            raise StateError(
                f"the state belongs to another order than the arguments ask for: {'; '.join(differing)}; leave them"
                " unset to take them from the state"
            )
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
        order = _value(state, "order", Mapping)
        algorithm = _value(order, "algorithm", int, "order.")
        if algorithm != ALGORITHM:
            raise StateError(
                f"the state was made with version {algorithm} of the order; this release has version {ALGORITHM},"
                " which orders samples otherwise: finish the epoch with the release that wrote it"
            )
        return cls(
            dataset=_value(state, "dataset", str),
            order=OrderSettings(
                seed=_value(order, "seed", int, "order."),
                shuffle=_value(order, "shuffle", bool, "order."),
                lanes=_value(order, "lanes", int, "order."),
                window=_value(order, "window", (int, type(None)), "order."),
                sticky=_value(order, "sticky", bool, "order."),
                copies_digest=_value(order, "copies", (str, type(None)), "order."),
            ),
            epoch=_count(state, "epoch"),
            position=_count(state, "position"),
            engine=_value(state, "engine", str),
            pixels=_value(state, "pixels", int),
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
