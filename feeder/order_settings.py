"""What determines an order beside the dataset: what users ask for, and what it settles to."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import as_integer
from feeder.copies import Copies
from feeder.errors import ConfigError

Int64Array = NDArray[np.int64]

ALGORITHM = 1  # changes when the same settings would give another order; part of every state

DEFAULT_WINDOW_SHARDS = 8
MIN_SEGMENTS_A_LANE = 16  # fewer would make a lane's window most of the lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """How an epoch is shuffled; ``shuffle=True`` means all defaults.

    Attributes:
        window_shards: how far a sample may move in its lane, in mean shards; ``"all"`` for the whole lane; ``"auto"``
            for 8 where the manifest says that the samples were shuffled when the shards were written, else ``"all"``.
        sticky_shards: a lane, and so a rank, reads the same shards in every epoch.
        lanes: streams into which an epoch is dealt. ``"auto"`` takes the largest power of two that is at most 1024, a
            64th of the global batch and a 16th of the number of segments, and at least 1.
    """

    window_shards: int | Literal["all", "auto"] = "auto"
    sticky_shards: bool = True
    lanes: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        window, lanes = as_integer(self.window_shards), as_integer(self.lanes)
        if self.window_shards not in ("all", "auto"):
            if window is None or window < 0:
                raise ConfigError(
                    f"Shuffle.window_shards is {self.window_shards!r}; it must be 'all', 'auto' or an integer of at"
                    " least 0"
                )
            object.__setattr__(self, "window_shards", window)
        if self.lanes != "auto":
            if lanes is None or lanes < 1:
                raise ConfigError(f"Shuffle.lanes is {self.lanes!r}; it must be 'auto' or an integer of at least 1")
            object.__setattr__(self, "lanes", lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSettings:
    """What, beside the dataset, determines an order; kept in every state.

    Attributes:
        seed: any integer.
        shuffle: False for manifest order: one lane, nothing permuted.
        lanes: number of lanes L, 1 … max(1, N).
        window: the window B in samples, or None for the whole lane.
        sticky: whether lanes keep their shards in every epoch.
        copies_digest: identifies the table of copies, or None.
    """

    seed: int
    shuffle: bool
    lanes: int
    window: int | None
    sticky: bool
    copies_digest: str | None = None

    def __str__(self) -> str:
        """Return the settings in words."""
        if not self.shuffle:
            return "as stored, not shuffled"
        lanes = f"{self.lanes:,} lane{'' if self.lanes == 1 else 's'}"
        window = "the whole lane" if self.window is None else f"{self.window:,} samples"
        return f"seed {self.seed}, {lanes}, window {window}, {'same' if self.sticky else 'other'} shards in every epoch"

    def to_json(self) -> dict[str, Any]:
        """Return the settings and the algorithm's version as JSON values; equal ones give equal orders."""
        return {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "lanes": self.lanes,
            "window": self.window,
            "sticky": self.sticky,
            "copies": self.copies_digest,
        }


def unset_settings(shuffle: Shuffle | bool) -> set[str]:
    """Return the names of the settings that a user's ``shuffle=`` leaves open, so that a state may settle them."""
    if isinstance(shuffle, bool):
        return {"lanes", "window", "sticky"} if shuffle else set()
    open_lanes = {"lanes"} if shuffle.lanes == "auto" else set()
    return open_lanes | ({"window"} if shuffle.window_shards == "auto" else set())


def resolve_settings(
    shuffle: Shuffle | bool,
    *,
    seed: int,
    segment_samples: Int64Array,
    shuffled_when_written: bool,
    global_batch: int,
    copies: Copies | None = None,
) -> OrderSettings:
    """Turn a user's ``shuffle=`` into the settings of an order, filling in what was left to "auto".

    Args:
        shuffle: True, False or a `Shuffle`.
        seed: any integer.
        segment_samples: int64[S].
        shuffled_when_written: whether the manifest says so; it decides the default window.
        global_batch: G, which bounds the default number of lanes.
        copies: see `Order`.
    """
    digest = None if copies is None else copies.digest
    if shuffle is False:
        return OrderSettings(seed=seed, shuffle=False, lanes=1, window=0, sticky=False, copies_digest=digest)
    chosen = Shuffle() if shuffle is True else shuffle
    segments = int(np.count_nonzero(segment_samples))
    samples = int(np.sum(segment_samples)) if copies is None else copies.num_rows
    window_shards = chosen.window_shards
    if window_shards == "auto":
        window_shards = DEFAULT_WINDOW_SHARDS if shuffled_when_written else "all"
    window = None if window_shards == "all" else window_shards * samples // max(1, segments)
    lanes = chosen.lanes
    if lanes == "auto":
        most = max(1, min(1024, global_batch // 64, segments // MIN_SEGMENTS_A_LANE, samples))
        lanes = 1 << (most.bit_length() - 1)
    return OrderSettings(
        seed=seed, shuffle=True, lanes=lanes, window=window, sticky=chosen.sticky_shards, copies_digest=digest
    )
