"""The only folder that imports torch: everything here works, in its plain form, without it."""

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from feeder.optional import load

__all__ = ["AVAILABLE", "IterableDataset", "data_loader", "from_arrays", "process_group", "require", "worker"]

AVAILABLE = True  # whether torch can be imported

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset
else:
    try:
        from torch.utils.data import IterableDataset
    except (ImportError, OSError):  # OSError: one of its libraries is missing
        AVAILABLE = False

        class IterableDataset:
            """Stands in for torch's class where torch is not installed."""

            def __class_getitem__(cls, item: Any) -> type:
                return cls


def require() -> None:
    """Raise MissingPackageError unless torch can be imported."""
    load("torch")


def data_loader(dataset: Any, *, workers: int, start_method: str | None = None) -> Any:
    """Return a DataLoader that carries the whole batches of ``dataset``; its workers stay from epoch to epoch.

    Raises:
        MissingPackageError: torch cannot be imported.
    """
    return load("torch").utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=start_method, persistent_workers=True
    )


def worker() -> tuple[int, int]:
    """Return (id, number of workers) of the DataLoader worker that this process is; (0, 0) in any other process."""
    if not AVAILABLE:
        return 0, 0
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return (0, 0) if info is None else (info.id, info.num_workers)


def process_group() -> dict[str, int] | None:
    """Return rank and world size of torch.distributed if the process has initialised it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}


def from_arrays(batch: dict[str, Any], images: Collection[str]) -> dict[str, Any]:
    """Return the batch with tensors over the same memory in place of arrays.

    Args:
        batch: entries by name.
        images: names of the entries whose last axis is colour: (…, H, W, 3) becomes (…, 3, H, W), a view, in torch's
            channels_last memory format where it is (B, 3, H, W).
    """
    import torch

    tensors: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()
    }
    for name in images:
        tensors[name] = tensors[name].movedim(-1, -3)
    return tensors
