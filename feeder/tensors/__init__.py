"""The only folder that imports torch: everything here works, in its plain form, without it."""

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from feeder.memory import SharedMemory
from feeder.optional import load

__all__ = [
    "AVAILABLE",
    "Deferred",
    "Feed",
    "IterableDataset",
    "deferred",
    "from_arrays",
    "limit_threads",
    "open_feed",
    "process_group",
    "require",
    "worker",
]

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


def worker() -> tuple[int, int]:
    """Return (id, number of workers) of the DataLoader worker that this process is; (0, 0) in any other process."""
    if not AVAILABLE:
        return 0, 0
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return (0, 0) if info is None else (info.id, info.num_workers)


class Deferred(Protocol):
    """What remains to be done to a batch on its device; see `feeder.tensors.operations`."""

    def run(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with it done."""
        ...


def deferred(**parts: Any) -> Deferred:
    """Return what remains to be done to a batch, of its parts."""
    from feeder.tensors.operations import Deferred as Operations

    return Operations(**parts)


def limit_threads() -> None:
    """In a worker process: let torch use one thread an operation, if it is loaded.

    The threads of its pool do not survive a fork, and a pool for each decode thread would be too many.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


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


class Feed(Protocol):
    """Brings batches to where they are used; one thread at a time uses it."""

    overlaps: bool  # whether batches travel by themselves, so that the next may be started before one is handed over

    def prepare(self, memory: SharedMemory) -> None:
        """Make memory ready to be copied from; called once, when it was mapped."""

    def start(self, batch: dict[str, Any]) -> Any:
        """Start a batch on its way."""

    def finish(self, started: Any) -> dict[str, Any]:
        """Return the batch, ready to be used."""
        ...

    def close(self) -> None:
        """Wait for what is under way."""


class _HostFeed:
    """Leaves batches where they are."""

    overlaps = False

    def prepare(self, memory: SharedMemory) -> None: ...

    def start(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def finish(self, started: dict[str, Any]) -> dict[str, Any]:
        return started

    def close(self) -> None: ...


def open_feed(device: str | None) -> Feed:
    """Return what brings batches to a device: "cuda" or "cuda:1"; to nowhere for "cpu" and None.

    Raises:
        ConfigError: there is no such device.
    """
    if device is None or device in ("cpu", "cpu:0"):  # Accelerate says the latter
        return _HostFeed()
    from feeder.tensors.devices import CudaFeed

    return CudaFeed.open(device)
