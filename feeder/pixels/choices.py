"""Transforms that apply others by chance, in torchvision v2's names and arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import is_real, length, store
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, uniform
from feeder.pixels import checks
from feeder.pixels.protocol import Mixer, Params, Pixels, PixelTransform, nested, operation_keys, part_of, rows_of


@dataclass(frozen=True, slots=True)
class RandomApply:
    """Apply all of a list of pixel transforms with probability ``p``, or none.

    Parameters: ``apply`` (n,) bool, and those of the i-th transform as ``"i.name"``.
    """

    transforms: Sequence[PixelTransform]
    p: float = 0.5

    @property
    def takes_normalized(self) -> bool:
        return all(getattr(transform, "takes_normalized", False) for transform in self.transforms)

    def __post_init__(self) -> None:
        store(
            self, transforms=_checked(self, "pixel transforms", is_pixel_transform), p=checks.probability(self, self.p)
        )

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        drawn = {"apply": uniform(keys, 0) < self.p}
        return drawn | _draw_each(self.transforms, keys, height, width)

    def apply(self, images: Pixels, params: Params) -> None:
        for row in np.flatnonzero(params["apply"]):
            rows = slice(row, row + 1)
            for index, transform in enumerate(self.transforms):
                transform.apply(images[rows], rows_of(part_of(params, index), rows))


@dataclass(frozen=True, slots=True)
class RandomChoice:
    """Apply one of a list: of pixel transforms, chosen for each image, or of mixers, chosen for each batch.

    Args:
        transforms: the list.
        p: a weight for each; equal by default.

    Parameters: ``choice`` (n,) int64, and those of the i-th transform as ``"i.name"``.
    """

    transforms: Sequence[PixelTransform] | Sequence[Mixer]
    p: Sequence[float] | None = None

    @property
    def mixes(self) -> bool:
        """Whether the choice is among mixers."""
        return is_mixer(self.transforms[0])

    @property
    def takes_normalized(self) -> bool:
        return all(getattr(transform, "takes_normalized", False) for transform in self.transforms)

    @property
    def num_classes(self) -> int:
        """The length of a target of the mixers."""
        return int(self.transforms[0].num_classes)  # type: ignore[union-attr]

    def __post_init__(self) -> None:
        mixers = any(is_mixer(item) for item in _items(self.transforms))
        store(self, transforms=_checked(self, _ALL_OF_A_KIND, is_mixer if mixers else is_pixel_transform))
        if mixers and len({item.num_classes for item in self.transforms}) > 1:  # type: ignore[union-attr]
            counts = ", ".join(str(item.num_classes) for item in self.transforms)  # type: ignore[union-attr]
            raise ConfigError(f"RandomChoice got mixers of {counts} classes; targets have one length: give one number")
        if self.p is None:
            return
        weights = _items(self.p)
        if len(weights) != len(self.transforms) or not all(is_real(w) and w >= 0 for w in weights) or not sum(weights):
            raise ConfigError(
                f"RandomChoice got p={self.p!r} for {len(self.transforms)} transforms; give as many weights, not all 0"
            )
        store(self, p=tuple(float(weight) for weight in weights))

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        weights = np.array(self.p or [1.0] * len(self.transforms))
        ends = weights.cumsum() / weights.sum()
        choice = np.searchsorted(ends[:-1], uniform(keys, 0), side="right")
        return {"choice": choice} | _draw_each(self.transforms, keys, height, width)

    def apply(self, images: Pixels, params: Params) -> None:
        parts = [part_of(params, index) for index in range(len(self.transforms))]
        for row, index in enumerate(params["choice"]):
            rows = slice(row, row + 1)
            self.transforms[index].apply(images[rows], rows_of(parts[index], rows))

    def mix(
        self, images: Pixels, labels: NDArray[np.int64], valid: NDArray[np.bool_], params: Params
    ) -> NDArray[np.float32]:
        """Mix a batch with the chosen mixer; see `feeder.pixels.protocol.Mixer`."""
        index = int(params["choice"][0])
        return self.transforms[index].mix(images, labels, valid, part_of(params, index))  # type: ignore[union-attr]


_ALL_OF_A_KIND = "either pixel transforms, or MixUp and CutMix"


def is_mixer(item: object) -> bool:
    """Return whether an item is a mixer of batches: MixUp, CutMix, a choice of them, or another's of that protocol."""
    return isinstance(item, Mixer) and not isinstance(item, type) and getattr(item, "mixes", True)


def is_pixel_transform(item: object) -> bool:
    """Return whether an item changes the pixels of each image."""
    return isinstance(item, PixelTransform) and not isinstance(item, type) and not is_mixer(item)


def _draw_each(transforms: Any, keys: UInt64Array, height: int, width: int) -> Params:
    streams = operation_keys(transforms, keys)
    return nested([item.draw(stream, height, width) for item, stream in zip(transforms, streams, strict=True)])


def _items(values: Any) -> tuple[Any, ...]:
    return tuple(values) if length(values) is not None else ()


def _checked(item: Any, expected: str, fits: Callable[[object], bool]) -> tuple[Any, ...]:
    """Return the transforms of a list, which must all fit."""
    transforms = _items(item.transforms)
    name = type(item).__name__
    if not transforms:
        raise ConfigError(f"{name} got {item.transforms!r}; give a list with at least one transform")
    for transform in transforms:
        if not fits(transform):
            given = transform.__name__ if isinstance(transform, type) else type(transform).__name__
            raise ConfigError(f"{name} got {given} in its list; it takes {expected}, made with their arguments")
    return transforms
