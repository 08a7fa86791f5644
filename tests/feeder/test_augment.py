"""Transforms: what they accept, and what a sequence of them compiles to, with every refusal's sentence."""

import enum
import pickle

import numpy as np
import pytest

from feeder.augment import compile_transforms
from feeder.errors import ConfigError
from feeder.transforms import CenterCrop, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize

NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class InterpolationMode(enum.Enum):
    """As torchvision's."""

    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class TestDescriptions:
    def test_defaults_are_torchvisions(self):
        assert RandomResizedCrop(224) == RandomResizedCrop((224, 224), (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")
        assert Resize(256).interpolation == "bilinear"
        assert RandomHorizontalFlip() == RandomHorizontalFlip(p=0.5)

    def test_sizes_are_read_as_torchvision_reads_them(self):
        assert RandomResizedCrop([96, 128]).size == (96, 128)
        assert RandomResizedCrop([96]).size == 96
        assert Resize([256]).size == 256
        assert Resize((256, 256)).size == (256, 256)
        assert CenterCrop(np.int64(5)).size == 5

    def test_torchvisions_enumeration_is_taken(self):
        assert Resize(8, InterpolationMode.BICUBIC).interpolation == "bicubic"

    def test_descriptions_can_be_sets_keys_and_pickles(self):
        for item in (RandomResizedCrop([2, 3], [0.1, 0.2], [1, 2]), Resize(3), CenterCrop(3), NORMALIZE):
            assert {pickle.loads(pickle.dumps(item))} == {item}

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (
                lambda: RandomResizedCrop(0),
                "RandomResizedCrop got size=0; give a side or (height, width), whole pixels above 0",
            ),
            (
                lambda: Resize((1, 2, 3)),
                "Resize got size=(1, 2, 3); give a side or (height, width), whole pixels above 0",
            ),
            (lambda: Resize([]), "Resize got size=[]; give a side or (height, width), whole pixels above 0"),
            (lambda: CenterCrop(2.5), "CenterCrop got size=2.5; give a side or (height, width), whole pixels above 0"),
            (
                lambda: CenterCrop("224"),
                "CenterCrop got size='224'; give a side or (height, width), whole pixels above 0",
            ),
            (
                lambda: CenterCrop(True),
                "CenterCrop got size=True; give a side or (height, width), whole pixels above 0",
            ),
            (
                lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
                "RandomResizedCrop got scale=(0.5, 0.1); give (least, greatest), both above 0",
            ),
            (
                lambda: RandomResizedCrop(8, scale=(0.5, 1.5)),
                "RandomResizedCrop got scale=(0.5, 1.5); a box is at most the whole image: end it at 1.0",
            ),
            (
                lambda: RandomResizedCrop(8, ratio=(0, 1)),
                "RandomResizedCrop got ratio=(0, 1); give (least, greatest), both above 0",
            ),
            (
                lambda: RandomResizedCrop(8, ratio=(1.0, float("inf"))),
                "RandomResizedCrop got ratio=(1.0, inf); give (least, greatest), both above 0",
            ),
            (
                lambda: RandomResizedCrop(8, ratio=(1e-300, 1)),
                (
                    "RandomResizedCrop got ratio=(1e-300, 1.0); no image has such a width / height: stay within "
                    "1 / 65536 and 65536"
                ),
            ),
            (
                lambda: RandomResizedCrop(8, ratio=0.5),
                "RandomResizedCrop got ratio=0.5; give (least, greatest), both above 0",
            ),
            (
                lambda: Resize(8, "lanczos"),
                "Resize got interpolation='lanczos'; give one of 'bilinear', 'bicubic', 'nearest'",
            ),
            (
                lambda: Resize(8, InterpolationMode.LANCZOS),
                (
                    "Resize got interpolation=<InterpolationMode.LANCZOS: 'lanczos'>; "
                    "give one of 'bilinear', 'bicubic', 'nearest'"
                ),
            ),
            (
                lambda: Resize(8, antialias=False),
                "Resize got antialias=False; filters are always antialiased, as on PIL images: leave it out",
            ),
            (lambda: RandomHorizontalFlip(1.5), "RandomHorizontalFlip got p=1.5; give a probability from 0 to 1"),
            (lambda: RandomHorizontalFlip("x"), "RandomHorizontalFlip got p='x'; give a probability from 0 to 1"),
            (
                lambda: Normalize(0.5, (1, 1, 1)),
                "Normalize got mean=0.5; give three numbers, for R, G and B",
            ),
            (
                lambda: Normalize((0, 0, 0), (1, 0, 1)),
                "Normalize got std=(1.0, 0.0, 1.0); pixels are divided by it, so give numbers above 0",
            ),
        ],
    )
    def test_refusals(self, make, sentence):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == sentence

    def test_normalize_is_pixel_over_255_minus_mean_over_std(self):
        pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        out = np.empty((256, 3), np.float32)
        found = Normalize(mean, std).apply(pixels, out=out)
        assert found is out
        np.testing.assert_allclose(found, (pixels / 255 - np.array(mean)) / np.array(std), atol=1e-6)


class TestCompile:
    def test_training(self):
        geometry = compile_transforms(
            [RandomResizedCrop((96, 128), interpolation="bicubic"), RandomHorizontalFlip(0.25)]
        )
        assert geometry.size == (96, 128)
        assert geometry.interpolation == "bicubic"
        assert geometry.flip == 0.25
        assert geometry.views == 1

    @pytest.mark.parametrize(
        ("transforms", "size"),
        [
            ([Resize(256), CenterCrop(224)], (224, 224)),
            ([Resize(256), RandomHorizontalFlip(), CenterCrop((200, 256))], (200, 256)),
            ([Resize((30, 40))], (30, 40)),
            ([Resize((30, 40)), CenterCrop((30, 20))], (30, 20)),
            ([RandomHorizontalFlip(), RandomResizedCrop(5)], (5, 5)),
        ],
    )
    def test_accepted_sequences(self, transforms, size):
        geometry = compile_transforms(transforms, views=3)
        assert geometry.size == size
        assert geometry.views == 3
        assert pickle.loads(pickle.dumps(geometry)) == geometry

    @pytest.mark.parametrize(
        ("transforms", "sentence"),
        [
            (
                [Resize(256)],
                (
                    "Resize(256) alone gives images of different sizes, which cannot be one batch: add CenterCrop(256) "
                    "after it, or write Resize((256, 256))"
                ),
            ),
            (
                [CenterCrop(224)],
                (
                    "CenterCrop(224) without Resize needs every stored image to be that large, and borders are not "
                    "padded: put Resize(224) before it"
                ),
            ),
            (
                [Resize(256), CenterCrop((224, 300))],
                (
                    "CenterCrop((224, 300)) is larger than the images that Resize(256) gives, and borders are not "
                    "padded: crop at most what is there, or resize to more"
                ),
            ),
            (
                [CenterCrop(224), Resize(256)],
                "CenterCrop(224) stands before Resize(256): put Resize first, as evaluation does",
            ),
            (
                [Resize(256, max_size=500), CenterCrop(224)],
                (
                    "Resize has max_size=500; images would come out smaller than a fixed size, and those cannot be one "
                    "batch: drop max_size, or write Resize((height, width))"
                ),
            ),
            (
                [],
                (
                    "no transform gives all images one size: add RandomResizedCrop(224), or Resize(256) "
                    "and CenterCrop(224)"
                ),
            ),
            (
                [RandomResizedCrop(96), RandomResizedCrop(224)],
                (
                    "RandomResizedCrop stands twice in the transforms; an output image is one box of the stored image: "
                    "keep one, or ask for two crops with views=2"
                ),
            ),
            (
                [Resize(256), RandomResizedCrop(224)],
                (
                    "Resize and RandomResizedCrop together would resample pixels twice; RandomResizedCrop already "
                    "gives the final size from the stored image: keep it alone"
                ),
            ),
            (
                [RandomHorizontalFlip(), Resize((3, 3)), RandomHorizontalFlip()],
                (
                    "RandomHorizontalFlip stands twice in the transforms; keep one: two flips of p=0.5 are "
                    "one flip of p=0.5"
                ),
            ),
        ],
    )
    def test_refusals(self, transforms, sentence):
        with pytest.raises(ConfigError) as caught:
            compile_transforms(transforms)
        assert str(caught.value) == sentence

    @pytest.mark.parametrize("views", [0, -1, 1.5, True])
    def test_views_must_be_a_count(self, views):
        with pytest.raises(ConfigError) as caught:
            compile_transforms([Resize((3, 3))], views=views)
        assert str(caught.value) == f"got views={views!r}; give the number of output images of each sample, at least 1"
