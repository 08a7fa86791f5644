"""Batches on their way to a GPU: from pinned memory, on a stream of their own, in order with the work that uses them.

1. A batch's tensors are copied on a side stream, so that the copy runs beside the training step before it.
2. When the batch is handed over, the stream that the caller works on waits for the copy (not the processor), and each
   tensor is recorded as used there, so that the allocator gives its memory to nobody before.
3. The host memory is let go when the copy has ended, never before: a worker would overwrite it.

If the code disagrees with these lines, the code is wrong.
"""

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from feeder.errors import ConfigError
from feeder.memory import SharedMemory

Batch = dict[str, Any]

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices of the process

_log = logging.getLogger("feeder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A batch that is being copied; ``done`` is an event on the side stream."""

    batch: Batch
    done: Any


class CudaFeed:
    """Copies batches to a GPU.

    Args:
        device: with its number.
        cuda: `torch.cuda`, or what stands in for it.
    """

    overlaps = True

    def __init__(self, device: torch.device, cuda: Any) -> None:
        self._device = device
        self._cuda = cuda
        self._stream = cuda.Stream(device)
        self._under_way: deque[tuple[Any, list[torch.Tensor]]] = deque()  # the end of a copy, and what is copied

    @classmethod
    def open(cls, name: str) -> "CudaFeed":
        """Return the feed of a device, "cuda" (the current one) or "cuda:1"; ConfigError where there is none."""
        try:
            device = torch.device(name)
        except RuntimeError:
            device = None
        if device is None or device.type != "cuda":
            raise ConfigError(f"device is {name!r}; it must be None, 'cpu', 'cuda' or 'cuda:N'")
        if not torch.cuda.is_available():
            raise ConfigError(f"device is {name!r}, but torch {torch.__version__} sees no GPU; leave device out")
        index = torch.cuda.current_device() if device.index is None else device.index
        return cls(torch.device("cuda", index), torch.cuda)

    def prepare(self, memory: SharedMemory) -> None:
        """Pin memory once, for as long as it is mapped, so that copies from it need no other copy before."""
        runtime = self._cuda.cudart()
        with self._cuda.stream(self._stream):  # on this device, though another may be the current one
            registered = runtime.cudaHostRegister(memory.address, memory.size, _PORTABLE)
        if registered != runtime.cudaError.success:
            _log.warning(
                "memory of %d bytes for a batch cannot be pinned, so it is copied once more on its way to %s",
                *(memory.size, self._device),
            )
            return
        memory.before_unmapping = lambda address=memory.address: runtime.cudaHostUnregister(address)

    def start(self, batch: Batch) -> Copy:
        """Begin to copy a batch's tensors."""
        self._let_go()
        hosts = []
        with self._cuda.stream(self._stream):
            copied = dict(batch)
            for name, value in batch.items():
                if isinstance(value, torch.Tensor):
                    # small tensors are not in prepared memory; torch keeps some of its own pinned for them
                    host = value if value.is_pinned() else value.pin_memory()
                    hosts.append(host)
                    copied[name] = host.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        self._under_way.append((done, hosts))
        return Copy(batch=copied, done=done)

    def finish(self, started: Copy) -> Batch:
        """Return the batch, for work on the current stream of this thread."""
        current = self._cuda.current_stream(self._device)
        current.wait_event(started.done)
        for value in started.batch.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
        self._let_go()
        return started.batch

    def close(self) -> None:
        """Wait for the copies that are under way."""
        while self._under_way:
            done, _ = self._under_way.popleft()
            done.synchronize()

    def _let_go(self) -> None:
        """Forget the host memory of copies that have ended."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
