"""Pipelines of albumentations: what the engine does of them, and that the rest is what albumentations would do."""

import inspect
import logging
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import feeder
from feeder.errors import TransformError
from feeder.foreign import describe, per_sample, split
from feeder.foreign.albumentations import AlbumentationsStage
from feeder.foreign.seeding import NONE, generator
from feeder.keyed import draw
from feeder.transforms import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from tests.images import picture
from tests.peers import peer

A = peer("albumentations")
NEAREST, LINEAR, CUBIC, AREA, LANCZOS = 0, 1, 2, 3, 4  # cv2.INTER_…
CROP = RandomResizedCrop((32, 48), (0.08, 1.0), (0.75, 4 / 3))
FLIP = RandomHorizontalFlip()


def crop(**arguments: Any) -> Any:
    return A.RandomResizedCrop(size=(32, 48), **arguments)


TABLE = [
    (lambda: A.Compose([crop(), A.HorizontalFlip()]), [CROP, FLIP], []),
    (lambda: [crop(), A.HorizontalFlip(p=0.25)], [CROP, RandomHorizontalFlip(0.25)], []),
    (
        lambda: crop(scale=(0.4, 1), ratio=(1, 1), interpolation=CUBIC),
        [RandomResizedCrop((32, 48), (0.4, 1.0), (1.0, 1.0), "bicubic")],
        [],
    ),
    (lambda: [crop(interpolation=NEAREST)], [RandomResizedCrop((32, 48), CROP.scale, CROP.ratio, "nearest")], []),
    (lambda: [A.SmallestMaxSize(36), A.CenterCrop(32, 30)], [Resize(36), CenterCrop((32, 30))], []),
    (lambda: [A.Resize(32, 48, interpolation=CUBIC)], [Resize((32, 48), "bicubic")], []),
    (lambda: A.Compose([crop(), A.ColorJitter(), A.HorizontalFlip()]), [CROP], ["ColorJitter", "HorizontalFlip"]),
    # what stops it
    (lambda: [crop(interpolation=AREA)], [], ["RandomResizedCrop"]),
    (lambda: [crop(interpolation=LANCZOS)], [], ["RandomResizedCrop"]),
    (lambda: [crop(area_for_downscale="image")], [], ["RandomResizedCrop"]),
    (lambda: [crop(p=0.5)], [], ["RandomResizedCrop"]),
    (lambda: [A.SmallestMaxSize([36, 40]), A.CenterCrop(32, 30)], [], ["SmallestMaxSize", "CenterCrop"]),
    (lambda: [A.SmallestMaxSize(max_size_hw=(36, 40)), A.CenterCrop(32, 30)], [], ["SmallestMaxSize", "CenterCrop"]),
    (lambda: [A.SmallestMaxSize(36), A.CenterCrop(32, 30, p=0.5)], [], ["SmallestMaxSize", "CenterCrop"]),
    (lambda: [A.CenterCrop(32, 30)], [], ["CenterCrop"]),
    (lambda: [A.OneOf([crop(), A.Resize(32, 48)], p=1)], [], ["OneOf"]),
    (lambda: A.Compose([crop()], p=0.5), [], ["Compose"]),
    (lambda: A.Compose([crop(), A.Compose([A.Blur()], p=0.5)]), [CROP], ["Compose"]),
    (lambda: A.Compose([crop()], bbox_params=A.BboxParams("yolo", label_fields=[])), [], ["Compose"]),
]


@pytest.mark.parametrize(("make", "geometry", "rest"), TABLE)
def test_what_the_engine_does_and_what_is_left(make: Any, geometry: list[Any], rest: list[str]) -> None:
    transform = make()
    lifted, following = split(transform)
    assert lifted == geometry
    assert [name.partition("(")[0] for step in following for name in step.names] == rest
    assert [row.name.partition("(")[0] for row in describe(transform) if row.where == "per sample"] == rest


def test_boxes_drawn_by_another_rule_stay() -> None:
    if "sampling_method" not in vars(crop()):
        pytest.skip("this albumentations has one rule of drawing boxes")
    assert split(crop(sampling_method="uniform_scale"))[0] == []


def test_what_comes_out_otherwise_is_said_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    transform = A.Compose([A.SmallestMaxSize(36, interpolation=CUBIC), A.CenterCrop(32, 32), A.HorizontalFlip()])
    rounding = "sides and offsets are rounded as torchvision rounds them, which may be another pixel"
    cubic = "antialiased where cv2 skips pixels, and with the kernel a = -0.5 in place of -0.75"
    assert [row.why for row in describe(transform)] == [
        f"as {Resize(36, 'bicubic')}; {cubic}; {rounding}",
        f"as {CenterCrop(32)}; {rounding}",
        f"as {FLIP}",
    ]
    with caplog.at_level(logging.WARNING, "feeder"):
        split(transform)
    instead = "feeder.per_sample(transform) would leave it as it is"
    assert [record.getMessage() for record in caplog.records] == [
        f"SmallestMaxSize of albumentations runs in the engine: {cubic}; {rounding}; {instead}",
        f"CenterCrop of albumentations runs in the engine: {rounding}; {instead}",
    ]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.asarray(picture(3, size=(48, 32))).copy()


def noisy() -> list[Any]:
    """Operations that draw from `random.Random` and from NumPy's generator."""
    return [A.ColorJitter(p=0.8), A.GaussNoise(p=0.8), A.CoarseDropout(p=0.8), A.OneOf([A.Blur(), A.Sharpen()], p=0.5)]


def test_the_same_key_gives_the_same_pixels_whatever_the_threads(pixels: np.ndarray) -> None:
    (rest,) = split(A.Compose([crop(), *noisy()]))[1]
    alone = [rest(pixels, key) for key in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: rest(pixels, key % 16), range(64)))
    np.testing.assert_array_equal(together, alone * 4)
    assert len({result.tobytes() for result in alone}) > 12


def test_a_pipeline_that_takes_no_seed_with_a_call_is_copied_by_threads(pixels: np.ndarray) -> None:
    pipeline = A.Compose(noisy())
    stage = AlbumentationsStage(pipeline, NONE, seeds_calls=False)
    alone = [stage.run(pixels, key) for key in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: stage.run(pixels, key % 16), range(64)))
    np.testing.assert_array_equal(together, alone * 4)
    assert len({result.tobytes() for result in alone}) > 12
    again = pickle.loads(pickle.dumps(stage))
    np.testing.assert_array_equal(again.run(pixels, 3), alone[3])


def test_the_rest_is_what_albumentations_does_with_the_same_seed(pixels: np.ndarray) -> None:
    operations = noisy()
    (rest,) = split([crop(), *operations])[1]
    pipeline = A.Compose(operations)
    for key in range(8):
        own = int(draw(key, 0))
        if "invocation_seed" in inspect.signature(A.Compose.__call__).parameters:
            theirs = pipeline(image=pixels.copy(), invocation_seed=own)
        else:
            pipeline.set_random_state(generator(own), random.Random(own))
            theirs = pipeline(image=pixels.copy())
        np.testing.assert_array_equal(rest(pixels.copy(), key), theirs["image"])


def test_the_users_pipeline_is_left_as_it_was(pixels: np.ndarray) -> None:
    def draws(used: bool) -> list[bytes]:
        pipeline = A.Compose(noisy(), seed=3)
        if used:
            per_sample(pipeline)(pixels, 1)
            split([crop(), *pipeline.transforms])[1][0](pixels, 1)
        return [pipeline(image=pixels)["image"].tobytes() for _ in range(4)]

    assert draws(used=True) == draws(used=False)


def test_a_function_of_a_users_own_within_draws_the_same(pixels: np.ndarray) -> None:
    def noise(image: np.ndarray, **_: Any) -> np.ndarray:
        return np.random.randint(0, 256, image.shape, np.uint8)  # noqa: NPY002

    (rest,) = split([crop(), A.Lambda(image=noise, p=1)])[1]
    np.testing.assert_array_equal(rest(pixels, 4), rest(pixels, 4))
    (row,) = describe(A.Lambda(image=noise, p=1))
    assert row.why == (
        "not a crop, resize or flip; one at a time: random, numpy.random and torch are seeded for each sample"
    )


def test_it_goes_with_torchvision_and_functions(pixels: np.ndarray) -> None:
    from tests.peers import torchvision_transforms

    v2 = torchvision_transforms()
    torch = peer("torch")
    (rest,) = split([crop(), v2.RandomVerticalFlip(1), A.VerticalFlip(p=1), np.asarray, v2.ToImage()])[1]
    result = rest(pixels.copy(), 0)
    assert torch.equal(result, torch.from_numpy(pixels).movedim(-1, 0))  # flipped twice
    (rest,) = split([crop(), A.Normalize(p=1), v2.RandomHorizontalFlip(1)])[1]
    assert rest(pixels, 0).shape == (3, 32, 48)
    assert rest(pixels, 0).dtype == torch.float32


def test_what_it_raises_names_the_pipeline(pixels: np.ndarray) -> None:
    with pytest.raises(TransformError) as caught:
        per_sample([A.CenterCrop(64, 64)])(pixels, 0)
    assert str(caught.value).startswith("transform Compose(CenterCrop) raised CropSizeError: ")
    assert isinstance(caught.value, feeder.FeederError)
