"""From augmentations to geometry: what an engine has to do to each image, known before a byte of it is read.

`compile_transforms` turns a sequence of transforms into a `Geometry`: one box of the stored image, a mirror and one
resampling to a fixed size, which is all that an engine executes. What cannot be said that way is refused with a
sentence.

Random numbers: key = ``derive_key("augment", seed, epoch)``; the stream of one output image is
``draw(draw(draw(key, sample id), copy), view)``; the draw numbers stand in `feeder.windows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import as_integer
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, derive_key, draw, uniform
from feeder.transforms import (
    GEOMETRIC,
    CenterCrop,
    Geometric,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from feeder.windows import FLIP_DRAW, Interpolation, RandomBoxes, ResizedBoxes, Windows, fill_unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a sequence of transforms asks of an engine; made by `compile_transforms`.

    Attributes:
        size: (height, width) of every output image.
        views: V, the output images made of each sample.
        interpolation: the filter of the one resampling.
        box: how boxes follow from the sizes of the stored images, and whether by chance.
        flip: probability of a mirrored output.
        flip_first: whether the mirror stands before the crop, which then takes its box from the mirrored image.
    """

    size: tuple[int, int]
    views: int
    interpolation: Interpolation
    box: RandomBoxes | ResizedBoxes
    flip: float
    flip_first: bool

    def windows(
        self,
        seed: int,
        epoch: int,
        ids: NDArray[np.int64],
        copies: NDArray[np.int64],
        widths: NDArray[np.int32],
        heights: NDArray[np.int32],
        *,
        first_view: int = 0,
    ) -> Windows:
        """Return the windows of n samples; a pure function, bit-identical on every machine.

        Args:
            seed: the run's seed.
            epoch: the epoch, from 0.
            ids: (n,) sample ids.
            copies: (n,) number of the copy of the sample in this epoch, from 0.
            widths: (n,) widths of the stored images in pixels; where unknown, 0, which gives the box (0, 0, 1, 1).
            heights: (n,) heights, likewise.
            first_view: the number of the first of these views, where others were made of the samples before.
        """
        keys = sample_keys(seed, epoch, ids, copies)
        keys = draw(keys[:, None], first_view + np.arange(self.views))
        readable = (np.asarray(widths) > 0) & (np.asarray(heights) > 0)
        known_widths, known_heights = (np.where(readable, sides, 1).astype(np.int64) for sides in (widths, heights))
        resized = None
        if isinstance(self.box, RandomBoxes):
            boxes = self.box.boxes(keys, known_widths, known_heights)
        else:
            resized = self.box.resized(known_widths, known_heights)
            boxes = np.repeat(self.box.boxes(known_widths, known_heights, resized)[:, None], self.views, axis=1)
        flips = uniform(keys, FLIP_DRAW) < self.flip
        if self.flip_first:
            mirrored = boxes.copy()
            mirrored[..., 0] = known_widths[:, None] - boxes[..., 2]
            mirrored[..., 2] = known_widths[:, None] - boxes[..., 0]
            boxes = np.where(flips[..., None], mirrored, boxes)
        fill_unreadable(boxes, readable)
        return Windows(
            sizes=np.stack((widths, heights), axis=1).astype(np.int32),
            boxes=boxes,
            flips=flips,
            clipped=isinstance(self.box, RandomBoxes),
            resized=resized,
            interpolation=self.interpolation,
        )


def sample_keys(seed: int, epoch: int, ids: NDArray[np.int64], copies: NDArray[np.int64]) -> UInt64Array:
    """Return the (n,) keys of samples; the stream of a view is drawn from them with its number."""
    return draw(draw(derive_key("augment", seed, epoch), ids), copies)


def compile_transforms(transforms: Sequence[Geometric], *, views: int = 1) -> Geometry:
    """Turn transforms, in their order of application, into one box, one mirror and one resampling.

    Accepted are `RandomResizedCrop`, or `Resize` (height, width), or `Resize` and `CenterCrop`; at most one
    `RandomHorizontalFlip` anywhere.

    Args:
        transforms: the sequence.
        views: output images of each sample, each with draws of its own.

    Raises:
        ConfigError: the sequence cannot work; the sentence says what to write instead.
    """
    for kind in GEOMETRIC:
        if sum(isinstance(item, kind) for item in transforms) > 1:
            raise ConfigError(f"{kind.__name__} stands twice in the transforms; {_ONCE[kind]}")
    count = as_integer(views)
    if count is None or count < 1:
        raise ConfigError(f"got views={views!r}; give the number of output images of each sample, at least 1")
    flip = next((item for item in transforms if isinstance(item, RandomHorizontalFlip)), None)
    crops = [item for item in transforms if isinstance(item, RandomResizedCrop | Resize | CenterCrop)]
    box, size, interpolation = _compile_box(crops)
    return Geometry(
        size=size,
        views=count,
        interpolation=interpolation,
        box=box,
        flip=flip.p if flip else 0.0,
        flip_first=flip is not None and transforms.index(flip) < transforms.index(crops[-1]),
    )


_ONCE: dict[type[Geometric], str] = {
    RandomResizedCrop: "an output image is one box of the stored image: keep one, or ask for two crops with views=2",
    Resize: "pixels are resampled once: keep the last one",
    CenterCrop: "keep the smaller one",
    RandomHorizontalFlip: "keep one: two flips of p=0.5 are one flip of p=0.5",
}


def _compile_box(
    crops: list[RandomResizedCrop | Resize | CenterCrop],
) -> tuple[RandomBoxes | ResizedBoxes, tuple[int, int], Interpolation]:
    """Return how to find the box, the output's (height, width) and the filter, for the cutting transforms in order."""
    match crops:
        case [RandomResizedCrop() as crop]:
            return RandomBoxes(scale=crop.scale, ratio=crop.ratio), _pair(crop.size), crop.interpolation
        case [Resize(max_size=int() as longest), *_]:
            raise ConfigError(
                f"Resize has max_size={longest}; images would come out smaller than a fixed size, and those cannot be "
                "one batch: drop max_size, or write Resize((height, width))"
            )
        case [Resize(size=(height, width)) as resize]:
            return ResizedBoxes(resize=(height, width), crop=None), (height, width), resize.interpolation
        case [Resize(size=side)]:
            raise ConfigError(
                f"Resize({side}) alone gives images of different sizes, which cannot be one batch: "
                f"add CenterCrop({side}) after it, or write Resize(({side}, {side}))"
            )
        case [Resize() as resize, CenterCrop() as crop]:
            height, width = _pair(crop.size)
            least_height, least_width = _pair(resize.size)
            if height > least_height or width > least_width:
                raise ConfigError(
                    f"CenterCrop({crop.size}) is larger than the images that Resize({resize.size}) gives, and borders "
                    "are not padded: crop at most what is there, or resize to more"
                )
            return ResizedBoxes(resize=resize.size, crop=(height, width)), (height, width), resize.interpolation
        case [CenterCrop() as crop]:
            raise ConfigError(
                f"CenterCrop({crop.size}) without Resize needs every stored image to be that large, and borders are "
                f"not padded: put Resize({max(_pair(crop.size))}) before it"
            )
        case [CenterCrop() as crop, Resize() as resize]:
            raise ConfigError(
                f"CenterCrop({crop.size}) stands before Resize({resize.size}): put Resize first, as evaluation does"
            )
        case []:
            raise ConfigError(
                "no transform gives all images one size: add RandomResizedCrop(224), or Resize(256) and CenterCrop(224)"
            )
        case _:
            names = " and ".join(type(crop).__name__ for crop in crops)
            raise ConfigError(
                f"{names} together would resample pixels twice; RandomResizedCrop already gives the final size from "
                "the stored image: keep it alone"
            )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
