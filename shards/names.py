"""Paths of a source: kept compactly, ordered in one way, turned into keys by one rule."""

import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feeder.shards.tar import MAX_NAME_BYTES

# A first folder like __this__ is one that webdataset and energon leave out, with all that is in it.
KEY = re.compile(r"(?!__[^/]*__/)[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")

_MAX_EXTENSION_BYTES = 16  # with its dot: room for names like ".mask.png" beside the image's own
MAX_KEY_BYTES = MAX_NAME_BYTES - _MAX_EXTENSION_BYTES
_REPLACED = re.compile(r"[^A-Za-z0-9/-]+")  # runs, those of "_" too, so that no "__" comes about
_DIGEST_DIGITS = 16  # 64 bits: a billion changed names meet with a probability of 3 %, and then the build refuses


def key_of(path: str) -> str:
    """Return the key of the file at a path relative to the source's root.

    The key is the path without its extension. If it holds a character other than ``A-Z a-z 0-9 _ - /``, takes more than
    84 bytes, or begins with a folder like ``__this__``, every run of such characters and ``_`` becomes one ``_``, a
    folder without a name goes (``/a``, ``a//b``), the name is cut to fit, and ``-`` and 16 hexadecimal digits of the
    blake2b digest of the whole path are appended: so different files keep different keys, also when nothing of their
    names could be kept. Only files that differ in nothing but a clean name's extension (``a.jpg``, ``a.png``) clash.
    ``A.jpg`` and ``a.jpg`` are two keys, as they are two names in a tar.
    """
    folder, _, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    plain = f"{folder}/{stem}" if folder else stem
    if len(plain) <= MAX_KEY_BYTES and KEY.fullmatch(plain):
        return plain
    digest = hashlib.blake2b(os.fsencode(path), digest_size=_DIGEST_DIGITS // 2).hexdigest()
    kept = "/".join(filter(None, _REPLACED.sub("_", plain).split("/")))[: MAX_KEY_BYTES - _DIGEST_DIGITS - 1]
    return f"{kept}-{digest}"


def readable(path: str) -> str:
    """Return a path as text that any file can hold: bytes that are not UTF-8 are written as ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class PathTable:
    """Many relative paths as one run of bytes and an array of positions: no object per path, and quick to pickle."""

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = bytearray()
        ends = array("q", [0])
        for path in paths:
            encoded += os.fsencode(path)
            ends.append(len(encoded))
        self._bytes = bytes(encoded)
        self._ends = ends  # an array gives a number in a third of the time that NumPy takes

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        return os.fsdecode(self.encoded(number))

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def take(self, numbers: NDArray[np.int64]) -> "PathTable":
        """Return the table of some paths, in the order of their numbers."""
        bounds = np.frombuffer(self._ends, np.int64)
        starts, ends = bounds[:-1][numbers], bounds[1:][numbers]
        taken = PathTable(())
        taken._bytes = b"".join([self._bytes[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
        taken._ends.frombytes(np.cumsum(ends - starts, dtype=np.int64).tobytes())
        return taken

    def order(self) -> NDArray[np.int64]:
        """Return the numbers of the paths in their order as bytes, ``/`` before all else: ``a/c`` before ``a-b``."""
        bounds, data = pa.py_buffer(self._ends), pa.py_buffer(self._bytes.replace(b"/", b"\0"))
        texts = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), [None, bounds, data])
        return np.asarray(pc.sort_indices(texts)).astype(np.int64)

    def encoded(self, number: int) -> bytes:
        """Return a path as the file system's bytes."""
        if not 0 <= number < len(self):
            raise IndexError(f"path {number} of {len(self)}")
        return self._bytes[self._ends[number] : self._ends[number + 1]]
