"""Whole batches through pipelines of others: the same pixels whatever the threads and processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import feeder
from feeder.errors import ConfigError, TransformError
from tests.peers import peer, torchvision_transforms


def torchvision_v1() -> Any:
    torchvision_transforms()
    v1 = peer("torchvision.transforms")
    return v1.Compose(
        [v1.RandomResizedCrop(24), v1.RandomHorizontalFlip(), v1.ColorJitter(0.4, 0.4, 0.4), v1.ToTensor()]
    )


def torchvision_v2_whole() -> Any:
    v2 = torchvision_transforms()
    return v2.Compose([v2.Resize(30), v2.RandomCrop(24), v2.ToImage(), v2.ToDtype(peer("torch").float32, scale=True)])


def albumentations() -> Any:
    a = peer("albumentations")
    return a.Compose(
        [a.RandomResizedCrop(size=(24, 24)), a.HorizontalFlip(), a.GaussNoise(p=0.8), a.RandomGamma(p=0.8)]
    )


def noise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (pixels + rng.integers(0, 9, pixels.shape, np.uint8)).astype(np.float32)


def functions() -> Any:
    return [feeder.RandomResizedCrop(24), noise]


PIPELINES = [torchvision_v1, torchvision_v2_whole, albumentations, functions]


def images(dataset: Any) -> list[np.ndarray]:
    return [np.asarray(batch["image"]) for batch in dataset]


@pytest.mark.parametrize("make", PIPELINES)
def test_batches_are_the_same_whatever_the_threads_and_processes(make: Any, image_folder: Path) -> None:
    loader = peer("torch.utils.data").DataLoader
    results = []
    for threads in (1, 4):
        dataset = feeder.ImageDataset(image_folder, batch_size=9, seed=3, transform=make(), threads=threads)
        results.append(images(dataset))
    dataset = feeder.ImageDataset(image_folder, batch_size=9, seed=3, transform=make())
    results.append(images(loader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert results[0][0].shape == (9, 3, 24, 24)


def test_a_pipeline_that_the_engine_executes_whole_gives_torchvisions_pixels(image_folder: Path) -> None:
    v2 = torchvision_transforms()
    pipeline = v2.Compose(
        [v2.Resize(32), v2.CenterCrop(24), v2.ToImage(), v2.ToDtype(peer("torch").float32, scale=True)]
    )
    dataset = feeder.ImageDataset(image_folder, batch_size=36, shuffle=False, transform=pipeline)
    (batch,) = dataset
    for key, ours in zip(batch["key"], batch["image"], strict=True):
        theirs = pipeline(Image.open(image_folder / key))
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_functions_error_names_the_sample_and_no_other_stands_in(image_folder: Path) -> None:
    def fails(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ValueError("the colours are wrong")

    transform = [feeder.RandomResizedCrop(24), fails]
    dataset = feeder.ImageDataset(image_folder, batch_size=36, shuffle=False, transform=transform, threads=1)
    with pytest.raises(TransformError) as caught:
        next(iter(dataset))
    assert str(caught.value).endswith(" raised ValueError: the colours are wrong; at sample 0 ('ant/ant-00.jpg')")
    assert isinstance(caught.value.__cause__, ValueError)


def test_sizes_that_differ_cannot_be_one_batch(image_folder: Path) -> None:
    v2 = torchvision_transforms()
    dataset = feeder.ImageDataset(image_folder, batch_size=36, transform=[v2.RandomGrayscale()])
    with pytest.raises(ConfigError, match="which cannot be one batch"):
        next(iter(dataset))
