"""A demonstration that the order can be proven: two epochs, and one of them again, broken off and resumed.

The datasets here have one lane, in which the sequence of samples does not depend on the batch size, so that the ids of
runs with different batches can be compared one by one. Resumed batches are twice as large, and resume where an even
number of steps is left: both runs then end alike (training drops the last part of a step).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from feeder import presets
from feeder.dataset import ImageDataset
from feeder.errors import ConfigError
from feeder.loader import Loader
from feeder.order_settings import Shuffle
from feeder.resources import usable_cores
from feeder.shards.storage import staged_file
from feeder.tools import console
from feeder.tools.dataset_options import DEFAULT_BATCH
from feeder.tools.measuring import image_arrays, stream_epoch

LEAST_IMAGES = 8  # fewer make no epoch that could be stopped in its middle
WORKERS = 2

Say = Callable[[str, str], None]  # prints one line of a report: a name, a text


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the demonstration found.

    Attributes:
        passed: whether all of it held.
        sentence: what held, or the first thing that did not.
        batch_size, step: where the second epoch was broken off.
    """

    passed: bool
    sentence: str
    batch_size: int
    step: int


class Recorder:
    """Keeps the ids of batches, and digests their pixels from a position on, whatever the size of batches."""

    def __init__(self, position: int = 0) -> None:
        self._position = position
        self._ids: list[int] = []
        self._pixels = xxhash.xxh3_128()  # takes a hundredth of the decoder's time, where blake2b takes a tenth

    def __call__(self, batch: dict[str, Any]) -> None:
        self._ids += np.asarray(batch["id"]).tolist()
        if batch["position"] >= self._position:
            for images in image_arrays(batch):
                self._pixels.update(images.data)

    @property
    def ids(self) -> list[int]:
        """Sample ids, in order."""
        return self._ids

    @property
    def pixels(self) -> str:
        """Digest of the pixels of all samples from the position on."""
        return self._pixels.hexdigest()


def prove_resume(shards: Path, num_samples: int, seed: int, state_file: Path, say: Say) -> Proof:
    """Stream epochs 0 and 1; break off epoch 1 in a second run, resume it in a third, and compare.

    Args:
        shards: a dataset of `num_samples` samples.
        num_samples: at least `LEAST_IMAGES`.
        seed: of the order.
        state_file: where the state is saved, from which the third run resumes.
        say: prints lines of the report.
    """
    if num_samples < LEAST_IMAGES:
        raise ConfigError(f"{shards} holds {num_samples} images; the demonstration needs at least {LEAST_IMAGES}")
    batch, steps, stop = plan(num_samples)
    first, undisturbed = Recorder(num_samples), Recorder(stop * batch)
    _stream_epochs(shards, seed, batch, [first, undisturbed], say)

    broken_off, resumed = Recorder(num_samples), Recorder()
    dataset = open_one_lane(shards, batch, seed)
    dataset.set_epoch(1)
    _, state = stream_epoch(Loader(dataset, workers=0), expected=stop * batch, steps=stop, observe=broken_off)
    dataset.close()
    with staged_file(state_file) as file:
        file.write(json.dumps(state).encode())
    say("Stop", f"a second run broke off epoch 1 behind {stop} of {steps} steps; its state is in {state_file}")

    dataset = ImageDataset(shards, batch_size=2 * batch, transform=presets.imagenet_train(), rank=0, world_size=1)
    with Loader(dataset, workers=WORKERS) as loader:
        loader.load_state_dict(json.loads(state_file.read_bytes()))
        stream_epoch(loader, expected=(steps - stop) * batch, observe=resumed)
    say("Resume", f"a third run went on from there with batches of {2 * batch} in {WORKERS} worker processes")

    failed = next((sentence for held, sentence in _claims(first, undisturbed, broken_off, resumed) if not held), None)
    rest = f"the remaining {len(resumed.ids):,} ids and their pixels are exactly the rest of the undisturbed epoch"
    return Proof(passed=failed is None, sentence=failed or rest, batch_size=batch, step=stop)


def plan(num_samples: int) -> tuple[int, int, int]:
    """Return the batch size, the steps of an epoch, and the step before which the second run breaks off."""
    batch = min(DEFAULT_BATCH, num_samples // 4)
    steps = num_samples // batch
    half = steps // 2
    return batch, steps, half + (steps - half) % 2


def _claims(first: Recorder, undisturbed: Recorder, broken_off: Recorder, resumed: Recorder) -> list[tuple[bool, str]]:
    """Return (whether it holds, what is wrong if not) for everything that is claimed."""
    head = len(broken_off.ids)
    return [
        (all(len(set(r.ids)) == len(r.ids) for r in (first, undisturbed)), "an epoch holds a sample twice"),
        (first.ids != undisturbed.ids, "epochs 0 and 1 have the same order"),
        (broken_off.ids == undisturbed.ids[:head], "the second run began epoch 1 with other ids than the first"),
        (resumed.ids == undisturbed.ids[head:], "the resumed ids are not the rest of the undisturbed epoch"),
        (resumed.pixels == undisturbed.pixels, "the resumed pixels are not those of the undisturbed epoch"),
    ]


def _stream_epochs(shards: Path, seed: int, batch: int, recorders: list[Recorder], say: Say) -> None:
    """Stream one epoch for each recorder, in this process."""
    dataset = open_one_lane(shards, batch, seed)
    threads = console.format_count(usable_cores(), "thread")
    say("Stream", f"batches of {batch}, random crops of 224 by 224 pixels, engine {dataset.engine}, {threads}")
    loader = Loader(dataset, workers=0)
    for recorder in recorders:
        cpu_start_s = time.process_time()
        report, _ = stream_epoch(loader, expected=len(loader) * batch, observe=recorder)
        assert report is not None  # there is at least one step
        cpu_ms = 1000 * (time.process_time() - cpu_start_s) / report.images
        rate = console.format_rate(report.images, report.seconds)
        say(f"Epoch {report.epoch}", f"{report.images:,} images, {rate}, {cpu_ms:.2f} ms CPU an image")
        say("", f"order digest {report.ids}")
    loader.close()
    dataset.close()


def open_one_lane(shards: Path, batch: int, seed: int) -> ImageDataset:
    """Return the dataset as it is streamed here: one lane, one rank, whatever a launcher's environment says."""
    return ImageDataset(
        shards,
        batch_size=batch,
        seed=seed,
        shuffle=Shuffle(lanes=1),
        transform=presets.imagenet_train(),
        rank=0,
        world_size=1,
        arrays="numpy",
    )
