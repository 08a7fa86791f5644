"""Synthetic photographs: the same from the same seed, and of the sizes that real ones have."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feeder.tools.console import Advance
from feeder.tools.photographs import CLASSES, Studio, are_made, make_photographs


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(0)


class Count:
    """A progress display that adds up."""

    def __init__(self) -> None:
        self.images = self.size_bytes = 0

    def __call__(self, n: int = 1, *, size_bytes: int = 0) -> None:
        self.images += n
        self.size_bytes += size_bytes


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))}


def test_a_picture_depends_on_seed_and_number_alone(studio: Studio) -> None:
    assert studio.jpeg(7) == Studio(0).jpeg(7)
    assert len({studio.jpeg(7), studio.jpeg(8), Studio(1).jpeg(7)}) == 3


def test_pictures_have_the_sizes_of_photographs(studio: Studio) -> None:
    encoded = [studio.jpeg(number) for number in range(100)]
    assert 80_000 < np.mean([len(jpeg) for jpeg in encoded]) < 120_000
    images = [Image.open(io.BytesIO(jpeg)) for jpeg in encoded]
    assert {image.format for image in images} == {"JPEG"}
    areas = [image.width * image.height for image in images]
    assert 500 * 375 * 0.9 < np.mean(areas) < 500 * 375 * 1.1
    assert sum(image.height > image.width for image in images) > 10
    assert {image.mode for image in images} == {"RGB", "L"}


def test_the_spectrum_falls_as_that_of_photographs(studio: Studio) -> None:
    """The amplitude falls by a slope near 1 over two octaves of the middle frequencies (Field 1987)."""
    slopes = []
    for number in range(20):
        grey = np.asarray(Image.open(io.BytesIO(studio.jpeg(number))).convert("L"), np.float64)[:300, :300]
        window = np.hanning(300)
        spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window))
        radius = np.hypot(*np.meshgrid(np.fft.fftfreq(300), np.fft.fftfreq(300)))
        low, high = (spectrum[(radius > f) & (radius < 1.2 * f)].mean() for f in (0.02, 0.08))
        slopes.append(np.log(low / high) / np.log(4))
    assert 0.7 < np.mean(slopes) < 1.5


def test_worker_processes_make_the_same_files(tmp_path: Path) -> None:
    counts = Count(), Count()
    advance: Advance = counts[0]
    make_photographs(tmp_path / "two", 60, 5, 2, advance)
    make_photographs(tmp_path / "one", 60, 5, 1, counts[1])
    written = files(tmp_path / "two")
    assert written == files(tmp_path / "one")
    assert len(written) == 60
    assert {name.partition("/")[0] for name in written} == {f"class_{label:02d}" for label in range(CLASSES)}
    assert all(c.images == 60 and c.size_bytes == sum(map(len, written.values())) for c in counts)


def test_only_a_finished_set_counts_as_made(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    assert not are_made(folder, 10, 0)

    class StopError(Exception):
        pass

    def stop_at_the_fifth() -> Iterator[None]:
        yield from [None] * 5
        raise StopError

    stopping = stop_at_the_fifth()
    with pytest.raises(StopError):
        make_photographs(folder, 10, 0, 1, lambda n=1, *, size_bytes=0: next(stopping))
    assert not are_made(folder, 10, 0)
    make_photographs(folder, 10, 0, 1, Count())
    assert are_made(folder, 10, 0)
    assert not are_made(folder, 11, 0)
    assert not are_made(folder, 10, 1)
    next(folder.glob("*/*.jpg")).unlink()
    assert not are_made(folder, 10, 0)
    (folder / "recipe.json").write_text(json.dumps([1])[:-1])
    assert not are_made(folder, 10, 0)
