"""RandomErasing, in torchvision v2's names, arguments and defaults."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from feeder.arguments import is_real, length, store
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, draw, uniform
from feeder.pixels import checks
from feeder.pixels.noise import noise
from feeder.pixels.protocol import Params, Pixels
from feeder.windows import TRIES, exact_exp, exact_log

_CHANCE_DRAW, _NOISE_DRAW = 0, 1
_AREA_DRAW, _RATIO_DRAW, _TOP_DRAW, _LEFT_DRAW = 2, 3, 4, 5  # of try 0; try t adds 4·t
_DRAWS_PER_TRY = 4


@dataclass(frozen=True, slots=True)
class RandomErasing:
    """Overwrite a random box, with probability ``p`` (Zhong et al., "Random Erasing", arXiv:1708.04896).

    After `Normalize` values are in its units: 0 is the mean, and noise is normal. Before it they are levels of
    0 … 255, and noise is uniform over them (torchvision would cut normal noise to 0 and its neighbours).

    Args:
        p: the probability.
        scale: least and greatest part of the image's area.
        ratio: least and greatest height / width of the box.
        value: a number, three for R, G and B, or ``"random"`` for noise.
        inplace: without effect, as batches always change in place.

    Parameters: ``box`` (n, 4) int32, top, left, height and width, all 0 where nothing is erased; with noise also
    ``noise`` (n,) uint64 keys.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | tuple[float, float, float] | Literal["random"] = 0.0
    inplace: bool = False

    takes_normalized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        store(self, p=checks.probability(self, self.p), value=_checked_value(self.value))
        store(self, scale=checks.interval(self, "scale", self.scale, least=0, greatest=1))
        store(self, ratio=checks.interval(self, "ratio", self.ratio, least=0, above=True))

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        """Of ten tries the first box that is smaller than the image counts; if none is, nothing is erased.

        Source: torchvision.transforms.v2.RandomErasing.make_params.
        """
        tries = np.arange(TRIES) * _DRAWS_PER_TRY
        least, greatest = self.scale
        areas = height * width * (least + uniform(keys[:, None], tries + _AREA_DRAW) * (greatest - least))
        low, high = (exact_log(side) for side in self.ratio)
        ratios = exact_exp(low + uniform(keys[:, None], tries + _RATIO_DRAW) * (high - low))
        heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
        fits = (heights < height) & (widths < width)

        chosen = fits.argmax(axis=1)
        row = np.arange(len(keys))
        tall, wide = heights[row, chosen], widths[row, chosen]
        start = chosen * _DRAWS_PER_TRY
        top = np.floor(uniform(keys, start + _TOP_DRAW) * (height - tall + 1))
        left = np.floor(uniform(keys, start + _LEFT_DRAW) * (width - wide + 1))
        erased = (uniform(keys, _CHANCE_DRAW) < self.p) & fits.any(axis=1) & (tall > 0) & (wide > 0)
        boxes = np.where(erased[:, None], np.stack((top, left, tall, wide), axis=1), 0).astype(np.int32)
        return {"box": boxes} | ({"noise": draw(keys, _NOISE_DRAW)} if self.value == "random" else {})

    def apply(self, images: Pixels, params: Params) -> None:
        for row in np.flatnonzero(params["box"][:, 2]):
            top, left, height, width = (int(edge) for edge in params["box"][row])
            box = images[row, top : top + height, left : left + width]
            if self.value == "random":
                normal = images.dtype != np.uint8
                box[...] = noise(int(params["noise"][row]), top, left, height, width, images.shape[2], normal=normal)
            else:
                box[...] = erased_value(self.value, images.dtype == np.uint8)


def erased_value(value: Any, levels: bool) -> Any:
    """Return a constant value as it is written; as a level it is cut to a whole number of 0 … 255."""
    return np.clip(value, 0, 255).astype(np.uint8) if levels else np.float32(value)


def _checked_value(value: Any) -> Any:
    """Return a checked ``value``."""
    if isinstance(value, str) and value == "random":
        return value
    numbers = tuple(value) if length(value) is not None else (value,)
    if len(numbers) not in (1, 3) or not all(is_real(number) for number in numbers):
        raise ConfigError(f"RandomErasing got value={value!r}; give a number, three for R, G and B, or 'random'")
    return tuple(float(number) for number in numbers) if len(numbers) == 3 else float(numbers[0])
