"""What pixel operations do with places: affine maps, and boxes that are overwritten, on (n, 3, H, W) tensors."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feeder.keyed import INCREMENT, MULTIPLIERS, SHIFTS
from feeder.pixels.checks import Interpolation
from feeder.pixels.erasing import RandomErasing, erased_value
from feeder.pixels.noise import LEVEL_BITS, NORMAL_BITS, normal_quantiles
from feeder.pixels.protocol import Params
from feeder.pixels.warp import Matrix
from feeder.tensors.pixel_kernels import scalars

_FIXED = 16  # fractional bits of Pillow's places for "nearest"


def affine(images: Tensor, matrices: list[Matrix], interpolation: Interpolation, fill: tuple[int, int, int]) -> Tensor:
    """Map each image by its own matrix, as Pillow does; see `feeder.pixels.warp`."""
    height, width = images.shape[2:]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)[:, None]
    if interpolation == "nearest":
        fixed = [[int(np.floor(value * 65536.0 + 0.5)) for value in _from_centres(matrix)] for matrix in matrices]
        a, b, c, d, e, f = scalars(fixed, images, torch.int32).view(-1, 6, 1, 1).unbind(1)
        x, y = x.to(torch.int32), y.to(torch.int32)
        column, row = (a * x + b * y + c) >> _FIXED, (d * x + e * y + f) >> _FIXED
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        mapped = _at(images, row.clamp(0, height - 1), column.clamp(0, width - 1))
    else:
        centred = [_from_centres(matrix) for matrix in matrices]
        a, b, c, d, e, f = scalars(centred, images, torch.float32).view(-1, 6, 1, 1).unbind(1)
        across, down = a * x + b * y + c, d * x + e * y + f
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        mapped = _between(images, across - 0.5, down - 0.5)
    outside = torch.tensor(fill, dtype=torch.uint8).to(images.device, non_blocking=True).view(1, 3, 1, 1)
    return torch.where(inside[:, None], mapped, outside)


def _from_centres(matrix: Matrix) -> Matrix:
    """Return a matrix that takes whole numbers to where the centres of those pixels come from."""
    a, b, c, d, e, f = matrix
    return a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5


def _at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at (n, H, W) rows and columns."""
    index = (rows.to(torch.int64) * images.shape[3] + columns)[:, None].flatten(2).expand(-1, 3, -1)
    return images.flatten(2).gather(2, index).view_as(images)


def _between(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Return pixels between four, the border repeated; cut to whole levels, as Pillow does."""
    height, width = images.shape[2:]
    column, row = across.floor(), down.floor()
    dx, dy = (across - column)[:, None], (down - row)[:, None]
    lines = []
    for below in (0, 1):
        y = (row + below).clamp(0, height - 1).to(torch.int64)
        left, right = (
            _at(images, y, (column + beside).clamp(0, width - 1).to(torch.int64)).to(torch.float32) for beside in (0, 1)
        )
        lines.append(left + (right - left) * dx)
    return (lines[0] + (lines[1] - lines[0]) * dy).to(torch.uint8)


def erase(transform: RandomErasing, images: Tensor, params: Params) -> Tensor:
    """Overwrite the boxes of images, in place: their sizes are known on the host, so each is a slice."""
    levels = images.dtype == torch.uint8
    random = transform.value == "random"
    value = None if random else torch.from_numpy(np.atleast_1d(erased_value(transform.value, levels)))
    if value is not None:
        value = value.to(images.device, images.dtype, non_blocking=True).view(-1, 1, 1)
    for row in np.flatnonzero(params["box"][:, 2]):
        top, left, height, width = params["box"][row].tolist()
        box = images[row, :, top : top + height, left : left + width]
        box.copy_(_noise(int(params["noise"][row]), box, top, left, images.shape[3]) if value is None else value)
    return images


def _noise(key: int, box: Tensor, top: int, left: int, image_width: int) -> Tensor:
    """Return noise of `feeder.pixels.noise` for a (3, h, w) box: its draws, in signed integers that wrap."""
    _, height, width = box.shape
    rows = torch.arange(top, top + height, device=box.device)[:, None] * image_width
    places = (rows + torch.arange(left, left + width, device=box.device)) * 3
    channels = torch.arange(1, 4, device=box.device)[:, None, None]  # a counter is one more than its number
    state = (places + channels).mul_(_signed(INCREMENT)).add_(_signed(key))
    for shift, factor in zip(SHIFTS, (*MULTIPLIERS, None), strict=True):
        state ^= _shifted(state, shift)
        if factor is not None:
            state *= _signed(factor)
    if box.dtype == torch.uint8:
        return _shifted(state, 64 - LEVEL_BITS)
    return _quantiles(box.device)[_shifted(state, 64 - NORMAL_BITS)]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Return a shift to the right that fills with zeros, as on unsigned integers."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


@lru_cache(maxsize=8)
def _quantiles(device: Any) -> Tensor:
    return torch.from_numpy(normal_quantiles()).to(device)
