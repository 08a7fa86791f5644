"""Streaming an epoch as a training loop does, and measuring it: seconds, images, and digests of what came."""

import hashlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feeder.tools import console

if TYPE_CHECKING:
    from feeder.loader import Loader

_DIGEST_BYTES = 16  # 128 bits: no accidental equality, and still legible


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """What came of one epoch.

    Attributes:
        epoch, position: where it started.
        steps: batches that came.
        images: valid rows of these batches, of this rank.
        seconds: from asking for the first batch to the end.
        first_batch_s: until the first batch was there (s).
        ids: blake2b over the ids of the batches in order, little-endian int64; padding is -1.
        pixels: blake2b over ids, then images, batch by batch; None where it was not asked for.
    """

    epoch: int
    position: int
    steps: int
    images: int
    seconds: float
    first_batch_s: float
    ids: str
    pixels: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        digests = {"ids": self.ids} | ({} if self.pixels is None else {"pixels": self.pixels})
        return {
            "epoch": self.epoch,
            "position": self.position,
            "steps": self.steps,
            "images": self.images,
            "seconds": self.seconds,
            "first_batch_s": self.first_batch_s,
            "images_per_s": self.images / self.seconds,
            "digests": digests,
        }


def stream_epoch(
    loader: "Loader",
    *,
    expected: int | None = None,
    steps: int | None = None,
    pixels: bool = False,
    observe: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[EpochReport | None, dict[str, Any] | None]:
    """Stream a loader's next epoch; return what came and the state behind it, or (None, None) if nothing did.

    Args:
        loader: of the dataset.
        expected: images to come, for the progress bar.
        steps: stop after so many.
        pixels: whether to digest pixels, too.
        observe: called with every batch.
    """
    digests = BatchDigests()
    batches = images = 0
    first: dict[str, Any] = {}
    state: dict[str, Any] | None = None
    label = f"epoch {loader.epoch}"
    start = time.perf_counter()
    iterator = iter(loader)  # before the progress bar: workers are forked here, and the bar has a thread
    with console.progress(expected, label) as advance:
        for batch in itertools.islice(iterator, steps):
            if not first:
                first = {name: batch[name] for name in ("epoch", "position")}
                first["first_batch_s"] = time.perf_counter() - start
            digests.add(batch, pixels=pixels)
            valid = int(np.count_nonzero(np.asarray(batch["valid"])))
            batches, images, state = batches + 1, images + valid, batch["state"]
            if observe is not None:
                observe(batch)
            advance(valid)
    if not first:
        return None, None
    report = EpochReport(
        **first,
        steps=batches,
        images=images,
        seconds=time.perf_counter() - start,
        ids=digests.ids,
        pixels=digests.pixels if pixels else None,
    )
    return report, state


class BatchDigests:
    """The digests of `EpochReport`, over batches in the order in which they are added."""

    def __init__(self) -> None:
        self._ids = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._pixels = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, batch: dict[str, Any], *, pixels: bool = True) -> None:
        """Add a batch; its pixels only if asked."""
        ids = np.asarray(batch["id"]).astype("<i8").tobytes()
        self._ids.update(ids)
        if pixels:
            self._pixels.update(ids)
            for images in image_arrays(batch):
                self._pixels.update(images.data)

    @property
    def ids(self) -> str:
        """Of ids."""
        return self._ids.hexdigest()

    @property
    def pixels(self) -> str:
        """Of ids and pixels."""
        return self._pixels.hexdigest()


def image_arrays(batch: dict[str, Any]) -> list[NDArray[Any]]:
    """Return the images of a batch, contiguous, (B, H, W, 3) or (B, V, H, W, 3): one array for each group of views."""
    return [
        np.ascontiguousarray(value if isinstance(value, np.ndarray) else np.moveaxis(np.asarray(value), -3, -1))
        for value in batch.values()
        if getattr(value, "ndim", 0) >= 4
    ]
