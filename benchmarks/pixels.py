"""What changing pixels costs: ours on the CPU and as batches of torch, beside torchvision and albumentations.

One thread; images of 224 x 224 in memory. Every library draws its own parameters, from the same distributions.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

import feeder
from benchmarks.photographs import photographs
from benchmarks.torchvision_transforms import torchvision_transforms
from feeder.keyed import derive_key, draw

TITLE = "CPU-µs an image (median of rounds), 1 thread; ratios to ours on the CPU"

_SIDE = 224
_IMAGES = 64

# A name, ours, and its arguments, which torchvision takes, too.
_CASES: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("ColorJitter", feeder.ColorJitter, {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}),
    ("ColorJitter", feeder.ColorJitter, {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}),
    ("ColorJitter", feeder.ColorJitter, {"hue": 0.1}),
    ("RandomGrayscale", feeder.RandomGrayscale, {"p": 1.0}),
    ("GaussianBlur", feeder.GaussianBlur, {"kernel_size": 23, "sigma": (0.1, 2.0)}),
    ("RandomSolarize", feeder.RandomSolarize, {"threshold": 128, "p": 1.0}),
    ("RandomPosterize", feeder.RandomPosterize, {"bits": 4, "p": 1.0}),
    ("RandomAdjustSharpness", feeder.RandomAdjustSharpness, {"sharpness_factor": 2.0, "p": 1.0}),
    ("RandomAutocontrast", feeder.RandomAutocontrast, {"p": 1.0}),
    ("RandomEqualize", feeder.RandomEqualize, {"p": 1.0}),
    ("RandomInvert", feeder.RandomInvert, {"p": 1.0}),
    ("RandomErasing", feeder.RandomErasing, {"p": 1.0}),
    ("RandomErasing", feeder.RandomErasing, {"p": 1.0, "value": "random"}),
    ("RandAugment", feeder.RandAugment, {}),
    ("TrivialAugmentWide", feeder.TrivialAugmentWide, {}),
    ("AutoAugment", feeder.AutoAugment, {}),
    ("RandAugment", feeder.RandAugment, {"interpolation": "bilinear"}),
)


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each operation."""
    rounds, count = (1, 4) if tiny else (5, _IMAGES)
    images = _images(count, made=4 if tiny else None)
    peers = _Peers()
    rows = []
    for name, make, arguments in _CASES:
        transform = make(**arguments)
        row: dict[str, Any] = {"what": f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"}
        ours = row["ours"] = _measure(_on_the_cpu(transform, images), count, rounds)
        runs = {
            "ours, tensors": peers.ours_on_tensors(transform, images),
            "torchvision, PIL": peers.torchvision_on_images(name, arguments, images),
            "torchvision, tensors": peers.torchvision_on_tensors(name, arguments, images),
            "albumentations": peers.albumentations(name, arguments, images),
        }
        for who, call in runs.items():
            if call is not None:
                row[f"{who}: x"] = _measure(call, count, rounds) / ours
        rows.append(row)
    return rows


def _images(count: int, *, made: int | None) -> np.ndarray:
    """Return (count, 224, 224, 3) photographs."""
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(path for path in photographs(folder, made=made).rglob("*") if path.is_file())[:count]
        return np.stack([np.asarray(Image.open(path).convert("RGB").resize((_SIDE, _SIDE))) for path in paths])


def _measure(call: Callable[[], Any], count: int, rounds: int) -> float:
    """Return the median over rounds of the CPU-µs an image."""
    call()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append((time.process_time() - start) / count * 1e6)
    return statistics.median(found)


def _keys(count: int) -> Any:
    return draw(derive_key("benchmark.pixels"), np.arange(count))


def _on_the_cpu(transform: Any, images: np.ndarray) -> Callable[[], Any]:
    """Return drawing and applying, on images that are changed again and again."""
    changed = images.copy()

    def call() -> None:
        np.copyto(changed, images)
        transform.apply(changed, transform.draw(_keys(len(images)), _SIDE, _SIDE))

    return call


class _Peers:
    """What else is installed; what is not gives None."""

    def __init__(self) -> None:
        self.torch = self.v2 = self.a = None
        with suppress(ImportError):
            import torch

            torch.set_num_threads(1)
            self.torch = torch
            self.v2 = torchvision_transforms()
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it asks a server for a newer release
        with suppress(ImportError):
            import albumentations
            import cv2

            cv2.setNumThreads(1)
            self.a = albumentations

    def ours_on_tensors(self, transform: Any, images: np.ndarray) -> Callable[[], Any] | None:
        if self.torch is None:
            return None
        from feeder.tensors import pixels

        tensors = self.torch.from_numpy(images.copy()).movedim(-1, 1)

        def call() -> None:
            for rows in (slice(start, start + 16) for start in range(0, len(images), 16)):
                part = tensors[rows].clone()
                pixels.apply(transform, part, transform.draw(_keys(len(part)), _SIDE, _SIDE))

        return call

    def _torchvisions(self, name: str, arguments: dict[str, Any]) -> Any:
        return None if self.v2 is None else getattr(self.v2, name)(**arguments)

    def torchvision_on_images(self, name: str, arguments: dict[str, Any], images: np.ndarray) -> Any:
        transform = self._torchvisions(name, arguments)
        if transform is None or name == "RandomErasing":
            return None
        given = [Image.fromarray(image) for image in images]
        return lambda: [np.asarray(transform(image)) for image in given]

    def torchvision_on_tensors(self, name: str, arguments: dict[str, Any], images: np.ndarray) -> Any:
        transform = self._torchvisions(name, arguments)
        if transform is None:
            return None
        given = [self.torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous() for image in images]
        return lambda: [transform(image) for image in given]

    def albumentations(self, name: str, arguments: dict[str, Any], images: np.ndarray) -> Any:
        if self.a is None or name not in _ALBUMENTATIONS:
            return None
        transform = _ALBUMENTATIONS[name](self.a, arguments)
        return lambda: [transform(image=image)["image"] for image in images]


def _jitter(a: Any, arguments: dict[str, Any]) -> Any:
    ranges = {
        f"{name}_range": (centre - arguments.get(name, 0), centre + arguments.get(name, 0))
        for name, centre in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0))
    }
    return a.ColorJitter(**ranges, p=1.0)


_ALBUMENTATIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "ColorJitter": _jitter,
    "RandomGrayscale": lambda a, _: a.ToGray(p=1.0),
    "GaussianBlur": lambda a, arguments: a.GaussianBlur(blur_range=(23, 23), sigma_range=arguments["sigma"], p=1.0),
    "RandomSolarize": lambda a, _: a.Solarize(threshold_range=(0.5, 0.5), p=1.0),
    "RandomPosterize": lambda a, _: a.Posterize(num_bits=(4, 4), p=1.0),
    "RandomAutocontrast": lambda a, _: a.AutoContrast(p=1.0),
    "RandomEqualize": lambda a, _: a.Equalize(p=1.0),
    "RandomInvert": lambda a, _: a.InvertImg(p=1.0),
    "RandomErasing": lambda a, arguments: a.Erasing(fill=arguments.get("value", 0), p=1.0),
}
