"""Synthetic photographs: JPEGs that cost a decoder and a disk what real ones cost, made from a seed.

Real photographs have an amplitude spectrum near 1/f (Field, "Relations between the statistics of natural images and the
response properties of cortical cells", JOSA A 1987), smooth light, objects with edges, and the sensor's grain. Each
picture here is laid out of the same parts: crops of a few large noise textures made once, a gradient of light, shaded
shapes with a texture of their own, and grain; composed in YCbCr, which JPEG stores. Sizes scatter around 500×375 pixels
and 100 kB, one picture in fifty is grey, and the class decides the colours. The same seed and number give the same
picture on one machine; other versions of NumPy or of the JPEG encoder may change bytes.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from feeder.interrupts import workers_ignore_interrupts
from feeder.keyed import derive_key, uniform
from feeder.tools.console import Advance

FloatImage = NDArray[np.float32]

CLASSES = 20
_RECIPE_VERSION = 1  # of the pictures: raised when they change, so that old folders are made anew
_RECIPE_FILE = "recipe.json"
_TEXTURE_SIDE = 1024  # pixels; pictures are crops of at most 640
_SPECTRA = (0.85, 1.0, 1.2, 1.6)  # exponents of 1/f, from bark and grass to clouds
_BATCH = 25  # pictures a task: long enough to hide its dispatch, short enough for a steady progress bar
_FEW = 2 * _BATCH  # up to here one process is done before others have started


class Studio:
    """The noise textures of one seed, and the pictures made of them; read-only after construction."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.textures = [_noise(derive_key("photographs.texture", seed, n), power) for n, power in enumerate(_SPECTRA)]
        self.grain = _noise(derive_key("photographs.grain", seed), 0.0)

    def jpeg(self, number: int) -> bytes:
        """Return picture ``number``, encoded; its class is ``number % CLASSES``."""
        draws = _Draws(derive_key("photographs.picture", self.seed, number))
        picture = self.picture(number, draws)
        grey = draws.chance(0.02)
        encoded = io.BytesIO()
        (picture.getchannel(0) if grey else picture).save(encoded, "JPEG", quality=draws.whole(90, 96))
        return encoded.getvalue()

    def picture(self, number: int, draws: "_Draws") -> Image.Image:
        """Return picture ``number`` in mode YCbCr, (H, W, 3) uint8 inside."""
        width, height = draws.size()
        palette = _Draws(derive_key("photographs.class", self.seed, number % CLASSES))
        y, x = np.ogrid[-1.0 : 1.0 : height * 1j, -1.0 : 1.0 : width * 1j]
        x, y = x.astype(np.float32), y.astype(np.float32)
        # The ground: light from one side, a texture, and two faint textures of colour.
        luma = draws.between(95, 150) + draws.between(-45, 45) * x + draws.between(-45, 45) * y
        luma = luma + draws.between(15, 45) * self._texture(draws, height, width)
        tint = [128 + palette.between(-22, 22) + draws.between(-8, 8) for _ in range(2)]
        chroma = [t + draws.between(3, 9) * self._texture(draws, height, width, smooth=True) for t in tint]
        for _ in range(draws.whole(1, 4)):
            inside, shade = _shape(draws, x, y)
            own = draws.between(50, 190) + draws.between(20, 60) * shade
            own += draws.between(6, 34) * self._texture(draws, height, width)
            luma += inside * (own - luma)
            colour = [128 + palette.between(-40, 40) + draws.between(-12, 12) for _ in chroma]
            chroma = [plane + inside * (c - plane) for plane, c in zip(chroma, colour, strict=True)]
        luma += draws.between(1, 15) * _crop(self.grain, draws, height, width)
        planes = (np.clip(plane, 0, 255, out=plane).astype(np.uint8) for plane in (luma, *chroma))
        return Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes])

    def _texture(self, draws: "_Draws", height: int, width: int, *, smooth: bool = False) -> FloatImage:
        first = 2 if smooth else 0
        return _crop(self.textures[draws.whole(first, len(self.textures) - 1)], draws, height, width)


class _Draws:
    """Consecutive keyed draws, so that a picture depends on its key alone."""

    def __init__(self, key: int) -> None:
        self._values: Iterator[float] = iter(uniform(key, np.arange(128)).tolist())  # more than a picture takes

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._values)

    def whole(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both included."""
        return low + int(next(self._values) * (high - low + 1))

    def chance(self, p: float) -> bool:
        return next(self._values) < p

    def size(self) -> tuple[int, int]:
        """Return width and height: two thirds 500×375, the rest around it; one in four is upright."""
        long, short = (500, 375) if self.chance(0.66) else (self.whole(400, 640), self.whole(300, 400))
        return (short, long) if self.chance(0.25) else (long, short)


def _noise(key: int, power: float) -> FloatImage:
    """Return noise with an amplitude spectrum of 1/f**power, mean 0 and deviation 1, (side, side) float32."""
    side = _TEXTURE_SIDE
    white = uniform(key, np.arange(side * side)).reshape(side, side) - 0.5
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(white) / frequency**power if power else np.fft.rfft2(white)
    texture = np.fft.irfft2(spectrum, s=(side, side))
    normalised: FloatImage = ((texture - texture.mean()) / texture.std()).astype(np.float32)
    return normalised


def _crop(texture: FloatImage, draws: _Draws, height: int, width: int) -> FloatImage:
    """Return a view of a random part of ``texture``, mirrored in one of four ways, (height, width)."""
    texture = texture[:: draws.whole(0, 1) * 2 - 1, :: draws.whole(0, 1) * 2 - 1]
    top, left = draws.whole(0, texture.shape[0] - height), draws.whole(0, texture.shape[1] - width)
    return texture[top : top + height, left : left + width]


def _shape(draws: _Draws, x: FloatImage, y: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Return the soft mask of a turned superellipse in [0, 1] and its shading in [-1, 1], both (H, W)."""
    angle = draws.between(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = x - np.float32(draws.between(-0.7, 0.7)), y - np.float32(draws.between(-0.7, 0.7))
    u = (x * cos + y * sin) / np.float32(draws.between(0.15, 0.8))
    v = (y * cos - x * sin) / np.float32(draws.between(0.15, 0.8))
    if draws.chance(0.4):  # nearly a rectangle
        u, v = u * np.abs(u), v * np.abs(v)
    distance = u * u + v * v
    sharpness = np.float32(draws.between(8, 60))
    inside = np.clip((1 - distance) * sharpness + np.float32(0.5), 0, 1).astype(np.float32, copy=False)
    shade = (np.clip(u + v, -1, 1) * np.float32(0.7)).astype(np.float32, copy=False)
    return inside, shade


def are_made(folder: Path, count: int, seed: int) -> bool:
    """Return whether ``folder`` holds exactly what `make_photographs` would make."""
    try:
        written = json.loads((folder / _RECIPE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(written == _recipe(count, seed)) and sum(1 for _ in folder.glob("*/*.jpg")) == count


def make_photographs(folder: Path, count: int, seed: int, processes: int, advance: Advance) -> None:
    """Write ``count`` pictures as class folders; last a file that tells the recipe, so that its presence says "whole".

    Args:
        folder: made if missing; what is in it is removed first.
        count: how many.
        seed: of all pictures.
        processes: worker processes; few pictures are made in this one.
        advance: told of every picture made.
    """
    if folder.exists():
        shutil.rmtree(folder)
    for label in range(min(count, CLASSES)):
        (folder / _class_name(label)).mkdir(parents=True)
    if processes == 1 or count <= _FEW:
        studio = Studio(seed)
        for number in range(count):
            advance(1, size_bytes=_write(studio, folder, number))
    else:
        numbers = [range(first, min(first + _BATCH, count)) for first in range(0, count, _BATCH)]
        for batch, size_bytes in _made_elsewhere(folder, seed, numbers, processes):
            advance(batch, size_bytes=size_bytes)
    (folder / _RECIPE_FILE).write_text(json.dumps(_recipe(count, seed)))


def _recipe(count: int, seed: int) -> dict[str, int]:
    return {"version": _RECIPE_VERSION, "seed": seed, "count": count}


def _class_name(label: int) -> str:
    return f"class_{label:02d}"


def _write(studio: Studio, folder: Path, number: int) -> int:
    path = folder / _class_name(number % CLASSES) / f"photo_{number:05d}.jpg"
    return path.write_bytes(studio.jpeg(number))


def _made_elsewhere(folder: Path, seed: int, numbers: list[range], processes: int) -> Iterator[tuple[int, int]]:
    """Write the pictures in worker processes; yield how many of how many bytes as tasks finish, in any order."""
    # Spawned, not forked: a progress bar's thread runs in this process.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_open_studio, initargs=(seed,))
    try:
        with workers_ignore_interrupts():
            tasks: list[Future[tuple[int, int]]] = [pool.submit(_write_some, str(folder), some) for some in numbers]
        for task in as_completed(tasks):
            yield task.result()
    finally:
        pool.shutdown(cancel_futures=True)


_studio: Studio | None = None  # one a worker process


def _open_studio(seed: int) -> None:
    global _studio
    os.nice(5)  # the terminal stays responsive
    _studio = Studio(seed)


def _write_some(folder: str, numbers: range) -> tuple[int, int]:
    assert _studio is not None
    return len(numbers), sum(_write(_studio, Path(folder), number) for number in numbers)
