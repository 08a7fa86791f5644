"""Single samples as tensors, for transforms that run on one sample at a time."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tensor_of(pixels: NDArray[Any]) -> Any:
    """Return the (3, H, W) tensor over the memory of (H, W, 3) pixels."""
    import torch

    return torch.from_numpy(np.moveaxis(pixels, -1, 0))


def tv_image_of(pixels: NDArray[Any]) -> Any:
    """Return the ``tv_tensors.Image`` (3, H, W) over the memory of (H, W, 3) pixels.

    torchvision is not imported: who made a transform of ``torchvision.transforms.v2`` has imported its ``tv_tensors``.
    """
    return sys.modules["torchvision.tv_tensors"].Image(tensor_of(pixels))


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch; where torch was never imported, none is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def plain(value: Any) -> Any:
    """Return a tensor on the CPU, of torch's own type, where tv_tensors are subclasses, and outside of any graph."""
    import torch

    return value.as_subclass(torch.Tensor).detach().cpu()


def array_of(value: Any) -> NDArray[Any] | None:
    """Return the array over the memory of a tensor; None where there is none, as of bfloat16 and of sparse tensors."""
    try:
        array: NDArray[Any] = plain(value).numpy()
    except (TypeError, RuntimeError):
        return None
    return array


def held(array: NDArray[Any]) -> NDArray[Any] | None:
    """Return an array as batches hold it, in native byte order; None unless torch has such numbers, too."""
    if array.dtype.kind not in "biufc" or array.itemsize > (16 if array.dtype.kind == "c" else 8):
        return None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def pixels_of(value: Any) -> NDArray[Any]:
    """Return the (H, W, C) array over the memory of a (C, H, W) tensor."""
    array: NDArray[Any] = plain(value).numpy()
    return np.ascontiguousarray(np.moveaxis(array, 0, -1))
