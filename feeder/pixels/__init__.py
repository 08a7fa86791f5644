"""Transforms that change pixels after crop, resize and flip, and mixers of whole batches.

Names, arguments and defaults are torchvision v2's. What is drawn and what is computed are two things:

- **Parameters** are drawn with NumPy, before a pixel is there, from keys of (seed, epoch, sample, copy, view): pure,
  the same on every machine, and independent of which other transforms stand in the list (`operation_keys`). Their
  distributions are torchvision's.
- **Pixels** follow from image and parameters alone. The reference is ``torchvision.transforms.v2.functional`` on uint8
  tensors; ours differ by at most 1 an operation, from sums that are rounded in another order. Two things are otherwise:
  shears and rotations give what torchvision gives on PIL images (its grids for tensors round elsewhere), and
  `RandomErasing` with noise before `Normalize` writes uniform levels.

`feeder.pixels` computes on the CPU with NumPy (and Pillow, for histograms, shears and rotations).
`feeder.tensors.pixels` computes the same from the same parameters on tensors, on any device, a whole batch at once.
"""

from feeder.pixels.choices import RandomApply, RandomChoice, is_mixer, is_pixel_transform
from feeder.pixels.colour import (
    ColorJitter,
    GaussianBlur,
    RandomAdjustSharpness,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from feeder.pixels.erasing import RandomErasing
from feeder.pixels.mixers import CutMix, MixUp
from feeder.pixels.policies import AutoAugment, RandAugment, TrivialAugmentWide
from feeder.pixels.protocol import (
    Mixer,
    Params,
    Pixels,
    PixelTransform,
    numbered_name,
    operation_keys,
    operation_stream,
    rows_of,
)

__all__ = [
    "AutoAugment",
    "ColorJitter",
    "CutMix",
    "GaussianBlur",
    "MixUp",
    "Mixer",
    "Params",
    "PixelTransform",
    "Pixels",
    "RandAugment",
    "RandomAdjustSharpness",
    "RandomApply",
    "RandomAutocontrast",
    "RandomChoice",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPosterize",
    "RandomSolarize",
    "TrivialAugmentWide",
    "is_mixer",
    "is_pixel_transform",
    "numbered_name",
    "operation_keys",
    "operation_stream",
    "rows_of",
]
