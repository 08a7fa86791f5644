"""The contract of engines: a test class inherits `EngineContract` and provides the fixture ``engine``.

Expected pixels come from Pillow, spelt out here one image at a time, independently of the reference engine.
"""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feeder.augment import compile_transforms
from feeder.engines import Engine
from feeder.transforms import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from feeder.windows import Windows
from tests.images import encoded

SIZES = [(64, 48), (48, 64), (33, 31), (200, 150), (17, 90), (5, 3), (1, 1), (301, 7)]
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def make_windows(images: list[bytes], transforms: Any, *, views: int = 1, seed: int = 0) -> Windows:
    """Return windows of images whose sizes are read from their headers, with ids counted from 0."""
    sizes = np.array([Image.open(BytesIO(data)).size for data in images], dtype=np.int32).reshape(-1, 2)
    ids = np.arange(len(images))
    geometry = compile_transforms(transforms, views=views)
    return geometry.windows(seed, 0, ids, np.zeros_like(ids), sizes[:, 0], sizes[:, 1])


def decode(engine: Engine, images: list[bytes], windows: Windows, size: tuple[int, int]) -> np.ndarray:
    """Return (n, V, H, W, 3) pixels of images that must all decode; memory is dirty beforehand."""
    out = np.full((*windows.flips.shape, *size, 3), 77, dtype=np.uint8)
    assert engine.decode(images, [windows], [out]) == {}
    return out


def expected_window(data: bytes, windows: Windows, index: int, view: int, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) pixels by the pixel contract, from Pillow's own conversion to RGB."""
    image = Image.open(BytesIO(data)).convert("RGB")
    box = tuple(windows.boxes[index, view])
    wide, resample = size[::-1], FILTERS[windows.interpolation]
    if windows.clipped:
        piece = image.crop(tuple(int(edge) for edge in box)).resize(wide, resample)
    else:
        resized = windows.resized[index].tolist()
        left, top = round(box[0] * resized[0] / image.width), round(box[1] * resized[1] / image.height)
        piece = image.resize(resized, resample).crop((left, top, left + wide[0], top + wide[1]))
    if windows.flips[index, view]:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(piece)


class EngineContract:
    """Duties of every engine; see `feeder.engines.Engine`."""

    tolerance = 1  # greatest difference of a pixel from the reference
    border_tolerance = 1  # the same for the outermost ring of a clipped window

    def check(self, engine: Engine, images: list[bytes], windows: Windows, size: tuple[int, int]) -> None:
        """Compare every window with the expected one, within the tolerances."""
        found = decode(engine, images, windows, size)
        for index, data in enumerate(images):
            for view in range(found.shape[1]):
                expected = expected_window(data, windows, index, view, size).astype(int)
                difference = np.abs(expected - found[index, view])
                inside = difference[1:-1, 1:-1] if windows.clipped else difference
                assert inside.max(initial=0) <= self.tolerance, (index, view)
                assert difference.max() <= max(self.tolerance, self.border_tolerance), (index, view)

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
    def test_clipped_windows_match(self, engine: Engine, interpolation: Any) -> None:
        images = [encoded(number, size=size) for number, size in enumerate(SIZES)]
        transforms = [RandomResizedCrop((24, 40), interpolation=interpolation), RandomHorizontalFlip()]
        self.check(engine, images, make_windows(images, transforms, views=3), (24, 40))

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_windows_that_read_beyond_match(self, engine: Engine, interpolation: Any) -> None:
        images = [encoded(number, size=size) for number, size in enumerate(SIZES)]
        transforms = [Resize(32, interpolation), CenterCrop((28, 20)), RandomHorizontalFlip()]
        self.check(engine, images, make_windows(images, transforms, views=2), (28, 20))

    def test_whole_images_match(self, engine: Engine) -> None:
        images = [encoded(number, size=size) for number, size in enumerate(SIZES)]
        self.check(engine, images, make_windows(images, [Resize((30, 20))]), (30, 20))

    @pytest.mark.parametrize(
        ("mode", "format"),
        [
            ("L", "JPEG"),
            ("CMYK", "JPEG"),
            ("RGB", "PNG"),
            ("L", "PNG"),
            ("1", "PNG"),
            ("P", "PNG"),
            ("LA", "PNG"),
            ("RGBA", "PNG"),
            ("P", "GIF"),
            ("RGB", "BMP"),
            ("RGB", "TIFF"),
            ("RGB", "PPM"),
        ],
    )
    def test_stored_modes_become_rgb(self, engine: Engine, mode: str, format: str) -> None:
        images = [encoded(3, size=(50, 40), mode=mode, format=format)]
        self.check(engine, images, make_windows(images, [RandomResizedCrop(16)], views=2), (16, 16))
        self.check(engine, images, make_windows(images, [Resize(20), CenterCrop(16)]), (16, 16))

    def test_sixteen_bits_keep_their_high_byte(self, engine: Engine) -> None:
        stored = np.asarray(Image.open(BytesIO(encoded(3, size=(50, 40), mode="I;16", format="PNG"))))
        images = [encoded(3, size=(50, 40), mode="I;16", format="PNG")]
        found = decode(engine, images, make_windows(images, [Resize((40, 50))]), (40, 50))
        assert np.array_equal(found[0, 0], np.repeat((stored // 256)[..., None], 3, axis=2))

    def test_failures_are_told_and_leave_the_others_alone(self, engine: Engine) -> None:
        good = encoded(1, size=(60, 50))
        bad = {1: b"", 2: b"not an image", 4: good[: len(good) // 2], 5: b"\xff\xd8\xff\xe0", 6: good}
        images = [bad.get(index, good) for index in range(8)]
        windows = make_windows([good] * 8, [RandomResizedCrop(16), RandomHorizontalFlip()], views=2)
        windows.sizes[6] = (61, 50)
        out = np.full((8, 2, 16, 16, 3), 77, dtype=np.uint8)
        failures = engine.decode(images, [windows], [out])
        assert list(failures) == sorted(bad)
        for reason in failures.values():
            assert reason
            assert reason == " ".join(reason.split())
            assert "0x" not in reason
        assert failures[6] == "is 60×50 but the index says 61×50"
        assert (out[sorted(bad)] == 0).all()
        alone = decode(
            engine,
            [good] * 8,
            make_windows([good] * 8, [RandomResizedCrop(16), RandomHorizontalFlip()], views=2),
            (16, 16),
        )
        for index in (0, 3, 7):
            assert np.array_equal(out[index], alone[index])

    def test_reasons_do_not_change_from_call_to_call(self, engine: Engine) -> None:
        data = encoded(1, size=(60, 50))
        windows = make_windows([data], [Resize((8, 8))])
        out = np.empty((1, 1, 8, 8, 3), np.uint8)
        for cut in (data[:-300], b"\x89PNG\r\n\x1a\n" + b"x" * 40, b"GIF89a" + b"\0" * 30):
            assert engine.decode([cut], [windows], [out]) == engine.decode([bytes(cut)], [windows], [out]) != {}

    def test_images_that_the_index_could_not_read_fail_without_a_word_of_python(self, engine: Engine) -> None:
        data = encoded(1, size=(60, 50))
        ids = np.zeros(1, np.int64)
        geometry = compile_transforms([RandomResizedCrop(8)])
        windows = geometry.windows(0, 0, ids, ids, np.zeros(1, np.int32), np.zeros(1, np.int32))
        assert engine.decode([data], [windows], [np.empty((1, 1, 8, 8, 3), np.uint8)]) == {
            0: "is 60×50 but the index says 0×0"
        }

    def test_out_may_be_strided(self, engine: Engine) -> None:
        images = [encoded(number, size=(60, 50)) for number in range(3)]
        windows = make_windows(images, [RandomResizedCrop((8, 12)), RandomHorizontalFlip()], views=2)
        plain = decode(engine, images, windows, (8, 12))
        planes = np.zeros((2, 3, 3, 8, 12), np.uint8)  # (V, n, C, H, W), seen as (n, V, H, W, C)
        strided = planes.transpose(1, 0, 3, 4, 2)
        assert engine.decode(images, [windows], [strided]) == {}
        assert np.array_equal(strided, plain)
        backwards = np.zeros((6, 2, 8, 12, 3), np.uint8)
        assert engine.decode(images, [windows], [backwards[::-2]]) == {}
        assert np.array_equal(backwards[::-2], plain)
        assert not backwards[::2].any()

    def test_no_images(self, engine: Engine) -> None:
        windows = make_windows([], [RandomResizedCrop(8)], views=2)
        assert engine.decode([], [windows], [np.empty((0, 2, 8, 8, 3), np.uint8)]) == {}

    @pytest.mark.parametrize(
        ("count", "shape", "dtype", "sentence"),
        [
            (1, (2, 1, 8, 8, 3), np.uint8, "got 1 images, sizes of shape (2, 2), boxes of shape (2, 1, 4)"),
            (2, (2, 8, 8, 3), np.uint8, "out is uint8 of shape (2, 8, 8, 3); expected uint8 of shape (2, 1, H, W, 3)"),
            (2, (2, 1, 8, 8, 4), np.uint8, "out is uint8 of shape (2, 1, 8, 8, 4); expected uint8"),
            (2, (2, 1, 8, 8, 3), np.int8, "out is int8 of shape (2, 1, 8, 8, 3); expected uint8"),
        ],
    )
    def test_arguments_that_do_not_fit(self, engine: Engine, count: int, shape: Any, dtype: Any, sentence: str) -> None:
        images = [encoded(1)] * 2
        windows = make_windows(images, [RandomResizedCrop(8)])
        with pytest.raises(ValueError, match=re.escape(sentence)):
            engine.decode(images[:count], [windows], [np.empty(shape, dtype)])

    def test_threads_give_the_same_pixels(self, engine: Engine) -> None:
        images = [encoded(number, size=(90 + number, 70)) for number in range(12)]
        windows = make_windows(images, [RandomResizedCrop(24), RandomHorizontalFlip()], views=2)
        alone = decode(engine, images, windows, (24, 24))
        with ThreadPoolExecutor(4) as pool:
            for together in pool.map(lambda _: decode(engine, images, windows, (24, 24)), range(16)):
                assert np.array_equal(together, alone)

    def test_a_pickled_engine_gives_the_same_pixels(self, engine: Engine) -> None:
        images = [encoded(number) for number in range(3)]
        windows = make_windows(images, [RandomResizedCrop(24)])
        copy = pickle.loads(pickle.dumps(engine))
        assert copy.name == engine.name
        assert np.array_equal(decode(copy, images, windows, (24, 24)), decode(engine, images, windows, (24, 24)))
