"""What a user's transforms become: groups of views, their geometry, and the operations that follow."""

import numpy as np
import pytest

import feeder
from feeder.errors import ConfigError
from feeder.program import Views, compile_program
from feeder.transforms import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize

NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Invert:
    """The least that is a pixel transform."""

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
