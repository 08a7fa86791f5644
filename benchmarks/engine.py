"""What an engine costs alone, and which of its steps costs how much; images in memory, one process."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.photographs import photographs
from feeder import presets
from feeder.augment import compile_transforms
from feeder.engines import open_engine
from feeder.engines.formats import load_image
from feeder.windows import Windows

TITLE = "CPU-µs an image (median of rounds); engine by preset, 1 and 2 threads, and the steps of Pillow's by themselves"

_SUFFIXES = (".jpg", ".jpeg")
_PRESETS = ("imagenet-train", "imagenet-eval", "imagenet-train:224:bicubic", "imagenet-eval:224:bicubic")
_PART = 16  # images a call, as a thread of the pipeline gets


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each preset and step."""
    rounds = 1 if tiny else 5
    images = _images(40 if tiny else None)
    rows: list[dict[str, Any]] = [
        {"what": preset, "threads": threads, **_measure_engine(images, preset, threads, rounds)}
        for preset in _PRESETS
        for threads in (1, 2)
    ]
    for name, prepare, step in _STEPS:
        rows.append({"what": name, "cpu_us": _measure_step(prepare, step, images, rounds)})
    return rows


def _images(made: int | None) -> list[bytes]:
    """Return photographs as encoded bytes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(path for path in photographs(folder, made=made).rglob("*") if path.suffix.lower() in _SUFFIXES)
        return [path.read_bytes() for path in paths]


def _measure_engine(images: list[bytes], preset: str, threads: int, rounds: int) -> dict[str, float]:
    """Return CPU-µs and images/s of decoding all images, a few a call, in a pool of threads."""
    engine, geometry = open_engine("auto"), compile_transforms(presets.parse(preset))
    sizes = np.array([Image.open(io.BytesIO(data)).size for data in images], dtype=np.int32)
    ids = np.arange(len(images))
    windows = geometry.windows(0, 0, ids, np.zeros_like(ids), sizes[:, 0], sizes[:, 1])
    out = np.empty((len(images), 1, *geometry.size, 3), np.uint8)

    def decode(start: int) -> None:
        rows = slice(start, start + _PART)
        engine.decode(images[rows], [_part(windows, rows)], [out[rows]])

    cpu, wall = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            list(pool.map(decode, range(0, len(images), _PART)))
            cpu.append(time.process_time() - cpu_start)
            wall.append(time.perf_counter() - wall_start)
    return {
        "cpu_us": statistics.median(cpu) / len(images) * 1e6,
        "images_a_s": len(images) / statistics.median(wall),
    }


def _part(windows: Windows, rows: slice) -> Windows:
    resized = None if windows.resized is None else windows.resized[rows]
    return replace(
        windows, sizes=windows.sizes[rows], boxes=windows.boxes[rows], flips=windows.flips[rows], resized=resized
    )


def _whole(data: bytes) -> Image.Image:
    return load_image(data, *Image.open(io.BytesIO(data)).size).convert("RGB")


def _crop(image: Image.Image) -> Image.Image:
    return image.crop((0, 0, image.width * 3 // 4, image.height * 3 // 4))


def _resize(image: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    return image.resize((224, 224), resample)


_PIXELS = np.empty((224, 224, 3), np.uint8)


def _copy(image: Image.Image) -> None:
    _PIXELS[...] = np.frombuffer(image.tobytes(), np.uint8).reshape(_PIXELS.shape)


# A step's name, what is made of the bytes beforehand, and the step.
_STEPS: tuple[tuple[str, Callable[[bytes], Any], Callable[[Any], Any]], ...] = (
    ("PIL.Image.open", io.BytesIO, Image.open),
    ("header and decode", lambda data: data, _whole),
    ("cut 3/4 x 3/4", _whole, _crop),
    ("resize that to 224, bilinear", lambda data: _crop(_whole(data)), _resize),
    (
        "resize that to 224, bicubic",
        lambda data: _crop(_whole(data)),
        partial(_resize, resample=Image.Resampling.BICUBIC),
    ),
    ("mirror 224 x 224", lambda data: _resize(_whole(data)), lambda image: image.transpose(Image.Transpose(0))),
    ("copy 224 x 224 out", lambda data: _resize(_whole(data)), _copy),
)


def _measure_step(
    prepare: Callable[[bytes], Any], step: Callable[[Any], Any], images: list[bytes], rounds: int
) -> float:
    """Return the median over rounds of the mean CPU-µs of a step."""
    inputs = [prepare(data) for data in images[:100]]
    means = []
    for _ in range(rounds):
        start = time.thread_time()
        for item in inputs:
            step(item)
        means.append((time.thread_time() - start) / len(inputs) * 1e6)
    return statistics.median(means)
