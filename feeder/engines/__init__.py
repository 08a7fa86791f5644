"""Engines turn encoded bytes, a box and a flip into pixels.

**The pixel contract.** Pixels are those of the reference engine, `feeder.engines.pillow`, to ±1 of 255:

- *Conversion.* Grey, 1-bit and palette images become RGB; alpha is dropped, not composited; CMYK and YCCK become RGB by
  Pillow's formula, without colour profiles; 16 bits keep their high byte; of an animation the first frame counts. EXIF
  orientation is ignored: boxes and sizes are those of the stored pixels. Floating-point pixels are refused.
- *Resampling.* Pillow's convolution in two passes, each rounded to 8 bits; bilinear and bicubic (a = −0.5) widen with
  the reduction (antialiased); nearest takes one pixel, for masks. In a clipped window weights outside the box are
  dropped and the rest rescaled to 1, as in ``crop().resize()``; otherwise they reach beyond it: the window is the very
  crop of the resized whole image, or ``resize(box=)`` where that image would exceed 2**24 pixels.
- *Mirror.* After resampling.

±1 covers decoders' and filters' vector instructions and the order of rounding. Bicubic goes further in a few pixels: 2
in one of a million between pillow-simd and Pillow 12, up to 12 in one of ten thousand between Pillow 12 and 13, which
swapped the passes for some shapes and clips their overshoot in between. A change beyond these, in pixels or in the
boxes of `feeder.windows`, increases `PIXEL_CONTRACT`, which states keep.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError, MissingPackageError
from feeder.optional import load
from feeder.windows import Windows

PIXEL_CONTRACT = 1


class Engine(Protocol):
    """What decodes, cuts and resamples.

    An engine has no random generator, and no state that a call leaves behind: the same arguments give the same pixels.
    It may be called from many threads at once and releases the GIL while it decodes; it can be pickled and survives
    fork.
    """

    @property
    def name(self) -> str:
        """The name by which `open_engine` finds it."""

    def decode(
        self, images: Sequence[bytes], windows: Sequence[Windows], out: Sequence[NDArray[np.uint8]]
    ) -> dict[int, str]:
        """Decode n images, each once, and write their windows.

        Args:
            images: n encoded files.
            windows: what to cut, one entry for each size of output; see `feeder.windows.Windows`.
            out: for each of these (n, V, H, W, 3) uint8, C-contiguous or not; every element is written.

        Returns:
            By index, in order, why images could not be decoded: one clause that fits after the image's name, such as
            "cannot be decoded as JPEG: image file is truncated". It depends on the bytes alone. Their rows are zeros.

        Raises:
            ConfigError: this installation lacks what the image's format needs, so that another machine would succeed.
            ValueError: shapes or types that do not fit.
        """


_ENGINES = {"pillow": ("feeder.engines.pillow", "PillowEngine")}
_FASTEST_FIRST: tuple[str, ...] = ("pillow",)  # CPU engines that "auto" tries; engines on a GPU are asked for by name


def open_engine(name: str = "auto") -> Engine:
    """Return an engine; its ``name`` says which one.

    Args:
        name: ``"auto"`` for the fastest CPU engine that works here, or an engine's name.

    Raises:
        ConfigError: there is no engine of that name.
        MissingPackageError: the engine needs a package that is not installed.
    """
    if name == "auto":
        for candidate in _FASTEST_FIRST[:-1]:
            try:
                return open_engine(candidate)
            except MissingPackageError:
                continue
        return open_engine(_FASTEST_FIRST[-1])
    if name not in _ENGINES:
        raise ConfigError(f"engine {name!r} does not exist; choose one of: {', '.join(('auto', *_ENGINES))}")
    load(name)  # says what to install where the package is missing
    module, factory = _ENGINES[name]
    return cast(Engine, getattr(import_module(module), factory)())


def check_arguments(images: Sequence[bytes], windows: Sequence[Windows], out: Sequence[NDArray[np.uint8]]) -> None:
    """Raise ValueError unless images, windows and out fit together; engines call it first."""
    if len(windows) != len(out):
        raise ValueError(f"got {len(windows)} windows and {len(out)} arrays; expected one array for each of them")
    for one, array in zip(windows, out, strict=True):
        _check_group(images, one, array)


def _check_group(images: Sequence[bytes], windows: Windows, out: NDArray[np.uint8]) -> None:
    count, views = windows.flips.shape
    if len(images) != count or windows.sizes.shape != (count, 2) or windows.boxes.shape != (count, views, 4):
        raise ValueError(
            f"got {len(images)} images, sizes of shape {windows.sizes.shape}, boxes of shape {windows.boxes.shape} and "
            f"flips of shape {windows.flips.shape}; expected n, (n, 2), (n, V, 4) and (n, V)"
        )
    if out.dtype != np.uint8 or out.ndim != 5 or out.shape[:2] != (count, views) or out.shape[4] != 3:
        raise ValueError(
            f"out is {out.dtype} of shape {out.shape}; expected uint8 of shape ({count}, {views}, H, W, 3)"
        )
