"""The contract of pixel transforms: what they compute, held against torchvision, for the CPU and for tensors alike.

A test class inherits `PixelContract` and says how a transform is applied.
"""

from typing import Any

import numpy as np
import pytest
from PIL import Image

import feeder
from feeder.pixels.policies import OPERATIONS
from feeder.pixels.protocol import Params, part_of, rows_of
from tests.images import picture
from tests.peers import torchvision_transforms

SIZES = [(1, 1), (2, 2), (3, 5), (32, 32), (37, 53), (224, 224)]

# A transform, and the greatest difference from torchvision. An operation differs by 1 where its exact result is a
# whole number and torch's fused arithmetic falls on the other side; ColorJitter's later factors enlarge that.
CASES = [
    (feeder.ColorJitter(0.4, 0.4, 0.4), 3),
    (feeder.ColorJitter(hue=0.5), 1),
    (feeder.ColorJitter(0.4, 0.4, 0.4, 0.1), 3),
    (feeder.ColorJitter(brightness=(1.5, 3.0), contrast=(0.0, 0.1), hue=(-0.5, -0.3)), 3),
    (feeder.RandomGrayscale(0.5), 1),
    (feeder.RandomSolarize(threshold=128), 0),
    (feeder.RandomSolarize(threshold=99.5), 0),
    (feeder.RandomSolarize(threshold=0), 0),
    (feeder.RandomPosterize(bits=3), 0),
    (feeder.RandomPosterize(bits=8), 0),
    (feeder.RandomPosterize(bits=0), 0),
    (feeder.RandomAdjustSharpness(2.0), 1),
    (feeder.RandomAdjustSharpness(0.3), 1),
    (feeder.RandomAutocontrast(), 1),
    (feeder.RandomEqualize(), 0),
    (feeder.RandomInvert(), 0),
    (feeder.RandomErasing(p=0.8, value=(3, 120, 255)), 0),
    (feeder.RandomApply([feeder.RandomInvert(0.7), feeder.RandomPosterize(2)], p=0.6), 0),
    (feeder.RandomChoice([feeder.RandomInvert(1.0), feeder.RandomEqualize(1.0), feeder.RandomSolarize(60)]), 0),
]
BLURS = [(feeder.GaussianBlur(3), 1), (feeder.GaussianBlur((23, 5), (0.1, 2.0)), 1), (feeder.GaussianBlur(1, 4.0), 0)]


def pictures(count: int, size: tuple[int, int], *, photographs: Any = None) -> np.ndarray:
    """Return (count, H, W, 3) images: pictures, one of one colour, one of noise, and photographs if there are any."""
    height, width = size
    images = [np.asarray(picture(number, size=(width, height))) for number in range(count)]
    images[0] = np.full_like(images[0], 77)
    images[1] = np.random.default_rng(0).integers(0, 256, images[1].shape, np.uint8)
    for number, path in enumerate(photographs or []):
        images[2 + number] = np.asarray(Image.open(path).convert("RGB").resize((width, height)))
    return np.stack(images)


def keys(count: int, seed: int = 0) -> np.ndarray:
    from feeder.keyed import derive_key, draw

    return draw(derive_key("test.pixels", seed), np.arange(count))


class Torchvision:
    """torchvision's functional operations on uint8 tensors, for parameters that ours drew."""

    def __init__(self) -> None:
        self.functional = torchvision_transforms().functional
        import torch

        self.torch = torch

    def image(self, transform: Any, image: np.ndarray, params: Params) -> np.ndarray:
        """Return what becomes of an (H, W, 3) image, for parameters of one image."""
        tensor = self.torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()
        return self.tensor(transform, tensor, params).permute(1, 2, 0).numpy()

    def tensor(self, transform: Any, tensor: Any, params: Params) -> Any:
        f, name = self.functional, type(transform).__name__
        if name in ("RandomApply", "RandomChoice"):
            return self._nested(transform, tensor, params)
        if "apply" in params:
            return self._by_chance(transform, tensor) if params["apply"][0] else tensor
        if name == "ColorJitter":
            for number in params["order"][0]:
                factor = ("brightness", "contrast", "saturation", "hue")[number]
                if factor in params:
                    tensor = getattr(f, f"adjust_{factor}")(tensor, float(params[factor][0]))
            return tensor
        if name == "GaussianBlur":
            return f.gaussian_blur(tensor, list(transform.kernel_size), [float(params["sigma"][0])] * 2)
        assert name == "RandomErasing"
        top, left, height, width = params["box"][0].tolist()
        return f.erase(tensor, top, left, height, width, self.torch.tensor(transform.value)[:, None, None])

    def _by_chance(self, transform: Any, tensor: Any) -> Any:
        f = self.functional
        match transform:
            case feeder.RandomGrayscale():
                return f.rgb_to_grayscale(tensor, 3)
            case feeder.RandomSolarize():
                return f.solarize(tensor, transform.threshold)
            case feeder.RandomPosterize():
                return f.posterize(tensor, transform.bits)
            case feeder.RandomAdjustSharpness():
                return f.adjust_sharpness(tensor, transform.sharpness_factor)
            case feeder.RandomAutocontrast():
                return f.autocontrast(tensor)
            case feeder.RandomEqualize():
                return f.equalize(tensor)
            case feeder.RandomInvert():
                return f.invert(tensor)
        raise AssertionError(transform)

    def _nested(self, transform: Any, tensor: Any, params: Params) -> Any:
        if "apply" in params:
            chosen = range(len(transform.transforms)) if params["apply"][0] else []
        else:
            chosen = [params["choice"][0]]
        for index in chosen:
            tensor = self.tensor(transform.transforms[index], tensor, part_of(params, index))
        return tensor

    def policy(self, transform: Any, image: np.ndarray, params: Params) -> np.ndarray:
        """Return what a policy makes of an image; shears, shifts and rotations on PIL images, as ours."""
        augment = torchvision_transforms().RandAugment(interpolation=transform.interpolation, fill=transform.fill)
        for number, magnitude in zip(params["operation"][0], params["magnitude"][0], strict=True):
            name = OPERATIONS[number]
            given: Any = self.torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()
            if name.startswith(("Shear", "Translate", "Rotate")):
                given = Image.fromarray(image)
            filled = {type(given): transform.fill}
            made = augment._apply_image_or_video_transform(
                given, name, float(magnitude), interpolation=augment.interpolation, fill=filled
            )
            image = np.asarray(made) if isinstance(made, Image.Image) else made.permute(1, 2, 0).numpy()
        return image


class PixelContract:
    """Inherited by tests of one way to apply pixel transforms."""

    def applied(self, transform: Any, images: np.ndarray, params: Params) -> np.ndarray:
        """Return what becomes of (n, H, W, 3) uint8 images, which stay as they are."""
        raise NotImplementedError

    def check(self, transform: Any, images: np.ndarray, tolerance: int, seed: int = 0) -> None:
        params = transform.draw(keys(len(images), seed), *images.shape[1:3])
        found = self.applied(transform, images, params).astype(int)
        reference = Torchvision()
        for row, image in enumerate(images):
            difference = np.abs(found[row] - reference.image(transform, image, rows_of(params, slice(row, row + 1))))
            assert difference.max() <= tolerance, row
            assert np.mean(difference > 1) <= 0.002, row

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize(("transform", "tolerance"), CASES, ids=str)
    def test_pixels_are_torchvisions(self, transform: Any, tolerance: int, size: tuple[int, int]) -> None:
        self.check(transform, pictures(6 if size[0] > 100 else 12, size), tolerance)

    @pytest.mark.parametrize("size", [(13, 12), (32, 32), (224, 224)], ids=str)
    @pytest.mark.parametrize(("transform", "tolerance"), BLURS, ids=str)
    def test_blurred_pixels_are_torchvisions(self, transform: Any, tolerance: int, size: tuple[int, int]) -> None:
        self.check(transform, pictures(5, size), tolerance)

    def test_photographs_are_torchvisions(self, photos: Any) -> None:
        paths = sorted(photos.rglob("*.JPEG"))[::150][:4]
        for transform, tolerance in CASES[:4]:
            self.check(transform, pictures(6, (224, 224), photographs=paths)[2:], tolerance, seed=1)

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
    @pytest.mark.parametrize("fill", [None, 128, (1.0, 2.5, 255.0)])
    @pytest.mark.parametrize("size", [(32, 32), (37, 53), (1, 1)], ids=str)
    def test_policies_are_torchvisions(self, size: tuple[int, int], fill: Any, interpolation: str) -> None:
        """Every operation at some of its magnitudes, one by one."""
        transform = feeder.TrivialAugmentWide(interpolation=interpolation, fill=fill)
        images = pictures(len(OPERATIONS) * 4, size)
        operations = np.repeat(np.arange(len(OPERATIONS), dtype=np.int8), 4)[:, None]
        params = transform.draw(keys(400), *size)
        magnitudes = np.zeros((len(images), 1))
        for row, operation in enumerate(operations[:, 0]):
            drawn = params["magnitude"][params["operation"] == operation]
            magnitudes[row] = drawn[row % 4] if drawn.size else 0
        self.check_policy(transform, images, {"operation": operations, "magnitude": magnitudes})

    @pytest.mark.parametrize(
        "transform",
        [feeder.RandAugment(3), feeder.TrivialAugmentWide(), *(feeder.AutoAugment(p) for p in ("imagenet", "svhn"))],
        ids=str,
    )
    def test_drawn_policies_are_torchvisions(self, transform: Any) -> None:
        images = pictures(24, (48, 48))
        self.check_policy(transform, images, transform.draw(keys(24), 48, 48))

    def check_policy(self, transform: Any, images: np.ndarray, params: Params) -> None:
        found = self.applied(transform, images, params).astype(int)
        reference = Torchvision()
        for row, image in enumerate(images):
            expected = reference.policy(transform, image, rows_of(params, slice(row, row + 1)))
            difference = np.abs(found[row] - expected)
            operations, magnitudes = params["operation"][row], params["magnitude"][row]
            assert difference.max() <= (1 if len(operations) == 1 else 3), (operations, magnitudes)
            assert np.mean(difference > 1) <= 0.002, (operations, magnitudes)

    @pytest.mark.parametrize(("transform", "tolerance"), [*CASES, *BLURS], ids=str)
    def test_an_image_does_not_depend_on_the_others(self, transform: Any, tolerance: int) -> None:
        images = pictures(6, (32, 32))
        params = transform.draw(keys(6), 32, 32)
        together = self.applied(transform, images, params)
        for row in range(6):
            rows = slice(row, row + 1)
            assert np.array_equal(self.applied(transform, images[rows], rows_of(params, rows))[0], together[row])

    @pytest.mark.parametrize("value", [0.0, (0.1, -2.0, 3.0), "random"])
    def test_normalised_floats_are_erased_in_their_own_units(self, value: Any) -> None:
        transform = feeder.RandomErasing(p=1.0, value=value)
        images = np.full((16, 24, 40, 3), 9.0, np.float32)
        params = transform.draw(keys(16), 24, 40)
        found = self.applied(transform, images, params)
        for image, (top, left, height, width) in zip(found, params["box"], strict=True):
            box = image[top : top + height, left : left + width].copy()
            image[top : top + height, left : left + width] = 9.0
            assert (image == 9.0).all()
            if value == "random":
                assert abs(box.mean()) < 6 / np.sqrt(box.size)
                assert np.abs(box).max() < 4.4
            else:
                assert np.array_equal(box, np.broadcast_to(np.float32(value), box.shape))

    def test_noise_on_levels_is_uniform(self) -> None:
        transform = feeder.RandomErasing(p=1.0, scale=(0.9, 0.95), ratio=(1.0, 1.0), value="random")
        params = transform.draw(keys(8), 64, 64)
        images = self.applied(transform, np.zeros((8, 64, 64, 3), np.uint8), params)
        erased = [
            image[t : t + h, le : le + w].ravel() for image, (t, le, h, w) in zip(images, params["box"], strict=True)
        ]
        counts = np.bincount(np.concatenate(erased), minlength=256)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 6 * np.sqrt(2 * 255)
