"""Pipelines of torchvision: what the engine does of them, and that the rest is what torchvision itself would do."""

import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

import feeder
from feeder.augment import compile_transforms
from feeder.engines.pillow import PillowEngine
from feeder.errors import ConfigError
from feeder.foreign import describe, per_sample, split
from feeder.transforms import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize
from tests.images import encoded, picture
from tests.peers import peer, torchvision_transforms

v2 = torchvision_transforms()
v1 = peer("torchvision.transforms")
torch = peer("torch")

BICUBIC = v1.InterpolationMode.BICUBIC
CROP, FLIP = RandomResizedCrop(32), RandomHorizontalFlip()


class Mine(v2.RandomResizedCrop):
    """A subclass may do anything."""


def double(value: Any) -> Any:
    return value


TABLE = [
    # what is given, what the engine does, what is left
    (lambda: [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()], [CROP, FLIP], ""),
    (lambda: v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()]), [CROP, FLIP], ""),
    (
        lambda: v1.Compose([v1.RandomResizedCrop(32), v1.RandomHorizontalFlip(0.25)]),
        [CROP, RandomHorizontalFlip(0.25)],
        "",
    ),
    (lambda: torch.nn.Sequential(v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()), [CROP, FLIP], ""),
    (lambda: v2.Compose([v2.Compose([v2.RandomResizedCrop(32)]), v2.RandomHorizontalFlip()]), [CROP, FLIP], ""),
    (lambda: v2.RandomResizedCrop((32, 48)), [RandomResizedCrop((32, 48))], ""),
    (
        lambda: v2.RandomResizedCrop(32, scale=(0.4, 1), ratio=(1, 1), interpolation=BICUBIC),
        [RandomResizedCrop(32, (0.4, 1.0), (1.0, 1.0), "bicubic")],
        "",
    ),
    (
        lambda: v2.RandomResizedCrop(32, interpolation=Image.Resampling.BICUBIC),
        [RandomResizedCrop(32, interpolation="bicubic")],
        "",
    ),
    (lambda: v2.RandomResizedCrop(32, interpolation=3), [RandomResizedCrop(32, interpolation="bicubic")], ""),
    (lambda: [v2.Resize(36), v2.CenterCrop(32)], [Resize(36), CenterCrop(32)], ""),
    (lambda: [v1.Resize(36, BICUBIC), v1.CenterCrop(32)], [Resize(36, "bicubic"), CenterCrop(32)], ""),
    (lambda: [v2.Resize([36]), v2.CenterCrop([32, 30])], [Resize(36), CenterCrop((32, 30))], ""),
    (lambda: [v2.Resize((36, 40))], [Resize((36, 40))], ""),
    # conversions
    (lambda: [v2.ToImage(), v2.RandomResizedCrop(32)], [CROP], ""),
    (lambda: [v2.PILToTensor(), v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()], [CROP, FLIP], ""),
    (lambda: [v2.RGB(), v2.RandomResizedCrop(32), v2.ToImage(), v2.RandomHorizontalFlip()], [CROP, FLIP], ""),
    (lambda: [v2.ToImage(), v2.ToDtype(torch.uint8, scale=True), v2.RandomResizedCrop(32)], [CROP], ""),
    (lambda: [v2.RandomResizedCrop(32), v2.ToImage(), v2.ToPILImage(), v2.ToPureTensor()], [CROP], ""),
    (
        lambda: [
            v2.ToImage(),
            v2.RandomResizedCrop(32),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ],
        [CROP],
        "PerSample(ToDtype, Normalize)",
    ),
    (lambda: [v1.RandomResizedCrop(32), v1.ToTensor()], [CROP], "PerSample(ToTensor)"),
    (lambda: [v2.RandomResizedCrop(32), v2.ToPILImage("L")], [CROP], "PerSample(ToPILImage)"),
    # what stops it
    (
        lambda: [v2.RandomResizedCrop(32), v2.ColorJitter(0.4), v2.RandomHorizontalFlip()],
        [CROP],
        "PerSample(ColorJitter, RandomHorizontalFlip)",
    ),
    (lambda: [v2.ColorJitter(0.4), v2.RandomResizedCrop(32)], [], "PerSample(ColorJitter, RandomResizedCrop)"),
    (lambda: [v1.ToTensor(), v1.RandomResizedCrop(32)], [], "PerSample(ToTensor, RandomResizedCrop)"),
    (
        lambda: [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.RandomResizedCrop(32)],
        [],
        "PerSample(ToImage, ToDtype, RandomResizedCrop)",
    ),
    (lambda: [v2.Resize(36), v2.RandomCrop(32)], [], "PerSample(Resize, RandomCrop)"),
    (lambda: [v2.Resize((36, 36)), v2.RandomCrop(32)], [Resize((36, 36))], "PerSample(RandomCrop)"),
    (lambda: [v2.CenterCrop(32)], [], "PerSample(CenterCrop)"),
    (lambda: [v2.RandomResizedCrop(32), v2.CenterCrop(24)], [CROP], "PerSample(CenterCrop)"),
    (lambda: [v2.RandomHorizontalFlip(), v2.RandomCrop(32)], [], "PerSample(RandomHorizontalFlip, RandomCrop)"),
    (lambda: [v2.RandomResizedCrop(32), v2.RandomVerticalFlip()], [CROP], "PerSample(RandomVerticalFlip)"),
    (lambda: [v2.RandomApply([v2.RandomResizedCrop(32)])], [], "PerSample(RandomApply)"),
    (lambda: [Mine(32)], [], "PerSample(Mine)"),
    # arguments
    (lambda: [v2.ToImage(), v2.RandomResizedCrop(32, antialias=False)], [], "PerSample(ToImage, RandomResizedCrop)"),
    (lambda: [v2.RandomResizedCrop(32, antialias=False)], [], "PerSample(RandomResizedCrop)"),
    (lambda: [v2.RandomResizedCrop(32, antialias=False), v2.ToImage()], [CROP], ""),  # PIL images: always antialiased
    (lambda: [v1.RandomResizedCrop(32, antialias=None), v1.ToTensor()], [CROP], "PerSample(ToTensor)"),
    (lambda: [v2.ToImage(), v2.Resize((9, 9), interpolation="nearest")], [], "PerSample(ToImage, Resize)"),
    (lambda: [v2.ToImage(), v2.Resize((9, 9), interpolation="nearest-exact")], [], "PerSample(ToImage, Resize)"),
    (lambda: [v1.Resize((9, 9), v1.InterpolationMode.NEAREST_EXACT)], [Resize((9, 9), "nearest")], ""),
    (lambda: [v2.Resize((9, 9), interpolation="nearest"), v2.ToImage()], [Resize((9, 9), "nearest")], ""),
    (
        lambda: [v2.RandomResizedCrop(32, interpolation="lanczos"), v2.ToImage()],
        [],
        "PerSample(RandomResizedCrop, ToImage)",
    ),
    (lambda: [v2.Resize(36, max_size=50), v2.CenterCrop(32)], [], "PerSample(Resize, CenterCrop)"),
    (lambda: [v2.Resize(None, max_size=50), v2.CenterCrop(32)], [], "PerSample(Resize, CenterCrop)"),
    (lambda: [v2.RandomResizedCrop(32, scale=(0.5, 2.0))], [], "PerSample(RandomResizedCrop)"),
    # beside ours, and functions
    (lambda: [CROP, v2.RandomHorizontalFlip()], [CROP, FLIP], ""),
    (lambda: [v2.RandomResizedCrop(32), FLIP, v2.ColorJitter()], [CROP, FLIP], "PerSample(ColorJitter)"),
    (lambda: [v2.Resize(36), CenterCrop(32)], [Resize(36), CenterCrop(32)], ""),
    (lambda: [Resize(36), v2.RandomCrop(32)], [Resize(36)], "PerSample(RandomCrop)"),
    (lambda: [v2.RandomResizedCrop(32), Normalize((0, 0, 0), (1, 1, 1))], [CROP], "Normalize"),
    (lambda: [double, v2.RandomResizedCrop(32)], [], "PerSample(double, RandomResizedCrop)"),
]


@pytest.mark.parametrize(("make", "geometry", "rest"), TABLE)
def test_what_the_engine_does_and_what_is_left(make: Any, geometry: list[Any], rest: str) -> None:
    transform = make()
    lifted, following = split(transform)
    assert lifted == geometry
    names = [name.partition("(")[0] for name in rest.removeprefix("PerSample(").removesuffix(")").split(", ") if name]
    assert [
        name.partition("(")[0].strip() for step in following for name in getattr(step, "names", [type(step).__name__])
    ] == names
    rows = describe(transform)
    assert [row.name.partition("(")[0].strip() for row in rows if row.where != "engine"] == names


def decoded(geometry: list[Any], *, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return what the engine makes of picture 5, (H, W, 3)."""
    compiled = compile_transforms(geometry)
    one = np.array([0])
    windows = compiled.windows(seed, 0, one, one, np.array([size[0]]), np.array([size[1]]))
    out = np.empty((1, 1, *compiled.size, 3), np.uint8)
    assert PillowEngine().decode([encoded(5, size=size, format="PNG")], [windows], [out]) == {}
    return out[0, 0]


WHOLE = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}  # of an image of 64 x 48: the box is the image
DEGENERATE = [
    (lambda m: [m.RandomResizedCrop(32, **WHOLE), m.RandomHorizontalFlip(1)], 0),
    (lambda m: [m.RandomResizedCrop((24, 40), interpolation=BICUBIC, **WHOLE), m.RandomHorizontalFlip(0)], 0),
    (lambda m: [m.Resize(40), m.CenterCrop(32)], 0),
    (lambda m: [m.Resize(40, BICUBIC), m.CenterCrop((31, 28)), m.RandomHorizontalFlip(1)], 0),
    (lambda m: [m.Resize((30, 50))], 0),
    (lambda m: [m.Resize((30, 50), v1.InterpolationMode.NEAREST), m.PILToTensor()], 0),
    (lambda m: [v2.ToImage(), m.RandomResizedCrop(32, **WHOLE)], 1),
    (lambda m: [v2.ToImage(), m.Resize(40, BICUBIC), m.CenterCrop(32)], 1),
    (lambda m: [m.Resize((30, 50), v1.InterpolationMode.NEAREST_EXACT), v2.ToImage()], 0),
]


@pytest.mark.parametrize("module", [v1, v2])
@pytest.mark.parametrize(("make", "tolerance"), DEGENERATE)
def test_the_engine_gives_the_pixels_that_torchvision_gives_of_an_image_folder(
    module: Any, make: Any, tolerance: int
) -> None:
    operations = make(module)
    geometry, following = split(operations)
    assert geometry
    assert not following
    theirs = v1.Compose(operations)(picture(5, size=(64, 48)))
    theirs = np.asarray(theirs) if isinstance(theirs, Image.Image) else np.moveaxis(theirs.numpy(), 0, -1)
    difference = np.abs(decoded(geometry, size=(64, 48)).astype(int) - theirs)
    assert difference.max() <= tolerance


@pytest.fixture
def pixels() -> np.ndarray:
    return np.asarray(picture(3, size=(32, 24))).copy()


def seeded(transform: Any, value: Any, key: int) -> Any:
    """Return what torchvision makes of a value, its generator seeded as for the first operation of a sample."""
    from feeder.keyed import draw

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draw(key, 0)))
        return transform(value)


NORMALIZE = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
RESTS = [
    (
        lambda: v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        "pil",
    ),
    (lambda: v2.Compose([v2.ToImage(), v2.ColorJitter(0.4), v2.GaussianBlur(3), v2.RandomErasing(1.0)]), "pil"),
    (lambda: v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMALIZE)]), "image"),
    (lambda: v2.Compose([v2.RandomSolarize(100), v2.RandomRotation(30), v2.RandomGrayscale(0.5)]), "image"),
    (lambda: v2.Compose([v2.RandAugment(), v2.RandomApply([v2.GaussianBlur(3)], 0.5)]), "image"),
    (lambda: v2.Compose([v2.TrivialAugmentWide(), v2.PILToTensor()]), "pil"),
    (lambda: v1.Compose([v1.AutoAugment(), v1.ToTensor(), v1.Normalize(*NORMALIZE)]), "pil"),
    (lambda: v1.Compose([v1.ColorJitter(0.4), v1.RandomGrayscale(0.5)]), "pil"),
    (lambda: v1.Compose([v1.ConvertImageDtype(torch.float32), v1.RandomErasing(1.0)]), "tensor"),
]


@pytest.mark.parametrize(("make", "kind"), RESTS)
def test_the_rest_is_what_torchvision_does_with_the_same_seed(make: Any, kind: str, pixels: np.ndarray) -> None:
    transform = make()
    (rest,) = split(transform)[1]
    tensor = torch.from_numpy(pixels.copy()).movedim(-1, 0)
    value = {"pil": Image.fromarray(pixels), "image": v2.functional.to_image(tensor), "tensor": tensor}[kind]
    for key in (1, 2**64 - 1):
        theirs, ours = seeded(transform, value, key), rest(pixels.copy(), key)
        if isinstance(theirs, Image.Image):
            np.testing.assert_array_equal(ours, np.asarray(theirs))
        else:
            assert type(ours) is torch.Tensor
            torch.testing.assert_close(ours, theirs.as_subclass(torch.Tensor), rtol=0, atol=0)


def test_what_was_converted_in_front_arrives_converted(pixels: np.ndarray) -> None:
    seen = []
    for conversions in (
        [],
        [v2.ToImage()],
        [v2.PILToTensor()],
        [v2.ToImage(), v2.ToPureTensor()],
        [v2.ToImage(), v2.ToPILImage()],
    ):
        (rest,) = split(v1.Compose([*conversions, v2.RandomResizedCrop(32), seen.append]))[1]
        with pytest.raises(feeder.FeederError):
            rest(pixels, 0)  # append returns None
    assert [type(value).__name__ for value in seen] == ["Image", "Image", "Tensor", "Tensor", "Image"]
    # the last is a PIL image, the others are tensors
    assert [isinstance(value, torch.Tensor) for value in seen] == [True, True, True, True, False]


def test_operations_that_draw_nothing_need_no_lock() -> None:
    manners = {
        row.name: row.why.rpartition("; ")[2]
        for row in describe([feeder.RandomResizedCrop(8), v2.ToDtype(torch.float32), v2.Normalize([0.5], [0.5])])
    }
    assert manners["ToDtype"] == manners["Normalize"] == "in all threads: draws nothing"
    (row,) = describe([v2.RandomApply([v2.Normalize([0.5], [0.5])])])
    assert row.why == "not a crop, resize or flip; one at a time: torch is seeded for each sample"
    (row,) = describe([v1.RandomChoice([v1.RandomGrayscale()])])
    assert row.why.endswith("; one at a time: random and torch are seeded for each sample")
    (row,) = describe([v2.RandomApply([v2.Lambda(double)])])
    assert row.why.endswith("one at a time: random, numpy.random and torch are seeded for each sample")


def test_why_an_operation_stays() -> None:
    rows = describe(v2.Compose([v2.ToImage(), v2.RandomResizedCrop(32, antialias=False), v2.RandomHorizontalFlip()]))
    assert [(row.where, row.why.partition("; ")[0]) for row in rows] == [
        ("per sample", "up to here, images would be of sizes that differ"),
        (
            "per sample",
            "antialias=False leaves out pixels of tensors, which no engine does",
        ),
        ("per sample", "stands behind ToImage"),
    ]


def test_per_sample_lifts_nothing(pixels: np.ndarray) -> None:
    rest = per_sample([v2.Resize((8, 9)), v2.ToImage()])
    assert split(rest) == ([], [rest])
    assert split([feeder.RandomResizedCrop(32), rest]) == ([feeder.RandomResizedCrop(32)], [rest])
    assert rest(pixels, 0).shape == (3, 8, 9)
    assert repr(rest) == "PerSample(Resize, ToImage)"
    with pytest.raises(ConfigError) as caught:
        per_sample([feeder.RandomHorizontalFlip()])
    assert str(caught.value) == "per_sample got an operation of shardfeed's own; give it those of others, or a function"


def test_a_class_in_place_of_an_operation_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        split([v2.RandomResizedCrop])
    assert str(caught.value) == "RandomResizedCrop was given as a class: write RandomResizedCrop(…) with its arguments"


def test_the_rest_is_the_same_after_it_was_sent_elsewhere(pixels: np.ndarray) -> None:
    (rest,) = split(v2.Compose([v2.RandomResizedCrop(32), v2.ColorJitter(0.4), v2.RandomErasing(1.0)]))[1]
    again = pickle.loads(pickle.dumps(rest))
    torch.testing.assert_close(again(pixels.copy(), 3), rest(pixels.copy(), 3), rtol=0, atol=0)
