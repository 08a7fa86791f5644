"""Descriptions of augmentations, in torchvision v2's names, arguments and defaults.

Each is a frozen record, checked when it is made; what they do together is worked out by `feeder.augment`.
"""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import is_real, length, store
from feeder.errors import ConfigError
from feeder.windows import Interpolation

_GREATEST_RATIO = 65536  # of sides; wider than any file format stores, and far from overflow in the drawing of boxes
_INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Cut a random box and resize it; the filter sees only pixels of the box.

    Args:
        size: output side, or (height, width), in pixels.
        scale: least and greatest part of the image's area.
        ratio: least and greatest width / height of the box.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"`` (torchvision's enumeration is taken, too).
        antialias: always true, as torchvision treats PIL images.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        size = _sides(self, self.size)
        store(self, size=size[0] if size[0] == size[1] else size)
        store(self, scale=_range(self, "scale"), ratio=_range(self, "ratio"))
        if self.scale[1] > 1:
            raise ConfigError(
                f"RandomResizedCrop got scale={self.scale}; a box is at most the whole image: end it at 1.0"
            )
        if self.ratio[0] < 1 / _GREATEST_RATIO or self.ratio[1] > _GREATEST_RATIO:
            raise ConfigError(
                f"RandomResizedCrop got ratio={self.ratio}; no image has such a width / height: "
                f"stay within 1 / {_GREATEST_RATIO} and {_GREATEST_RATIO}"
            )
        _check_filter(self)


@dataclass(frozen=True, slots=True)
class Resize:
    """Resize the whole image.

    Args:
        size: length of the shorter side (the other keeps the proportions, and `CenterCrop` must follow), or
            (height, width).
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"`` (torchvision's enumeration is taken, too).
        max_size: torchvision's bound on the longer side; images would differ in size, so only None compiles.
        antialias: always true, as torchvision treats PIL images.
    """

    size: int | tuple[int, int]
    interpolation: Interpolation = "bilinear"
    max_size: int | None = None
    antialias: bool = True

    def __post_init__(self) -> None:
        size = _sides(self, self.size)
        store(self, size=size if length(self.size) == 2 else size[0])
        _check_filter(self)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """Cut the central box of the resized image.

    Args:
        size: side, or (height, width), in pixels of the resized image.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        size = _sides(self, self.size)
        store(self, size=size[0] if size[0] == size[1] else size)


@dataclass(frozen=True, slots=True)
class RandomHorizontalFlip:
    """Mirror the image left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not is_real(self.p) or not 0 <= self.p <= 1:
            raise ConfigError(f"RandomHorizontalFlip got p={self.p!r}; give a probability from 0 to 1")
        store(self, p=float(self.p))


@dataclass(frozen=True, slots=True)
class Normalize:
    """Map pixels to (pixel / 255 − mean) / std, per channel; done last, preferably on the device.

    Args:
        mean: of R, G and B, where 1.0 is white.
        std: of R, G and B, in the same unit.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if length(values) != 3 or not all(is_real(value) for value in values):
                raise ConfigError(f"Normalize got {name}={values!r}; give three numbers, for R, G and B")
            store(self, **{name: tuple(float(value) for value in values)})
        if min(self.std) <= 0:
            raise ConfigError(f"Normalize got std={self.std}; pixels are divided by it, so give numbers above 0")

    def apply(self, pixels: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return (…, 3) float32 normalised from (…, 3) uint8, in ``out`` if it is given."""
        scale, shift = self.factors
        out = np.multiply(pixels, scale, out=out)
        out += shift
        return out

    @property
    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a pixel is multiplied by, and what is then added: float32 (3,) each."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


Geometric = RandomResizedCrop | Resize | CenterCrop | RandomHorizontalFlip
GEOMETRIC: tuple[type[Geometric], ...] = (RandomResizedCrop, Resize, CenterCrop, RandomHorizontalFlip)
Transform = Geometric | Normalize


def _sides(item: Transform, size: Any) -> tuple[int, int]:
    """Return (height, width) from an integer, a sequence of one or of two, as torchvision reads them."""
    try:
        sides = [operator.index(side) for side in size] if length(size) else [operator.index(size)]
    except TypeError:
        sides = []
    if len(sides) not in (1, 2) or any(isinstance(side, bool) for side in (size, *sides)) or min(sides) < 1:
        raise ConfigError(
            f"{type(item).__name__} got size={size!r}; give a side or (height, width), whole pixels above 0"
        )
    return sides[0], sides[-1]


def _range(item: RandomResizedCrop, name: str) -> tuple[float, float]:
    """Return the checked (least, greatest) of an argument."""
    values = getattr(item, name)
    if length(values) != 2 or not all(is_real(value) for value in values) or not 0 < values[0] <= values[1]:
        raise ConfigError(f"RandomResizedCrop got {name}={values!r}; give (least, greatest), both above 0")
    return float(values[0]), float(values[1])


def _check_filter(item: RandomResizedCrop | Resize) -> None:
    """Check the filter, and store torchvision's ``InterpolationMode`` as its plain name."""
    interpolation = getattr(item.interpolation, "value", item.interpolation)
    if interpolation not in _INTERPOLATIONS:
        known = ", ".join(repr(name) for name in _INTERPOLATIONS)
        raise ConfigError(f"{type(item).__name__} got interpolation={item.interpolation!r}; give one of {known}")
    if item.antialias is not True:
        raise ConfigError(
            f"{type(item).__name__} got antialias={item.antialias!r}; filters are always antialiased, as on PIL "
            "images: leave it out"
        )
    store(item, interpolation=interpolation)
