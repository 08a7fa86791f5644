"""Transforms that the field uses under one name, and their spelling for commands."""

from collections.abc import Callable
from typing import Any

from feeder.errors import ConfigError
from feeder.pixels import ColorJitter, GaussianBlur, RandomApply, RandomGrayscale, RandomSolarize
from feeder.program import Views
from feeder.transforms import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, Transform
from feeder.windows import Interpolation

RGB = tuple[float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of R, G, B in ImageNet's training set, where 1.0 is white
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images that OpenAI trained CLIP on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_DINO_GLOBAL, _DINO_LOCAL = (0.4, 1.0), (0.05, 0.4)  # parts of an image's area, its arguments' defaults
_RESIZE_PER_CROP = 256 / 224  # the evaluation of AlexNet and ResNet: shorter side 256, centre 224


def imagenet_train(
    size: int = 224, *, interpolation: Interpolation = "bilinear", normalize: bool = False
) -> tuple[Transform, ...]:
    """Return the usual training transforms: a random resized crop and a flip.

    Args:
        size: side of the output in pixels.
        interpolation: the filter.
        normalize: whether to end with ImageNet's mean and standard deviation; batches are uint8 without it.
    """
    return RandomResizedCrop(size, interpolation=interpolation), RandomHorizontalFlip(), *_normalize(normalize)


def imagenet_eval(
    size: int = 224, *, resize: int | None = None, interpolation: Interpolation = "bilinear", normalize: bool = False
) -> tuple[Transform, ...]:
    """Return the usual evaluation transforms: resize the shorter side, cut the centre.

    Args:
        size: side of the output in pixels.
        resize: length of the shorter side before the crop; ``size`` × 256 / 224 by default.
        interpolation: the filter.
        normalize: whether to end with ImageNet's mean and standard deviation; batches are uint8 without it.
    """
    shorter = round(size * _RESIZE_PER_CROP) if resize is None else resize
    return Resize(shorter, interpolation=interpolation), CenterCrop(size), *_normalize(normalize)


def clip(
    size: int = 224, *, interpolation: Interpolation = "bicubic", normalize: bool = False
) -> tuple[Transform, ...]:
    """Return the transforms that CLIP models are trained with: a random crop of nearly the whole image, and no flip.

    Source: mlfoundations/open_clip, ``image_transform(is_train=True)``, with the defaults of its ``AugmentationCfg``.

    Args:
        size: side of the output in pixels.
        interpolation: the filter.
        normalize: whether to end with OpenAI's mean and standard deviation; batches are uint8 without it.
    """
    crop = RandomResizedCrop(size, scale=(0.9, 1.0), interpolation=interpolation)
    return crop, *_normalize(normalize, CLIP_MEAN, CLIP_STD)


def clip_eval(
    size: int = 224, *, interpolation: Interpolation = "bicubic", normalize: bool = False
) -> tuple[Transform, ...]:
    """Return the transforms that CLIP models are evaluated with: the shorter side to ``size``, then the centre.

    Source: mlfoundations/open_clip, ``image_transform(is_train=False)``; arguments as for `clip`.
    """
    steps = Resize(size, interpolation=interpolation), CenterCrop(size)
    return *steps, *_normalize(normalize, CLIP_MEAN, CLIP_STD)


def dino(
    global_size: int = 224,
    local_size: int = 96,
    local_views: int = 8,
    *,
    interpolation: Interpolation = "bicubic",
    normalize: bool = False,
) -> Views:
    """Return DINO's views of each image: "global_1", "global_2" and ``local_views`` under "local".

    The two global views are entries of their own since they differ: the first is always blurred; the second is blurred
    once in ten times and solarised once in five. Concatenate them for the teacher.

    Source: facebookresearch/dino, ``DataAugmentationDINO``. Its blur is Pillow's, of a radius of 0.1 to 2; here it is
    the Gaussian of that standard deviation on 9 x 9 pixels, as in DINOv2. What DINOv2 does otherwise: areas of 0.32 to
    1 and 0.05 to 0.32, and, since its ``GaussianBlur(p)`` hands on 1 - p, a first view that is never blurred and a
    second that is nine times in ten.

    Args:
        global_size: side of the global views in pixels.
        local_size: side of the local ones.
        local_views: how many of these.
        interpolation: the filter.
        normalize: whether to end with ImageNet's mean and standard deviation; batches are uint8 without it.
    """

    def view(size: int, scale: tuple[float, float], *last: Any) -> list[Any]:
        return [
            RandomResizedCrop(size, scale=scale, interpolation=interpolation),
            RandomHorizontalFlip(),
            RandomApply([ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
            RandomGrayscale(p=0.2),
            *last,
            *_normalize(normalize),
        ]

    def blur(p: float) -> RandomApply:
        return RandomApply([GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=p)

    return Views(
        {
            "global_1": (view(global_size, _DINO_GLOBAL, blur(1.0)), 1),
            "global_2": (view(global_size, _DINO_GLOBAL, blur(0.1), RandomSolarize(threshold=128, p=0.2)), 1),
            "local": (view(local_size, _DINO_LOCAL, blur(0.5)), local_views),
        }
    )


def _normalize(wanted: bool, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD) -> tuple[Transform, ...]:
    return (Normalize(mean, std),) if wanted else ()


_PRESETS: dict[str, Callable[..., tuple[Transform, ...] | Views]] = {
    "imagenet-train": imagenet_train,
    "imagenet-eval": imagenet_eval,
    "clip": clip,
    "clip-eval": clip_eval,
    "dino": dino,
}


def parse(text: str) -> tuple[Transform, ...] | Views:
    """Return the transforms spelt ``NAME[:SIZE[:INTERPOLATION]]``, such as ``imagenet-train:224:bicubic``.

    Raises:
        ConfigError: an unknown name, or a size or filter that cannot be.
    """
    name, *options = text.split(":")
    if name not in _PRESETS or len(options) > 2:
        known = ", ".join(_PRESETS)
        raise ConfigError(
            f"transform {text!r} is not known; write NAME[:SIZE[:INTERPOLATION]], where NAME is one of {known}"
        )
    preset = _PRESETS[name]
    if not options:
        return preset()
    if not options[0].isdecimal():
        raise ConfigError(f"transform {text!r} has the size {options[0]!r}; write a number of pixels, as in {name}:224")
    size = int(options[0])
    return preset(size, interpolation=options[1]) if len(options) == 2 else preset(size)
