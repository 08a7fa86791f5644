"""What a stream costs beyond its engine, and beside the usual ways to do the same, one process and one thread each."""

import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.photographs import photographs
from feeder import ImageDataset, RandomHorizontalFlip, RandomResizedCrop
from feeder.augment import compile_transforms
from feeder.engines import open_engine
from feeder.shards.building.writing import build
from feeder.shards.reading.opening import open_dataset

TITLE = "decode, random resized crop to 224, flip; batches of 64; one process, one thread; page cache warm"

_BATCH = 64
_TRAIN = (RandomResizedCrop(224), RandomHorizontalFlip())


def run(*, tiny: bool) -> list[dict[str, Any]]:
    """Return a row for each way: medians of CPU-ms an image and images/s, and the ratio to the engine alone."""
    rounds, epochs = (1, 1) if tiny else (5, 2)
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(folder, made=80 if tiny else None)
        build(photos, Path(folder, "shards"))
        found: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        for _ in range(rounds):  # in turn, so that a drift of the machine's speed meets all
            for way, results in found.items():
                command = [sys.executable, "-m", "benchmarks.stream", way, str(photos), folder, str(epochs)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                results.append(json.loads(output))
    alone = found["engine alone"]
    return [
        {
            "way": way,
            "cpu_ms_an_image": statistics.median(result["cpu_ms"] for result in results),
            "images_a_s": statistics.median(result["rate"] for result in results),
            "cpu_over_engine": statistics.median(
                ours["cpu_ms"] / engine["cpu_ms"] for ours, engine in zip(results, alone, strict=True)
            ),
        }
        for way, results in found.items()
    ]


class _EngineAlone:
    """The engine over images in memory, windows drawn beforehand."""

    def __init__(self, photos: str, folder: str) -> None:
        reader = open_dataset(f"{folder}/shards")
        self._engine = open_engine("auto")
        self._geometry = compile_transforms(_TRAIN)
        ids = np.random.default_rng(0).permutation(reader.manifest.num_samples)
        self._parts = []
        for start in range(0, len(ids) - _BATCH + 1, _BATCH):
            part = ids[start : start + _BATCH]
            rows, images = reader.read(part)
            windows = self._geometry.windows(0, 0, part, np.zeros_like(part), rows.widths, rows.heights)
            self._parts.append((images, windows))

    def __iter__(self) -> Iterator[None]:
        for images, windows in self._parts:
            self._engine.decode(images, [windows], [np.empty((_BATCH, 1, 224, 224, 3), np.uint8)])
            yield


def _shards(photos: str, folder: str) -> Iterable[Any]:
    """`ImageDataset` over tar shards."""
    return ImageDataset(f"{folder}/shards", batch_size=_BATCH, transform=_TRAIN, threads=1)


def _folder(photos: str, folder: str) -> Iterable[Any]:
    """`ImageDataset` over the plain folder."""
    return ImageDataset(photos, batch_size=_BATCH, transform=_TRAIN, threads=1)


def _crop(image: Image.Image) -> Image.Image:
    """Random resized crop and flip as everybody writes it on PIL images, without torchvision's own cost."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = float(np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3))))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            break
    else:
        w = h = min(width, height)
    x, y = random.randint(0, width - w), random.randint(0, height - h)
    image = image.crop((x, y, x + w, y + h)).resize((224, 224), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def _tensor(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(np.array(_crop(image.convert("RGB"))))


def _torch_folder(photos: str, folder: str) -> Iterable[Any]:
    """A map-style dataset of files in a DataLoader, as ImageFolder does it."""
    from torch.utils.data import DataLoader, Dataset

    paths = sorted(path for path in Path(photos).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))

    class Files(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            with Image.open(paths[index]) as image:
                return _tensor(image)

    return DataLoader(Files(), batch_size=_BATCH, shuffle=True, drop_last=True)


def _webdataset(photos: str, folder: str) -> Iterable[Any]:
    """webdataset over the same tar shards, decoding with PIL."""
    import webdataset

    shards = sorted(str(path) for path in Path(folder, "shards").glob("*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False).shuffle(1000)
    return samples.map(lambda sample: _tensor(Image.open(io.BytesIO(_image_of(sample))))).batched(_BATCH, partial=False)


def _image_of(sample: dict[str, Any]) -> bytes:
    return next(value for key, value in sample.items() if key.lower() in ("jpg", "jpeg", "png"))


_WAYS = {
    "engine alone": _EngineAlone,
    "feeder, shards": _shards,
    "feeder, folder": _folder,
    "DataLoader of files": _torch_folder,
    "webdataset": _webdataset,
}


def _measure(way: str, photos: str, folder: str, epochs: int) -> dict[str, float]:
    """Run one epoch to warm up and some to measure."""
    import torch

    torch.set_num_threads(1)
    source = _WAYS[way](photos, folder)
    for _ in source:
        pass
    batches = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        for _ in source:
            batches += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images = batches * _BATCH
    return {"cpu_ms": cpu / images * 1000, "rate": images / wall}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
