"""How batches are cut, made and handed over: what a dataset's arguments say beside which samples there are."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from feeder import tensors
from feeder.arguments import checked_integer, one_of
from feeder.errors import ConfigError
from feeder.pipeline import OnError
from feeder.placement import Placement, Replicate, data_placement, resolve_placement

Arrays = Literal["auto", "torch", "numpy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The arguments of `feeder.ImageDataset` of these names, checked."""

    batch_size: int | None
    global_batch_size: int | None
    rank: int | None
    world_size: int | None
    replicate: Replicate
    threads: int | None
    on_error: OnError
    max_bad_fraction: float
    arrays: Arrays
    audit_log: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        sizes = _checked_batch_sizes(self.batch_size, self.global_batch_size)
        checked = {
            "batch_size": sizes[0],
            "global_batch_size": sizes[1],
            "threads": None if self.threads is None else checked_integer("threads", self.threads, least=1),
            "audit_log": None if self.audit_log is None else _checked_path("audit_log", self.audit_log),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        one_of("on_error", self.on_error, ("replace", "mask", "raise"))
        fraction = self.max_bad_fraction
        if not isinstance(fraction, float | int | np.floating) or not 0 <= fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {fraction!r}; it must be a number from 0 to 1")
        if self.rank is not None or self.world_size is not None:
            self.placement(self.rank, self.world_size)
        one_of("arrays", self.arrays, ("auto", "torch", "numpy"))
        if self.arrays == "torch":
            tensors.require()

    def placement(self, rank: int | None, world_size: int | None) -> Placement:
        """Return whose part of the data a rank gets, among how many; None asks the launcher's environment."""
        return data_placement(resolve_placement(rank, world_size), self.replicate)

    @property
    def as_tensors(self) -> bool:
        """Whether users get torch's tensors."""
        return self.arrays != "numpy" and tensors.AVAILABLE


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


def _checked_path(name: str, value: Any) -> str:
    """Return a path as text."""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} is {value!r}; it must be the path of a file")
    return os.fspath(value)
