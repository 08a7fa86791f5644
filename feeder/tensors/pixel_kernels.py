"""Kernels of pixel operations on (n, 3, H, W) uint8 tensors, each image with a factor of its own.

They are `feeder.pixels.kernels` step by step, one rounding after the other, so that pixels are equal on every device:
nothing here fuses what is rounded twice there. Factors come as (n,) arrays of the host. None waits for the device.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feeder.pixels.kernels import GREY_WEIGHTS, HUE_BITS, blur_weights, hue_shift, least_solarized

Factors = NDArray[np.float64]


def scalars(values: Any, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n, 1, 1, 1) numbers beside the images."""
    return torch.as_tensor(np.asarray(values), dtype=dtype).to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _floats(values: Factors, images: Tensor) -> Tensor:
    return scalars(values.astype(np.float32), images, torch.float32)


def _levels(floats: Tensor) -> Tensor:
    return floats.clamp_(0, 255).to(torch.uint8)


def _blended(images: Tensor, factors: Factors, other: Tensor) -> Tensor:
    return _levels((images * _floats(factors, images)).add_(other))


def _grey(images: Tensor) -> Tensor:
    """Return (n, 1, H, W) grey images in whole numbers, as floats."""
    red, green, blue = (images[:, channel : channel + 1] for channel in range(3))
    grey = red * GREY_WEIGHTS[0]
    grey += green * GREY_WEIGHTS[1]
    grey += blue * GREY_WEIGHTS[2]
    return grey.floor_()


def brightness(images: Tensor, factors: Factors) -> Tensor:
    return _levels(images * _floats(factors, images))


def contrast(images: Tensor, factors: Factors) -> Tensor:
    grey = _grey(images)
    total = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64).to(torch.float32)
    mean = total / (grey.shape[2] * grey.shape[3])
    return _blended(images, factors, _floats(1.0 - factors, images) * mean)


def saturation(images: Tensor, factors: Factors) -> Tensor:
    return _blended(images, factors, _grey(images).mul_(_floats(1.0 - factors, images)))


def greyscale(images: Tensor) -> Tensor:
    return _grey(images).to(torch.uint8).expand_as(images)


def hue(images: Tensor, factors: Factors) -> Tensor:
    """See `feeder.pixels.kernels.hue`: channels are permuted, then all three turned by at most a sixth."""
    shifts = [hue_shift(float(factor)) for factor in factors]
    order = np.array([(0, 2, 1) if mirrored else (0, 1, 2) for _, mirrored, _ in shifts])
    source = (np.arange(3) - np.array([thirds for thirds, _, _ in shifts])[:, None]) % 3
    # Channel c of the result is what was made of channel x = source[c], which stands at the place of x in the order.
    place = np.take_along_axis(order, source, axis=1)
    rest = scalars(np.array([rest * (1 << HUE_BITS) for _, _, rest in shifts], np.float32), images, torch.float32)

    pixels = _permuted(images, order).to(torch.int16)
    low, high = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    shift = ((high - low) * rest).round_().to(torch.int16)
    lowest = low == pixels
    low, high = low << HUE_BITS, high << HUE_BITS
    x, y, z = pixels, pixels.roll(-1, 1), lowest.roll(-2, 1)
    turned = (x - y) << HUE_BITS
    turned += torch.where(z, high - shift, low + shift)
    turned = torch.minimum(torch.maximum(turned, low), high)
    turned += turned >> 8
    return _permuted((turned >> HUE_BITS).to(torch.uint8), place)


def _permuted(images: Tensor, channels: NDArray[np.int64]) -> Tensor:
    """Return images whose channel c is channel ``channels[i, c]`` of image i."""
    index = torch.from_numpy(channels).to(images.device, non_blocking=True)
    return images[torch.arange(len(images), device=images.device)[:, None], index]


def solarize(images: Tensor, thresholds: Factors) -> Tensor:
    least = scalars([least_solarized(threshold) for threshold in thresholds], images, torch.uint8)
    return torch.where(images >= least, images.bitwise_not(), images)


def posterize(images: Tensor, bits: Factors) -> Tensor:
    return images & scalars([0xFF & ~(0xFF >> int(kept)) for kept in bits], images, torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    least, greatest = (edge.to(torch.float32) for edge in torch.aminmax(images.flatten(2), dim=2))
    flat = (least == greatest)[..., None, None]
    scale = ((greatest - least) * np.float32(1 / 255).item())[..., None, None]
    stretched = (images - least[..., None, None]).div_(scale.masked_fill(flat, 1.0))
    return torch.where(flat, images, _levels(stretched))


def equalize(images: Tensor) -> Tensor:
    flat = images.flatten(2).to(torch.int64)
    ones = torch.ones((), dtype=torch.int32, device=images.device).expand_as(flat)
    counts = torch.zeros((*flat.shape[:2], 256), dtype=torch.int32, device=images.device).scatter_add_(2, flat, ones)
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last).div_(255, rounding_mode="floor")
    before = counts.cumsum(2, dtype=torch.int32) - counts
    divisor = step.clamp(min=1)
    table = (before + divisor // 2).div_(divisor, rounding_mode="floor").clamp_(0, 255).to(torch.uint8)
    return torch.where(step[..., None] > 0, table.gather(2, flat).view_as(images), images)


def sharpness(images: Tensor, factors: Factors) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    pixels = images.to(torch.float32)
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1]
    rows += pixels[:, :, 2:]
    inner = pixels[:, :, 1:-1, 1:-1]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth += rows[..., 2:]
    smooth += inner * 4
    smooth = smooth.mul_(np.float32(1 / 13).item()).round_()
    images[:, :, 1:-1, 1:-1] = _levels((smooth - inner).mul_(_floats(1.0 - factors, images)).add_(inner))
    return images


def gaussian_blur(images: Tensor, kernel_size: tuple[int, int], sigmas: Factors) -> Tensor:
    across, down = (_blur_weights(size, sigmas, images) for size in kernel_size)
    left, above = len(across) - 1, len(down) - 1
    padded = torch.nn.functional.pad(images.to(torch.float32), (left, left, above, above), mode="reflect")
    return _weighted(_weighted(padded, down, 2), across, 3).round_().to(torch.uint8)


def _blur_weights(size: int, sigmas: Factors, images: Tensor) -> list[Tensor]:
    """Return the (n, 1, 1, 1) weights at each distance from the middle; 0 beyond an image's own radius."""
    weights = [blur_weights(size, float(sigma)) for sigma in sigmas]
    table = np.zeros((max(row.size for row in weights), len(weights)))
    for image, row in enumerate(weights):
        table[: row.size, image] = row
    return [_floats(column, images) for column in table]


def _weighted(padded: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    radius = len(weights) - 1
    length = padded.shape[dim] - 2 * radius
    total = padded.narrow(dim, radius, length) * weights[0]
    for distance in range(1, radius + 1):
        pair = padded.narrow(dim, radius - distance, length) + padded.narrow(dim, radius + distance, length)
        total += pair.mul_(weights[distance])
    return total
