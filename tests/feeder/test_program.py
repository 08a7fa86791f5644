"""What a user's transforms become: groups of views, their geometry, and the operations that follow."""

import numpy as np
import pytest

import feeder
from feeder.errors import ConfigError, TransformError
from feeder.pixels.mixers import mixed_rows
from feeder.program import Views, compile_program
from feeder.transforms import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize

NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Invert:
    """The least that is a pixel transform."""

    takes_normalized = False

    def draw(self, keys, height, width):
        return {}

    def apply(self, images, params):
        np.subtract(255, images, out=images)


def test_transforms_part_into_geometry_and_operations():
    (view,) = compile_program([RandomHorizontalFlip(), RandomResizedCrop(5), Invert(), Invert(), NORMALIZE]).views
    assert view.name == "image"
    assert view.geometry.size == (5, 5)
    assert [operation.name for operation in view.operations] == ["Invert", "Invert 2", "Normalize"]
    assert view.dtype is np.float32
    assert view.function is None


def test_a_single_transform_is_a_sequence_of_one():
    assert compile_program(RandomResizedCrop(8)) == compile_program([RandomResizedCrop(8)])


def test_another_operation_changes_no_draws_of_the_others():
    keys = np.arange(3, dtype=np.uint64)
    (alone,) = compile_program([RandomResizedCrop(5), Invert()]).views
    (second,) = compile_program([RandomResizedCrop(5), Invert(), Invert()]).views
    assert np.array_equal(alone.operations[0].keys(keys), second.operations[0].keys(keys))
    assert not np.array_equal(second.operations[0].keys(keys), second.operations[1].keys(keys))


def test_views_count_on_over_groups():
    program = compile_program(Views({"large": ([RandomResizedCrop(8)], 2), "small": ([RandomResizedCrop(4)], 3)}))
    assert [(view.name, view.first, view.geometry.views) for view in program.views] == [
        ("large", 0, 2),
        ("small", 2, 3),
    ]
    zeros = np.zeros(1, np.int64)
    keys = [view.keys(0, 0, zeros, zeros) for view in program.views]
    assert np.array_equal(
        np.concatenate(keys, axis=1), compile_program([RandomResizedCrop(8)], views=5).views[0].keys(0, 0, zeros, zeros)
    )


@pytest.mark.parametrize(
    ("transforms", "sentence"),
    [
        (
            [RandomHorizontalFlip(), NORMALIZE],
            "no transform gives all images one size: add RandomResizedCrop(224), or Resize(256) and CenterCrop(224)",
        ),
        (
            [NORMALIZE, Resize((3, 3))],
            (
                "Resize stands behind Normalize; boxes are cut from stored pixels, and what changes pixels comes"
                " afterwards: put Resize before"
            ),
        ),
        ([Resize((3, 3)), NORMALIZE, NORMALIZE], "Normalize stands twice in the transforms; keep one"),
        (
            [Resize((3, 3)), NORMALIZE, Invert()],
            "Invert stands behind Normalize and works on uint8 pixels: put it before",
        ),
        (
            [Resize((3, 3)), feeder.Shuffle()],
            (
                "Shuffle stands among the transforms, and is none; give operations of feeder, torchvision or"
                " albumentations, or functions of pixels"
            ),
        ),
        (
            feeder.presets.imagenet_train,
            "imagenet_train of feeder.presets was given itself: write imagenet_train(…)",
        ),
        ([Resize((3, 3)), CenterCrop], "CenterCrop was given as a class: write CenterCrop(…) with its arguments"),
    ],
)
def test_refusals(transforms, sentence):
    with pytest.raises(ConfigError) as caught:
        compile_program(transforms)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({}, "Views got {}; give a dictionary such as {'global': ([RandomResizedCrop(224)], 2)}"),
        ({"label": ([], 1)}, "Views got a group called 'label'; give a name that batches do not use already"),
        ({"a": ([], 0)}, "Views got ([], 0) for 'a'; give (transforms, how many), such as ([…], 2)"),
    ],
)
def test_views_that_cannot_be(groups, sentence):
    with pytest.raises(ConfigError) as caught:
        feeder.Views(groups)
    assert str(caught.value) == sentence


def test_views_in_two_ways_are_refused():
    with pytest.raises(ConfigError, match="got views=2 and Views, which say how many themselves; give one of the two"):
        compile_program(Views({"a": ([RandomResizedCrop(8)], 2)}), views=2)


def open_folder(folder, transform, **changes):
    """Open a dataset whose batches show what functions and operations do to images."""
    chosen = {"batch_size": 4, "seed": 3, "threads": 2, "arrays": "numpy", "shuffle": False}
    return feeder.ImageDataset(folder, transform=transform, **{**chosen, **changes})


def test_operations_run_in_their_order_on_the_pixels_of_the_engine(image_folder):
    crop = [RandomResizedCrop(16), RandomHorizontalFlip()]
    plain = next(iter(open_folder(image_folder, crop)))
    inverted = next(iter(open_folder(image_folder, [*crop, Invert()], views=1)))
    normalised = next(iter(open_folder(image_folder, [*crop, Invert(), NORMALIZE])))
    assert np.array_equal(inverted["image"], 255 - plain["image"])
    assert normalised["image"].dtype == np.float32
    np.testing.assert_allclose(normalised["image"], ((255 - plain["image"]) / 255 - 0.5) / 0.25, atol=1e-5)


def noisy(pixels, rng):
    """A user's function: noise from its own generator."""
    return np.clip(pixels + rng.normal(0, 9, pixels.shape), 0, 255).astype(np.uint8)


def failing(pixels):
    raise ZeroDivisionError("no luck")


@pytest.mark.parametrize("threads", [1, 3])
def test_functions_of_pixels_are_seeded_for_each_sample(image_folder, threads):
    def batches(**changes):
        return [batch["image"] for batch in open_folder(image_folder, [RandomResizedCrop(16), noisy], **changes)]

    first = batches(threads=threads)
    assert all(np.array_equal(one, other) for one, other in zip(first, batches(threads=2), strict=True))
    plain = [batch["image"] for batch in open_folder(image_folder, [RandomResizedCrop(16)])]
    assert not np.array_equal(first[0], plain[0])
    assert first[0].shape == plain[0].shape


def test_a_function_may_take_whole_images_and_give_one_size(image_folder):
    def corner(pixels):
        return pixels[:8, :8].astype(np.float32)

    dataset = open_folder(image_folder, [corner], views=2)
    batch = next(iter(dataset))
    assert batch["image"].shape == (4, 2, 8, 8, 3)
    assert batch["crop"][:, 0].tolist() == [[0, 0, *size] for size in batch["size"].tolist()]
    sizes = {tuple(size) for size in batch["size"].tolist()}
    assert len(sizes) > 1
    with pytest.raises(
        ConfigError, match=r"returned \(\d+, \d+, 3\) uint8 for one sample and \(\d+, \d+, 3\) uint8 for"
    ):
        next(iter(open_folder(image_folder, [lambda pixels: pixels])))


def test_a_function_of_whole_images_pads_a_batch_without_a_sample(image_folder):
    def cut(pixels):
        return pixels[np.arange(30), :30]  # which fails on images that are smaller

    chosen = {"batch_size": 4, "rank": 7, "world_size": 8}
    last = list(open_folder(image_folder, cut, **chosen))[-1]
    assert last["image"].shape == (4, 30, 30, 3)
    assert not last["valid"].any()
    assert not last["image"].any()


def test_a_function_that_fails_is_said_with_its_sample(image_folder):
    with pytest.raises(TransformError) as caught:
        next(iter(open_folder(image_folder, [RandomResizedCrop(16), failing], on_error="replace")))
    assert str(caught.value).startswith("transform failing (")
    assert "raised ZeroDivisionError: no luck; at sample " in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


COLOURS = [
    feeder.ColorJitter(0.4, 0.4, 0.4, 0.1),
    feeder.RandomGrayscale(0.3),
    feeder.RandomApply([feeder.GaussianBlur(3)], p=0.5),
    feeder.RandomSolarize(128, p=0.3),
    NORMALIZE,
    feeder.RandomErasing(p=0.5),
]


@pytest.mark.parametrize("mixer", [feeder.MixUp(num_classes=3), feeder.CutMix(num_classes=3)])
@pytest.mark.parametrize("views", [1, 2])
def test_the_device_gives_the_pixels_that_the_host_gives(image_folder, mixer, views):
    """The last batch has padded rows, which are zeros."""
    chosen = {"transform": [RandomResizedCrop(16), *COLOURS, mixer], "views": views, "batch_size": 8, "arrays": "auto"}
    host = list(open_folder(image_folder, **chosen))
    with feeder.Loader(open_folder(image_folder, **chosen), workers=0, device="cpu", pixels_on_device=True) as loader:
        device = list(loader)
    assert len(host) == len(device) == 5
    for one, other in zip(host, device, strict=True):
        assert one.keys() == other.keys()
        assert one["image"].shape == other["image"].shape
        assert one["image"].stride() == other["image"].stride()
        np.testing.assert_allclose(one["image"], other["image"], atol=2.1 / 255 / 0.25)
        assert np.mean(np.abs(np.asarray(one["image"] - other["image"])) > 1e-4) < 0.02
        np.testing.assert_allclose(one["label"], other["label"], atol=1e-6)
    assert not host[-1]["image"][4:].any()


@pytest.mark.parametrize("mixer", [feeder.MixUp(num_classes=3), None])
def test_the_device_gives_what_the_host_gives_where_no_row_is_valid(image_folder, mixer):
    """The last of 8 ranks has only padding in the last step."""
    transform = [RandomResizedCrop(16), feeder.ColorJitter(0.5), NORMALIZE, *filter(None, [mixer])]
    chosen = {"transform": transform, "batch_size": 4, "rank": 7, "world_size": 8, "arrays": "auto"}
    host = list(open_folder(image_folder, **chosen))[-1]
    with feeder.Loader(open_folder(image_folder, **chosen), workers=0, device="cpu", pixels_on_device=True) as loader:
        device = list(loader)[-1]
    assert not host["valid"].any()
    for name in ("image", "label"):
        assert host[name].dtype == device[name].dtype
        assert host[name].stride() == device[name].stride()
        assert np.array_equal(host[name], device[name])


def test_transforms_set_in_mid_iteration_are_those_of_the_next_on_a_device(image_folder):
    def loader():
        dataset = open_folder(image_folder, [RandomResizedCrop(16), feeder.ColorJitter(0.5), NORMALIZE], arrays="auto")
        return feeder.Loader(dataset, workers=0, device="cpu", pixels_on_device=True)

    undisturbed = [batch["image"] for batch in loader()]
    changed = loader()
    iteration = iter(changed)
    images = [next(iteration)["image"]]
    changed.set_transform([RandomResizedCrop(8), feeder.RandomInvert(1.0)])
    images += [batch["image"] for batch in iteration]
    assert all(np.array_equal(one, other) for one, other in zip(images, undisturbed, strict=True))
    assert next(iter(changed))["image"].shape[-2:] == (8, 8)


@pytest.mark.parametrize("own", [Invert(), feeder.RandomApply([Invert()], p=1.0)])
def test_an_operation_of_a_users_own_is_not_left_to_the_device(image_folder, own):
    (batch,) = list(
        open_folder(image_folder, [RandomResizedCrop(16), own], batch_size=36).stream(epoch=0, pixels_on_device=True)
    )
    (plain,) = list(open_folder(image_folder, [RandomResizedCrop(16), own], batch_size=36))
    assert "_params" not in batch
    assert np.array_equal(batch["image"], plain["image"])


def test_a_batch_is_mixed_at_its_end_with_draws_of_its_first_sample(image_folder):
    crop = [RandomResizedCrop(16), NORMALIZE]
    mixer = feeder.MixUp(alpha=0.4, num_classes=3)
    plain = open_folder(image_folder, crop).batch(epoch=0, step=2)
    mixed = open_folder(image_folder, [*crop, mixer]).batch(epoch=0, step=2)
    (view,) = compile_program([*crop, mixer]).views
    params = view.mixing(3, 0, int(plain["id"][0]), 0)
    lam, ring = float(params["lam"][0]), mixed_rows(plain["label"], plain["valid"], 3, params)
    images, one_hot = plain["image"][ring], np.eye(3)[plain["label"]][ring]
    expected = lam * images + (1 - lam) * np.roll(images, 1, axis=0)
    np.testing.assert_allclose(mixed["image"][ring], expected, atol=1e-5)
    expected = lam * one_hot + (1 - lam) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(mixed["label"][ring], expected, atol=1e-6)
    assert mixed["label"].dtype == np.float32


@pytest.mark.parametrize(
    ("transforms", "sentence"),
    [
        (
            [RandomResizedCrop(8), feeder.MixUp(num_classes=3), NORMALIZE],
            (
                "MixUp mixes whole batches, and Normalize stands behind it: put MixUp last; RandomChoice([MixUp(…),"
                " CutMix(…)]) takes turns"
            ),
        ),
        (
            [RandomResizedCrop(8), noisy, feeder.CutMix(num_classes=3)],
            "CutMix stands behind a function, which may give back anything; mix its batches in the loop",
        ),
        (
            Views({"a": ([RandomResizedCrop(8), feeder.CutMix(num_classes=3)], 1)}),
            "CutMix mixes images with labels, and Views have several batches of images; leave it out",
        ),
    ],
)
def test_mixers_that_cannot_stand_where_they_do(transforms, sentence):
    with pytest.raises(ConfigError) as caught:
        compile_program(transforms)
    assert str(caught.value) == sentence


def test_print_says_what_runs_where_and_what_it_costs(image_folder):
    def noise(pixels, rng):
        return noisy(pixels, rng)

    dataset = open_folder(image_folder, [RandomResizedCrop(16), Invert(), noise], limit=20)
    lines = str(dataset).splitlines()
    assert lines[0] == f"ImageDataset {image_folder}: 36 samples, digest {dataset.digest}"
    assert lines[1] == "  order       as stored, not shuffled"
    assert lines[2] == "  batches     5 steps an epoch, of 4 samples over all ranks"
    assert lines[3] == "  image       16 x 16, then what the functions give"
    assert lines[4].startswith("              RandomResizedCrop, in engine pillow: as RandomResizedCrop(size=16,")
    assert lines[5] == "              Invert, in decode threads: one of shardfeed's own"
    assert ", per sample: " in lines[6]
    assert lines[7].startswith("              cost: Invert: 0.")
    assert lines[8].startswith("  cost        reading: ")
    assert lines[8].endswith(" ms a sample in one thread; measured over 16 samples")
    list(dataset)
    assert str(dataset).endswith("; measured over 36 samples")


def test_print_does_not_fail_where_iterating_would(image_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    text = str(open_folder(image_folder, [RandomResizedCrop(16)]))
    assert "  order       not settled: the environment has WORLD_SIZE=4 but no RANK; " in text
    assert "; not measured: the environment has WORLD_SIZE=4 but no RANK; " in text
