"""Changes of colour and sharpness, in torchvision v2's names, arguments and defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from feeder.arguments import as_integer, checked_integer, is_real, length, store
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, draw, uniform
from feeder.pixels import checks, kernels
from feeder.pixels.protocol import Params, Pixels

# The factors of ColorJitter in the order of torchvision's numbers, with their draw numbers and kernels.
_FACTORS: tuple[tuple[str, int, Callable[..., None]], ...] = (
    ("brightness", 4, kernels.brightness),
    ("contrast", 5, kernels.contrast),
    ("saturation", 6, kernels.saturation),
    ("hue", 7, kernels.hue),
)


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue by random factors, in random order.

    Args:
        brightness: a factor is drawn uniformly from [max(0, 1 − x), 1 + x], or from the range (least, greatest).
        contrast: likewise.
        saturation: likewise.
        hue: a part of a full circle is drawn uniformly from [−x, x] with x ≤ 0.5, or from the range.

    Parameters: ``order`` (n, 4) int8, a permutation of 0 … 3 (brightness, contrast, saturation, hue), and a (n,)
    float64 for each of these that is not None.
    """

    brightness: float | tuple[float, float] | None = None
    contrast: float | tuple[float, float] | None = None
    saturation: float | tuple[float, float] | None = None
    hue: float | tuple[float, float] | None = None

    takes_normalized: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            store(self, **{name: self._checked(name, centre=1.0, least=0.0, greatest=float("inf"))})
        store(self, hue=self._checked("hue", centre=0.0, least=-0.5, greatest=0.5))

    def _checked(self, name: str, *, centre: float, least: float, greatest: float) -> tuple[float, float] | None:
        """Return the range of a factor, None where it never changes a pixel."""
        value: Any = getattr(self, name)
        if value is None:
            return None
        if length(value) is None:
            if not is_real(value) or value < 0 or centre + value > greatest:
                most = f" up to {greatest:g}" if greatest < float("inf") else ""
                raise ConfigError(f"ColorJitter got {name}={value!r}; give a number from 0{most}, or (least, greatest)")
            value = (max(least, centre - value), centre + value)
        low, high = checks.interval(self, name, value, least=least, greatest=greatest)
        return None if low == high == centre else (low, high)

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        # The ranks of four independent draws are a uniform permutation.
        params: Params = {"order": np.argsort(draw(keys[:, None], np.arange(4)), axis=1, kind="stable").astype(np.int8)}
        for name, number, _ in _FACTORS:
            limits = getattr(self, name)
            if limits is not None:
                params[name] = limits[0] + uniform(keys, number) * (limits[1] - limits[0])
        return params

    def apply(self, images: Pixels, params: Params) -> None:
        if len(params) == 1:
            return
        space = kernels.Workspace(*images.shape[1:3])
        for row, image in enumerate(images):
            planes = space.load(image)
            for factor in params["order"][row]:
                name, _, kernel = _FACTORS[factor]
                if name in params:
                    kernel(planes, float(params[name][row]), space)
            space.save(image)


@dataclass(frozen=True, slots=True)
class GaussianBlur:
    """Blur with a Gaussian of random width; borders are reflected.

    Args:
        kernel_size: side of the kernel, or (width, height), odd, in pixels.
        sigma: standard deviation in pixels, or the range (least, greatest) it is drawn from uniformly.

    Parameters: ``sigma`` (n,) float64.
    """

    kernel_size: int | tuple[int, int]
    sigma: float | tuple[float, float] = (0.1, 2.0)

    takes_normalized: ClassVar[bool] = False

    def __post_init__(self) -> None:
        sides: Any = self.kernel_size
        sides = tuple(sides) if length(sides) is not None else (sides,)
        numbers = [as_integer(side) for side in sides]
        if len(numbers) not in (1, 2) or any(side is None or side < 1 or side % 2 == 0 for side in numbers):
            raise ConfigError(
                f"GaussianBlur got kernel_size={self.kernel_size!r}; give an odd side, or (width, height), in pixels"
            )
        store(self, kernel_size=(numbers[0], numbers[-1]))
        sigma: Any = self.sigma
        sigma = (sigma, sigma) if length(sigma) is None else sigma
        store(self, sigma=checks.interval(self, "sigma", sigma, least=0, above=True))

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        across, down = self.kernel_size  # type: ignore[misc]
        if across // 2 >= width or down // 2 >= height:
            raise ConfigError(
                f"GaussianBlur has kernel_size={self.kernel_size} for images of {width} x {height} pixels; borders are "
                "reflected, so half the kernel must be smaller than the image: take a smaller kernel"
            )
        least, greatest = self.sigma  # type: ignore[misc]
        return {"sigma": least + uniform(keys, 0) * (greatest - least)}

    def apply(self, images: Pixels, params: Params) -> None:
        for image, sigma in zip(images, params["sigma"], strict=True):
            kernels.gaussian_blur(image, self.kernel_size, float(sigma))  # type: ignore[arg-type]


class _Chance:
    """What is done to an image with probability ``p``. Parameters: ``apply`` (n,) bool."""

    __slots__ = ()
    takes_normalized: ClassVar[bool] = False
    p: float

    def __post_init__(self) -> None:
        store(self, p=checks.probability(self, self.p))

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        return {"apply": uniform(keys, 0) < self.p}

    def apply(self, images: Pixels, params: Params) -> None:
        rows = np.flatnonzero(params["apply"])
        if rows.size:
            space = kernels.Workspace(*images.shape[1:3])
            for row in rows:
                self._change(images[row], space)

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        """Change an (H, W, 3) image in place."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RandomGrayscale(_Chance):
    """Make the image grey, in three equal channels, with probability ``p``."""

    p: float = 0.1

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.greyscale(space.load(image), space)
        space.save(image)


@dataclass(frozen=True, slots=True)
class RandomSolarize(_Chance):
    """Invert the values of at least ``threshold`` (0 … 255, as on uint8 tensors), with probability ``p``."""

    threshold: float
    p: float = 0.5

    def __post_init__(self) -> None:
        store(self, threshold=checks.number(self, "threshold", self.threshold, 0, 255))
        _Chance.__post_init__(self)

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.solarize(image, self.threshold)


@dataclass(frozen=True, slots=True)
class RandomPosterize(_Chance):
    """Keep the highest ``bits`` (0 … 8) of each value, with probability ``p``."""

    bits: int
    p: float = 0.5

    def __post_init__(self) -> None:
        bits = checked_integer("RandomPosterize: bits", self.bits, least=0)
        if bits > 8:
            raise ConfigError(f"RandomPosterize got bits={bits}; a value has 8: give 0 to 8")
        store(self, bits=bits)
        _Chance.__post_init__(self)

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.posterize(image, self.bits)


@dataclass(frozen=True, slots=True)
class RandomAdjustSharpness(_Chance):
    """Sharpen by a factor (0 blurs, 1 changes nothing, 2 sharpens), with probability ``p``."""

    sharpness_factor: float
    p: float = 0.5

    def __post_init__(self) -> None:
        if not is_real(self.sharpness_factor) or self.sharpness_factor < 0:
            raise ConfigError(
                f"RandomAdjustSharpness got sharpness_factor={self.sharpness_factor!r}; give a number of at least 0"
            )
        store(self, sharpness_factor=float(self.sharpness_factor))
        _Chance.__post_init__(self)

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.sharpness(image, self.sharpness_factor, space)


@dataclass(frozen=True, slots=True)
class RandomAutocontrast(_Chance):
    """Stretch each channel to the whole range, with probability ``p``."""

    p: float = 0.5

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.autocontrast(space.load(image), space)
        space.save(image)


@dataclass(frozen=True, slots=True)
class RandomEqualize(_Chance):
    """Level the histogram of each channel, with probability ``p``."""

    p: float = 0.5

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.equalize(image)


@dataclass(frozen=True, slots=True)
class RandomInvert(_Chance):
    """Invert the colours, with probability ``p``."""

    p: float = 0.5

    def _change(self, image: Any, space: kernels.Workspace) -> None:
        kernels.invert(image)
