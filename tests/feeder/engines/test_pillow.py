"""The reference engine: the contract, equality with torchvision's documented steps, and its own corners."""

import gc
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feeder.augment import compile_transforms
from feeder.engines import Engine, formats, open_engine, pillow
from feeder.engines.pillow import PillowEngine
from feeder.errors import ConfigError, MissingPackageError
from feeder.transforms import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from tests.contracts.engines import FILTERS, EngineContract, decode, make_windows
from tests.images import encoded, picture


@pytest.fixture
def engine() -> Engine:
    return PillowEngine()


class TestPillowEngine(EngineContract):
    tolerance = 0  # it is the reference
    border_tolerance = 0


def torchvision_evaluation(data: bytes, side: int, crop: int, interpolation: str) -> np.ndarray:
    """Resize(side) and CenterCrop(crop) as torchvision documents them for PIL images; (crop, crop, 3) uint8."""
    image = Image.open(BytesIO(data)).convert("RGB")
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = side, int(side * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((new_width, new_height), FILTERS[interpolation])
    top = round((new_height - crop) / 2.0)
    left = round((new_width - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


ODD_SIZES = [
    (1, 1),
    (500, 1),
    (3, 500),
    (255, 257),
    (256, 256),
    (257, 255),
    (37, 1500),
    (1500, 37),
    (640, 480),
    (225, 999),
]


class TestEvaluationEqualsTorchvision:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
    def test_images_of_odd_sizes(self, engine: Engine, interpolation: Any) -> None:
        images = [encoded(number, size=size, quality=95) for number, size in enumerate(ODD_SIZES) if size != (500, 1)]
        windows = make_windows(images, [Resize(256, interpolation), CenterCrop(224)])
        found = decode(engine, images, windows, (224, 224))
        for index, data in enumerate(images):
            assert np.array_equal(found[index, 0], torchvision_evaluation(data, 256, 224, interpolation))

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_images_so_long_that_the_box_is_resampled(self, engine: Engine, interpolation: Any) -> None:
        """The whole image would have 256 × 128,000 pixels; the box alone differs by rounding."""
        images = [encoded(number, size=size, quality=95) for number, size in enumerate([(500, 1), (1, 500)])]
        windows = make_windows(images, [Resize(256, interpolation), CenterCrop(224)])
        found = decode(engine, images, windows, (224, 224))
        for index, data in enumerate(images):
            difference = torchvision_evaluation(data, 256, 224, interpolation).astype(int) - found[index, 0]
            assert np.abs(difference).max() <= 1

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_photographs(self, engine: Engine, photos: Path, interpolation: Any) -> None:
        images = [path.read_bytes() for path in sorted(photos.glob("*/*"))[::12]]
        windows = make_windows(images, [Resize(256, interpolation), CenterCrop(224)])
        found = decode(engine, images, windows, (224, 224))
        for index, data in enumerate(images):
            assert np.array_equal(found[index, 0], torchvision_evaluation(data, 256, 224, interpolation))

    def test_a_mirrored_image_is_cut_where_torchvision_cuts_it(self, engine: Engine) -> None:
        """The flip stands first and the margin is odd, so that the crop is another one than the flipped crop."""
        plain = picture(5, size=(61, 40))
        buffer = BytesIO()
        plain.save(buffer, "PNG")
        windows = make_windows([buffer.getvalue()], [RandomHorizontalFlip(1.0), Resize(40), CenterCrop(30)])
        found = decode(engine, [buffer.getvalue()], windows, (30, 30))
        mirrored = BytesIO()
        plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "PNG")
        assert np.array_equal(found[0, 0], torchvision_evaluation(mirrored.getvalue(), 40, 30, "bilinear"))


class TestWindows:
    def test_clipped_windows_are_crop_and_resize_to_the_bit(self, engine: Engine) -> None:
        data = encoded(4, size=(120, 90))
        for interpolation in ("bilinear", "bicubic", "nearest"):
            windows = make_windows([data], [RandomResizedCrop(32, interpolation=interpolation)], views=4)
            found = decode(engine, [data], windows, (32, 32))
            image = Image.open(BytesIO(data))
            for view, box in enumerate(windows.boxes[0].astype(int).tolist()):
                piece = image.crop(box).resize((32, 32), FILTERS[interpolation])
                assert np.array_equal(found[0, view], np.asarray(piece))

    def test_the_image_is_decoded_once_for_all_views(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        load_image = pillow.load_image
        monkeypatch.setattr(pillow, "load_image", lambda *arguments: calls.append(1) or load_image(*arguments))
        data = encoded(4)
        decode(engine, [data], make_windows([data], [RandomResizedCrop(8)], views=5), (8, 8))
        assert calls == [1]

    def test_boxes_are_cut_from_the_image_as_stored_in_any_mode(self, engine: Engine) -> None:
        """Cutting before conversion to RGB, which is cheaper, gives the pixels of cutting after it."""
        for mode, format in [
            ("L", "PNG"),
            ("1", "PNG"),
            ("P", "PNG"),
            ("LA", "PNG"),
            ("RGBA", "PNG"),
            ("CMYK", "JPEG"),
        ]:
            data = encoded(2, size=(40, 30), mode=mode, format=format)
            windows = make_windows([data], [RandomResizedCrop(16)], views=3)
            found = decode(engine, [data], windows, (16, 16))
            image = Image.open(BytesIO(data)).convert("RGB")
            for view, box in enumerate(windows.boxes[0].astype(int).tolist()):
                assert np.array_equal(found[0, view], np.asarray(image.crop(box).resize((16, 16), FILTERS["bilinear"])))

    def test_large_boxes_are_cut_in_silence(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pillow's own limit, which warns or raises, may be anything."""
        for mode, format in [("RGB", "PNG"), ("P", "GIF"), ("I;16", "TIFF"), ("RGB", "TIFF")]:
            data = encoded(2, size=(61, 47), mode=mode, format=format)
            for transforms in ([RandomResizedCrop(16)], [Resize(20), CenterCrop(16)]):
                windows = make_windows([data], transforms, views=4)
                plain = decode(engine, [data], windows, (16, 16))
                with monkeypatch.context() as patch, warnings.catch_warnings():
                    warnings.simplefilter("error")
                    for limit in (None, 1000, 10, 1):
                        patch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
                        assert np.array_equal(decode(engine, [data], windows, (16, 16)), plain)

    def test_nothing_is_kept_between_calls(self, engine: Engine) -> None:
        data = encoded(2)
        decode(engine, [data], make_windows([data], [RandomResizedCrop(16)]), (16, 16))
        gc.collect()
        assert not [item for item in gc.get_objects() if type(item) is formats._Jpeg]


class TestOutOfMemory:
    def test_it_is_no_failure_of_the_sample(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_memory(self: object) -> None:
            raise MemoryError

        monkeypatch.setattr(formats._Jpeg, "load", no_memory)
        data = encoded(1)
        with pytest.raises(MemoryError):
            decode(engine, [data], make_windows([data], [Resize((8, 8))]), (8, 8))

    @pytest.mark.parametrize("error", [IndexError("x"), RecursionError("deep"), AssertionError(), OverflowError("x")])
    def test_any_other_exception_of_a_reader_is(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(self: object) -> None:
            raise error

        monkeypatch.setattr(formats._Jpeg, "load", fail)
        data = encoded(1)
        failures = engine.decode(
            [data], [make_windows([data], [Resize((8, 8))])], [np.empty((1, 1, 8, 8, 3), np.uint8)]
        )
        text = f": {error}" if str(error) else ""
        assert failures == {0: f"cannot be decoded as JPEG: {type(error).__name__}{text}"}


class TestOpenEngine:
    def test_auto_says_which_it_took(self) -> None:
        assert open_engine().name == "pillow"
        assert open_engine("pillow").name == "pillow"

    def test_unknown_name(self) -> None:
        with pytest.raises(ConfigError) as caught:
            open_engine("turbojet")
        assert str(caught.value) == "engine 'turbojet' does not exist; choose one of: auto, pillow"

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        for name in ("auto", "pillow"):
            with pytest.raises(
                MissingPackageError, match="^engine 'pillow' needs a package that is not installed; run: "
            ):
                open_engine(name)


def test_geometry_and_engine_agree_on_views() -> None:
    geometry = compile_transforms([RandomResizedCrop(8)], views=3)
    zeros = np.zeros(2, np.int64)
    windows = geometry.windows(0, 0, zeros, zeros, zeros + 64, zeros + 48)
    found = decode(PillowEngine(), [encoded(0)] * 2, windows, geometry.size)
    assert found.shape == (2, 3, 8, 8, 3)
    assert np.array_equal(found[0], found[1])
