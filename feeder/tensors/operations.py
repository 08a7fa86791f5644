"""Operations on pixels that were left to the device: run there on a whole batch, with what was drawn on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feeder.pixels import Params
from feeder.tensors import pixels
from feeder.transforms import Normalize

if TYPE_CHECKING:
    from feeder.program import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """What remains to be done to a batch once it is on its device.

    Attributes:
        views: the groups of its images.
        params: what was drawn, by group and number of the operation, (B, V, …) each.
        mixing: what was drawn for the mixer, or None.
        label, valid: (B,) of the batch, on the host.
    """

    views: "Sequence[View]"
    params: Mapping[str, Mapping[int, Params]]
    mixing: Params | None
    label: NDArray[np.int64]
    valid: NDArray[np.bool_]

    def run(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch, of tensors, with the operations run; its images may be overwritten."""
        batch = dict(batch)
        for view in self.views:
            images = batch[view.name]
            drawn = self.params.get(view.name, {})
            done = self._operated(view, images.reshape(-1, *images.shape[-3:]), drawn)
            batch[view.name] = done.reshape(images.shape)
            if view.mixer is not None and self.mixing is not None:
                targets = pixels.mix(view.mixer, batch[view.name], self.label, self.valid, self.mixing)
                batch["label"] = torch.from_numpy(targets).to(done.device, non_blocking=True)
        return batch

    def _operated(self, view: "View", images: Tensor, drawn: Mapping[int, Params]) -> Tensor:
        """Return (B·V, 3, H, W) images behind a group's operations; rows that are not valid are zeros again."""
        if not self.valid.any():  # all are zeros, for which nothing was drawn
            return images.float() if view.dtype is np.float32 else images
        for number, operation in enumerate(view.operations):
            transform: Any = operation.transform
            if isinstance(transform, Normalize):
                images = _normalized(transform, images)
            else:
                flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in drawn[number].items()}
                images = pixels.apply(transform, images, flat)
        padded = np.flatnonzero(~np.repeat(self.valid, view.count))
        if padded.size:
            images.index_fill_(0, torch.from_numpy(padded).to(images.device, non_blocking=True), 0)
        return images


def _normalized(transform: Normalize, images: Tensor) -> Tensor:
    """Return float32 images, (n, 3, H, W) as they were given, normalised as `Normalize.apply` does."""
    scale, shift = (torch.from_numpy(part).to(images.device, non_blocking=True) for part in transform.factors)
    return images.float().mul_(scale[:, None, None]).add_(shift[:, None, None])
