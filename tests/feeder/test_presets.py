"""Presets and their spelling."""

import pytest

from feeder import presets
from feeder.errors import ConfigError
from feeder.pixels import ColorJitter, GaussianBlur, RandomApply, RandomGrayscale, RandomSolarize
from feeder.program import compile_program
from feeder.transforms import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize

NAMES = "imagenet-train, imagenet-eval, clip, clip-eval, dino"


def test_training_is_a_random_resized_crop_and_a_flip():
    assert presets.imagenet_train() == (RandomResizedCrop(224), RandomHorizontalFlip(0.5))
    assert presets.imagenet_train(96, interpolation="bicubic", normalize=True) == (
        RandomResizedCrop(96, interpolation="bicubic"),
        RandomHorizontalFlip(0.5),
        Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )


def test_evaluation_resizes_to_256_of_224():
    assert presets.imagenet_eval() == (Resize(256), CenterCrop(224))
    assert presets.imagenet_eval(448) == (Resize(512), CenterCrop(448))
    assert presets.imagenet_eval(224, resize=232, interpolation="bicubic")[0] == Resize(232, "bicubic")


def test_clip_is_trained_on_nearly_the_whole_image():
    assert presets.clip() == (RandomResizedCrop(224, (0.9, 1.0), interpolation="bicubic"),)
    assert presets.clip(336, normalize=True)[1:] == (Normalize(presets.CLIP_MEAN, presets.CLIP_STD),)
    assert presets.clip_eval(96, normalize=True) == (
        Resize(96, "bicubic"),
        CenterCrop(96),
        Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    )


def test_dino_has_two_different_global_views_and_eight_local_ones():
    program = compile_program(presets.dino(48, 24, normalize=True))
    assert [(view.name, view.geometry.size, view.geometry.views) for view in program.views] == [
        ("global_1", (48, 48), 1),
        ("global_2", (48, 48), 1),
        ("local", (24, 24), 8),
    ]
    assert [view.geometry.box.scale for view in program.views] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert {(view.geometry.interpolation, view.geometry.flip) for view in program.views} == {("bicubic", 0.5)}
    operations = [[operation.transform for operation in view.operations] for view in program.views]
    jitter = [RandomApply([ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), RandomGrayscale(0.2)]
    last = Normalize(presets.IMAGENET_MEAN, presets.IMAGENET_STD)
    blur = GaussianBlur(9, (0.1, 2.0))
    assert operations == [
        [*jitter, RandomApply([blur], p=1.0), last],
        [*jitter, RandomApply([blur], p=0.1), RandomSolarize(128, p=0.2), last],
        [*jitter, RandomApply([blur], p=0.5), last],
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 160, 224, 299, 512])
def test_every_size_compiles(size):
    for make in (presets.imagenet_train, presets.imagenet_eval, presets.clip, presets.clip_eval):
        (view,) = compile_program(make(size, normalize=True)).views
        assert view.geometry.size == (size, size)


def test_parse():
    assert presets.parse("imagenet-train") == presets.imagenet_train()
    assert presets.parse("imagenet-eval:160") == presets.imagenet_eval(160)
    assert presets.parse("clip:336") == presets.clip(336)
    assert presets.parse("clip-eval:224:bilinear") == presets.clip_eval(interpolation="bilinear")
    assert repr(presets.parse("dino:64:bilinear")) == repr(presets.dino(64, interpolation="bilinear"))
    assert presets.parse("imagenet-train:224:bicubic") == presets.imagenet_train(interpolation="bicubic")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "imagenet",
            (f"transform 'imagenet' is not known; write NAME[:SIZE[:INTERPOLATION]], where NAME is one of {NAMES}"),
        ),
        (
            "imagenet-eval:224:bicubic:x",
            (
                "transform 'imagenet-eval:224:bicubic:x' is not known; write NAME[:SIZE[:INTERPOLATION]], where NAME "
                f"is one of {NAMES}"
            ),
        ),
        (
            "imagenet-train:big",
            "transform 'imagenet-train:big' has the size 'big'; write a number of pixels, as in imagenet-train:224",
        ),
        ("imagenet-train:0", "RandomResizedCrop got size=0; give a side or (height, width), whole pixels above 0"),
        (
            "imagenet-train:224:cubic",
            "RandomResizedCrop got interpolation='cubic'; give one of 'bilinear', 'bicubic', 'nearest'",
        ),
    ],
)
def test_parse_refusals(text, sentence):
    with pytest.raises(ConfigError) as caught:
        presets.parse(text)
    assert str(caught.value) == sentence
