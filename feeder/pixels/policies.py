"""RandAugment, TrivialAugmentWide and AutoAugment, in torchvision v2's names, arguments and defaults.

All three draw, for each image and step, an operation and a magnitude; both are parameters, so that one kernel serves
all. Sources: Cubuk et al., "RandAugment" (arXiv:1909.13719); Müller and Hutter, "TrivialAugment" (arXiv:2103.10158);
Cubuk et al., "AutoAugment" (arXiv:1805.09501); the numbers are torchvision's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import checked_integer, store
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, uniform
from feeder.pixels import checks, kernels, warp
from feeder.pixels.auto_augment_policies import POLICIES
from feeder.pixels.checks import Fill, Interpolation
from feeder.pixels.protocol import Params, Pixels

# Operations by number, as parameters hold them: new ones go to the end.
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
_SIGNED = np.array([1 <= number <= 9 for number in range(len(OPERATIONS))])
_CHOSEN = len(OPERATIONS) - 1  # RandAugment and TrivialAugment choose among all but Invert, in this order
_AUTO_BINS = 10  # magnitudes in AutoAugment's policies
_DRAWS_PER_STEP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """The greatest magnitude of each operation: AutoAugment's and RandAugment's, or TrivialAugment's wide ones."""

    shear: float
    shift: float | None  # in pixels; None for 150 / 331 of the side
    degrees: float
    factor: float
    posterize_bits: int  # how many are lost

    def magnitudes(self, bins: int, height: int, width: int) -> NDArray[np.float64]:
        """Return (operations, bins) magnitudes, without their sign; 0 where an operation has none."""
        shifts = [self.shift if self.shift is not None else 150.0 / 331.0 * side for side in (width, height)]
        ends = [self.shear, self.shear, *shifts, self.degrees, *[self.factor] * 4]
        table = np.zeros((len(OPERATIONS), bins))
        for number, end in enumerate(ends, start=1):
            table[number] = _linspace(0.0, end, bins)
        lost = np.arange(bins, dtype=np.float32) / np.float32((bins - 1) / self.posterize_bits)
        table[NUMBERS["Posterize"]] = np.rint(8 - lost)
        table[NUMBERS["Solarize"]] = _linspace(1.0, 0.0, bins)
        return table


NARROW = Strengths(shear=0.3, shift=None, degrees=30.0, factor=0.9, posterize_bits=4)
WIDE = Strengths(shear=0.99, shift=32.0, degrees=135.0, factor=0.99, posterize_bits=6)


def _linspace(start: float, end: float, steps: int) -> NDArray[np.float32]:
    """Return ``torch.linspace`` to the bit: single precision, the second half counted from the end.

    Magnitudes of shifts are cut to whole pixels, so that the last bit decides.
    """
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(steps - 1)
    up = np.arange(steps, dtype=np.float32)
    down = np.float32(steps - 1) - up
    # torch multiplies and adds in one rounding, which double precision holds exactly before it is rounded once.
    forward = (np.float64(first) + np.float64(step) * up).astype(np.float32)
    backward = (np.float64(last) - np.float64(step) * down).astype(np.float32)
    return np.where(np.arange(steps) < steps // 2, forward, backward)


class Policy:
    """What the three have in common.

    Parameters: ``operation`` (n, steps) int8, numbers in `OPERATIONS`; ``magnitude`` (n, steps) float64, with sign.
    """

    __slots__ = ()
    takes_normalized: ClassVar[bool] = False
    interpolation: Interpolation
    fill: Fill

    def apply(self, images: Pixels, params: Params) -> None:
        space = kernels.Workspace(*images.shape[1:3])
        fill = checks.fill_levels(self.fill)
        for image, operations, magnitudes in zip(images, params["operation"], params["magnitude"], strict=True):
            for operation, magnitude in zip(operations, magnitudes, strict=True):
                _change(image, OPERATIONS[operation], float(magnitude), space, self.interpolation, fill)

    def _check(self) -> None:
        store(self, interpolation=checks.interpolation(self, self.interpolation), fill=checks.fill(self, self.fill))


@dataclass(frozen=True, slots=True)
class RandAugment(Policy):
    """Apply ``num_ops`` operations, drawn with repetition, at one magnitude and random sign.

    Args:
        num_ops: how many.
        magnitude: which of the magnitudes, from 0.
        num_magnitude_bins: how many magnitudes there are, evenly from none to the greatest.
        interpolation: filter of shears and rotations, ``"nearest"`` or ``"bilinear"``.
        fill: colour of what comes in from outside: black, a level of 0 … 255, or (R, G, B).
    """

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: Interpolation = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        bins = checked_integer("RandAugment: num_magnitude_bins", self.num_magnitude_bins, least=2)
        magnitude = checked_integer("RandAugment: magnitude", self.magnitude, least=0)
        if magnitude >= bins:
            raise ConfigError(
                f"RandAugment got magnitude={magnitude} of num_magnitude_bins={bins}; give 0 to {bins - 1}"
            )
        num_ops = checked_integer("RandAugment: num_ops", self.num_ops, least=0)
        store(self, num_ops=num_ops, magnitude=magnitude, num_magnitude_bins=bins)
        self._check()

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        table = NARROW.magnitudes(self.num_magnitude_bins, height, width)
        return _drawn(keys, self.num_ops, table[:, [self.magnitude]])


@dataclass(frozen=True, slots=True)
class TrivialAugmentWide(Policy):
    """Apply one operation at a random magnitude and sign.

    Args:
        num_magnitude_bins: how many magnitudes there are, evenly from none to the greatest.
        interpolation: filter of shears and rotations, ``"nearest"`` or ``"bilinear"``.
        fill: colour of what comes in from outside: black, a level of 0 … 255, or (R, G, B).
    """

    num_magnitude_bins: int = 31
    interpolation: Interpolation = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        bins = checked_integer("TrivialAugmentWide: num_magnitude_bins", self.num_magnitude_bins, least=2)
        store(self, num_magnitude_bins=bins)
        self._check()

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        return _drawn(keys, 1, WIDE.magnitudes(self.num_magnitude_bins, height, width))


def _drawn(keys: UInt64Array, steps: int, table: NDArray[np.float64]) -> Params:
    """Return operations, magnitudes out of the columns of a table, and signs, each uniform."""
    numbers = np.arange(steps) * _DRAWS_PER_STEP
    operation = np.floor(uniform(keys[:, None], numbers) * _CHOSEN).astype(np.int8)
    column = np.floor(uniform(keys[:, None], numbers + 1) * table.shape[1]).astype(np.int64)
    negative = uniform(keys[:, None], numbers + 2) < 0.5
    magnitude = table[operation, column]
    return {"operation": operation, "magnitude": np.where(negative & _SIGNED[operation], -magnitude, magnitude)}


@dataclass(frozen=True, slots=True)
class AutoAugment(Policy):
    """Apply one of 25 pairs of operations, with learnt probabilities and magnitudes.

    Args:
        policy: ``"imagenet"``, ``"cifar10"`` or ``"svhn"`` (torchvision's ``AutoAugmentPolicy`` is taken, too).
        interpolation: filter of shears and rotations, ``"nearest"`` or ``"bilinear"``.
        fill: colour of what comes in from outside: black, a level of 0 … 255, or (R, G, B).
    """

    policy: str = "imagenet"
    interpolation: Interpolation = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        policy = getattr(self.policy, "value", self.policy)
        if policy not in POLICIES:
            known = ", ".join(map(repr, POLICIES))
            raise ConfigError(f"AutoAugment got policy={self.policy!r}; give one of {known}")
        store(self, policy=policy)
        self._check()

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        pairs = POLICIES[self.policy]
        numbers = np.array([[NUMBERS[name] for name, _, _ in pair] for pair in pairs], np.int8)
        chances = np.array([[chance for _, chance, _ in pair] for pair in pairs])
        levels = np.array([[level or 0 for _, _, level in pair] for pair in pairs])
        table = NARROW.magnitudes(_AUTO_BINS, height, width)

        chosen = np.floor(uniform(keys, 0) * len(pairs)).astype(np.int64)
        done = uniform(keys[:, None], [1, 2]) < chances[chosen]
        operation = np.where(done, numbers[chosen], 0).astype(np.int8)
        magnitude = np.where(done, table[numbers[chosen], levels[chosen]], 0.0)
        negative = uniform(keys[:, None], [3, 4]) < 0.5
        return {"operation": operation, "magnitude": np.where(negative & _SIGNED[operation], -magnitude, magnitude)}


def _change(
    image: Any,
    name: str,
    magnitude: float,
    space: kernels.Workspace,
    interpolation: Interpolation,
    fill: tuple[int, int, int],
) -> None:
    """Apply one operation to an (H, W, 3) uint8 image, in place."""
    match name:
        case "ShearX" | "ShearY" | "Rotate" | "TranslateX" | "TranslateY":
            _warp(image, name, magnitude, interpolation, fill)
        case "Brightness":
            kernels.brightness(image, 1.0 + magnitude, space)
        case "Color" | "Contrast":
            kernel = kernels.saturation if name == "Color" else kernels.contrast
            kernel(space.load(image), 1.0 + magnitude, space)
            space.save(image)
        case "Sharpness":
            kernels.sharpness(image, 1.0 + magnitude, space)
        case "Posterize":
            kernels.posterize(image, int(magnitude))
        case "Solarize":
            kernels.solarize(image, 255.0 * magnitude)
        case "AutoContrast":
            kernels.autocontrast(space.load(image), space)
            space.save(image)
        case "Equalize":
            kernels.equalize(image)
        case "Invert":
            kernels.invert(image)


def _warp(image: Any, name: str, magnitude: float, interpolation: Interpolation, fill: tuple[int, int, int]) -> None:
    if magnitude == 0:
        return
    match name:
        case "TranslateX":
            warp.translate(image, int(magnitude), 0, fill)
        case "TranslateY":
            warp.translate(image, 0, int(magnitude), fill)
        case _:
            warp.affine(image, warp.matrix(name, magnitude, *image.shape[:2]), interpolation, fill)
