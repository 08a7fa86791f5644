"""Memory without a name that processes share: passed on as a descriptor, mapped by each, gone with the last of them.

It counts as memory of the processes that use it, not against the size of ``/dev/shm``, and a crash leaves nothing
behind. Mappings are made by the C library itself: those of Python 3.11 and 3.12 keep a descriptor each, and a list of a
thousand batches would exhaust what a process may have.
"""

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_library = ctypes.CDLL(None, use_errno=True)
_library.mmap.restype = ctypes.c_void_p
_library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
_library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def anonymous_file(name: str, size: int) -> int:
    """Return the descriptor of a file of ``size`` zeros that has no name; ``name`` is for those who look into /proc."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


class SharedMemory:
    """The bytes of an anonymous file, mapped for reading and writing for as long as this object lives.

    Args:
        descriptor: of the file; may be closed afterwards.
        size: bytes to map.

    Attributes:
        before_unmapping: called, if it is set, at the end; not in a process that was forked meanwhile.

    Raises:
        MemoryError: the process may not map so much.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self.address = 0
        self.before_unmapping: Callable[[], object] | None = None
        self._owner = os.getpid()
        address = _library.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            raise MemoryError(f"mapping {size} bytes of shared memory failed: {os.strerror(ctypes.get_errno())}")
        self.address = int(address)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.address and not is_finalizing():  # at the end others may still look; the kernel unmaps it then
            if self.before_unmapping is not None and self._owner == os.getpid():
                self.before_unmapping()
            _library.munmap(self.address, self.size)

    def array(self) -> NDArray[np.uint8]:
        """Return the bytes as an array, which does not keep the mapping alive: its user holds this object, too."""
        memory = (ctypes.c_uint8 * self.size).from_address(self.address)
        return np.frombuffer(memoryview(memory), np.uint8)
