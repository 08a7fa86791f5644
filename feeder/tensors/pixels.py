"""Pixel transforms and mixers on tensors: `feeder.pixels` computed for whole batches, on any device.

Parameters are the arrays that a transform drew on the host. The images of one operation are picked by them there, so
that their number is known and the device is never waited for; an operation is then a handful of torch's, over all its
images at once, each with its own factor. Pixels are equal to those of the CPU's kernels; where a policy interpolates
"bilinear", they may differ by 1.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feeder.errors import ConfigError
from feeder.pixels import (
    ColorJitter,
    CutMix,
    GaussianBlur,
    Mixer,
    MixUp,
    Params,
    PixelTransform,
    RandomAdjustSharpness,
    RandomApply,
    RandomAutocontrast,
    RandomChoice,
    RandomEqualize,
    RandomErasing,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
    rows_of,
)
from feeder.pixels.checks import fill_levels
from feeder.pixels.mixers import mixed_rows, targets
from feeder.pixels.policies import NUMBERS, Policy
from feeder.pixels.protocol import part_of
from feeder.pixels.warp import Matrix, matrix
from feeder.tensors import pixel_kernels as kernels
from feeder.tensors import pixel_places as places

_FACTORS: tuple[tuple[str, Callable[[Tensor, kernels.Factors], Tensor]], ...] = (
    ("brightness", kernels.brightness),
    ("contrast", kernels.contrast),
    ("saturation", kernels.saturation),
    ("hue", kernels.hue),
)


def apply(transform: PixelTransform, images: Tensor, params: Params) -> Tensor:
    """Return what becomes of images; those that are given may be overwritten.

    Args:
        transform: one of `feeder.pixels`.
        images: (n, 3, H, W) uint8, in any memory format; behind `Normalize` floats.
        params: what ``transform.draw`` returned for these images.

    Raises:
        ConfigError: a transform that has no form for tensors, or floats for one that works on levels.
    """
    function = next((function for kind, function in _FUNCTIONS if isinstance(transform, kind)), None)
    if function is None:
        raise ConfigError(f"{type(transform).__name__} has no form for tensors; let it run on the CPU")
    if images.dtype != torch.uint8 and not getattr(transform, "takes_normalized", False):
        raise ConfigError(
            f"{type(transform).__name__} got a batch of {images.dtype}; it works on uint8 pixels: put it before "
            "Normalize"
        )
    return function(transform, images, params)


def _on_rows(images: Tensor, rows: NDArray[np.int64], function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return images of which some rows, in order and known on the host, went through a function."""
    if rows.size == 0:
        return images
    if rows.size == len(images):
        return function(images)
    index = torch.from_numpy(rows).to(images.device, non_blocking=True)
    return images.index_copy_(0, index, function(images.index_select(0, index)))


def _color_jitter(transform: ColorJitter, images: Tensor, params: Params) -> Tensor:
    """At each of four steps the images divide into those whose turn it is to get another of the four factors."""
    for step in range(4):
        for number, (name, kernel) in enumerate(_FACTORS):
            if name in params:
                rows = np.flatnonzero(params["order"][:, step] == number)
                images = _on_rows(images, rows, _with_factors(kernel, params[name][rows]))
    return images


def _with_factors(
    kernel: Callable[[Tensor, kernels.Factors], Tensor], factors: kernels.Factors
) -> Callable[[Tensor], Tensor]:
    return lambda images: kernel(images, factors)


def _gaussian_blur(transform: GaussianBlur, images: Tensor, params: Params) -> Tensor:
    kernel_size: Any = transform.kernel_size
    return kernels.gaussian_blur(images, kernel_size, params["sigma"])


def _by_chance(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor, Params], Tensor]:
    """Return the function of a transform that changes all of an image or nothing, from what it does to an image."""

    def function(transform: Any, images: Tensor, params: Params) -> Tensor:
        return _on_rows(images, np.flatnonzero(params["apply"]), lambda part: change(transform, part))

    return function


def _every(value: float, images: Tensor) -> kernels.Factors:
    return np.full(len(images), value)


def _policy(transform: Policy, images: Tensor, params: Params) -> Tensor:
    """At each step the images divide by the operation that they drew."""
    for operations, magnitudes in zip(params["operation"].T, params["magnitude"].T, strict=True):
        for name, kernel in _OPERATIONS.items():
            rows = np.flatnonzero(operations == NUMBERS[name])
            images = _on_rows(images, rows, _with_factors(kernel, magnitudes[rows]))
        for names in (("ShearX", "ShearY", "Rotate"), ("TranslateX", "TranslateY")):
            rows = np.flatnonzero(np.isin(operations, [NUMBERS[name] for name in names]) & (magnitudes != 0))
            maps = [_map(operations[row], magnitudes[row], images) for row in rows]
            interpolation = "nearest" if names[0] == "TranslateX" else transform.interpolation
            images = _on_rows(images, rows, _mapped(maps, interpolation, fill_levels(transform.fill)))
    return images


def _map(operation: int, magnitude: float, images: Tensor) -> Matrix:
    height, width = images.shape[2:]
    if operation == NUMBERS["TranslateX"]:
        return (1.0, 0.0, float(-int(magnitude)), 0.0, 1.0, 0.0)
    if operation == NUMBERS["TranslateY"]:
        return (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(magnitude)))
    name = next(name for name, number in NUMBERS.items() if number == operation)
    return matrix(name, float(magnitude), height, width)


def _mapped(maps: list[Matrix], interpolation: Any, fill: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    return lambda images: places.affine(images, maps, interpolation, fill)


def _random_apply(transform: RandomApply, images: Tensor, params: Params) -> Tensor:
    rows = np.flatnonzero(params["apply"])

    def all_of_them(part: Tensor) -> Tensor:
        for index, inner in enumerate(transform.transforms):
            part = apply(inner, part, rows_of(part_of(params, index), rows))
        return part

    return _on_rows(images, rows, all_of_them)


def _random_choice(transform: RandomChoice, images: Tensor, params: Params) -> Tensor:
    for index, inner in enumerate(transform.transforms):
        rows = np.flatnonzero(params["choice"] == index)
        images = _on_rows(images, rows, _with_params(inner, rows_of(part_of(params, index), rows)))
    return images


def _with_params(transform: Any, params: Params) -> Callable[[Tensor], Tensor]:
    return lambda images: apply(transform, images, params)


_FUNCTIONS: tuple[tuple[type, Callable[[Any, Tensor, Params], Tensor]], ...] = (
    (ColorJitter, _color_jitter),
    (GaussianBlur, _gaussian_blur),
    (RandomGrayscale, _by_chance(lambda _, images: kernels.greyscale(images))),
    (RandomSolarize, _by_chance(lambda item, images: kernels.solarize(images, _every(item.threshold, images)))),
    (RandomPosterize, _by_chance(lambda item, images: kernels.posterize(images, _every(item.bits, images)))),
    (
        RandomAdjustSharpness,
        _by_chance(lambda item, images: kernels.sharpness(images, _every(item.sharpness_factor, images))),
    ),
    (RandomAutocontrast, _by_chance(lambda _, images: kernels.autocontrast(images))),
    (RandomEqualize, _by_chance(lambda _, images: kernels.equalize(images))),
    (RandomInvert, _by_chance(lambda _, images: images.bitwise_not())),
    (RandomErasing, places.erase),
    (Policy, _policy),
    (RandomApply, _random_apply),
    (RandomChoice, _random_choice),
)

# What policies do to images with a magnitude each; see `feeder.pixels.policies`.
_OPERATIONS: dict[str, Callable[[Tensor, kernels.Factors], Tensor]] = {
    "Brightness": lambda images, magnitudes: kernels.brightness(images, 1.0 + magnitudes),
    "Color": lambda images, magnitudes: kernels.saturation(images, 1.0 + magnitudes),
    "Contrast": lambda images, magnitudes: kernels.contrast(images, 1.0 + magnitudes),
    "Sharpness": lambda images, magnitudes: kernels.sharpness(images, 1.0 + magnitudes),
    "Posterize": kernels.posterize,
    "Solarize": lambda images, magnitudes: kernels.solarize(images, 255.0 * magnitudes),
    "AutoContrast": lambda images, _: kernels.autocontrast(images),
    "Equalize": lambda images, _: kernels.equalize(images),
    "Invert": lambda images, _: images.bitwise_not(),
}


def mix(
    mixer: Mixer, images: Tensor, labels: NDArray[np.int64], valid: NDArray[np.bool_], params: Params
) -> NDArray[np.float32]:
    """Mix images in place, and return (B, num_classes) targets.

    Args:
        mixer: MixUp, CutMix, or a choice of them.
        images: (B, …, 3, H, W) uint8 or floats.
        labels: (B,) labels, on the host, so that which rows are mixed is known there.
        valid: (B,) which rows are not padding, on the host.
        params: what ``mixer.draw`` returned.

    Raises:
        ConfigError: a mixer that has no form for tensors, or labels that cannot be mixed.
    """
    if isinstance(mixer, RandomChoice):
        index = int(params["choice"][0])
        chosen: Any = mixer.transforms[index]
        return mix(chosen, images, labels, valid, part_of(params, index))
    if not isinstance(mixer, MixUp | CutMix):
        raise ConfigError(f"{type(mixer).__name__} has no form for tensors; let it run on the CPU")
    rows = mixed_rows(labels, valid, mixer.num_classes, params)
    lam = float(params["lam"][0])
    if rows.size:
        own, before = (torch.from_numpy(part).to(images.device, non_blocking=True) for part in (rows, np.roll(rows, 1)))
        if isinstance(mixer, MixUp):
            blended = images.index_select(0, before) * (1.0 - lam)
            blended += images.index_select(0, own) * lam
            images.index_copy_(0, own, (blended + 0.5).to(torch.uint8) if images.dtype == torch.uint8 else blended)
        else:
            left, top, right, bottom = params["box"][0].tolist()
            box = images[..., top:bottom, left:right]
            box.index_copy_(0, own, box.index_select(0, before))
    return targets(labels, rows, mixer.num_classes, lam)
