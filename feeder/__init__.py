"""shardfeed: the data pipeline that keeps GPUs fed with images.

The names below are the public ones; each is imported on first use (PEP 562), so that ``import feeder.shards`` stays
light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from feeder import presets as presets
    from feeder.dataset import ImageDataset as ImageDataset
    from feeder.errors import FeederError as FeederError
    from feeder.foreign import batched as batched
    from feeder.foreign import per_sample as per_sample
    from feeder.loader import Loader as Loader
    from feeder.mixing import mix as mix
    from feeder.order_settings import Shuffle as Shuffle
    from feeder.pixels import AutoAugment as AutoAugment
    from feeder.pixels import ColorJitter as ColorJitter
    from feeder.pixels import CutMix as CutMix
    from feeder.pixels import GaussianBlur as GaussianBlur
    from feeder.pixels import MixUp as MixUp
    from feeder.pixels import RandAugment as RandAugment
    from feeder.pixels import RandomAdjustSharpness as RandomAdjustSharpness
    from feeder.pixels import RandomApply as RandomApply
    from feeder.pixels import RandomAutocontrast as RandomAutocontrast
    from feeder.pixels import RandomChoice as RandomChoice
    from feeder.pixels import RandomEqualize as RandomEqualize
    from feeder.pixels import RandomErasing as RandomErasing
    from feeder.pixels import RandomGrayscale as RandomGrayscale
    from feeder.pixels import RandomInvert as RandomInvert
    from feeder.pixels import RandomPosterize as RandomPosterize
    from feeder.pixels import RandomSolarize as RandomSolarize
    from feeder.pixels import TrivialAugmentWide as TrivialAugmentWide
    from feeder.program import Views as Views
    from feeder.shuffle_advice import suggest_shuffle as suggest_shuffle
    from feeder.transforms import CenterCrop as CenterCrop
    from feeder.transforms import Normalize as Normalize
    from feeder.transforms import RandomHorizontalFlip as RandomHorizontalFlip
    from feeder.transforms import RandomResizedCrop as RandomResizedCrop
    from feeder.transforms import Resize as Resize

_HOMES = {
    "AutoAugment": "feeder.pixels",
    "CenterCrop": "feeder.transforms",
    "ColorJitter": "feeder.pixels",
    "CutMix": "feeder.pixels",
    "FeederError": "feeder.errors",
    "GaussianBlur": "feeder.pixels",
    "ImageDataset": "feeder.dataset",
    "Loader": "feeder.loader",
    "MixUp": "feeder.pixels",
    "Normalize": "feeder.transforms",
    "RandAugment": "feeder.pixels",
    "RandomAdjustSharpness": "feeder.pixels",
    "RandomApply": "feeder.pixels",
    "RandomAutocontrast": "feeder.pixels",
    "RandomChoice": "feeder.pixels",
    "RandomEqualize": "feeder.pixels",
    "RandomErasing": "feeder.pixels",
    "RandomGrayscale": "feeder.pixels",
    "RandomHorizontalFlip": "feeder.transforms",
    "RandomInvert": "feeder.pixels",
    "RandomPosterize": "feeder.pixels",
    "RandomResizedCrop": "feeder.transforms",
    "RandomSolarize": "feeder.pixels",
    "Resize": "feeder.transforms",
    "Shuffle": "feeder.order_settings",
    "TrivialAugmentWide": "feeder.pixels",
    "Views": "feeder.program",
    "batched": "feeder.foreign",
    "mix": "feeder.mixing",
    "per_sample": "feeder.foreign",
    "suggest_shuffle": "feeder.shuffle_advice",
}
_MODULES = ("presets",)

__all__ = [
    "AutoAugment",
    "CenterCrop",
    "ColorJitter",
    "CutMix",
    "FeederError",
    "GaussianBlur",
    "ImageDataset",
    "Loader",
    "MixUp",
    "Normalize",
    "RandAugment",
    "RandomAdjustSharpness",
    "RandomApply",
    "RandomAutocontrast",
    "RandomChoice",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomInvert",
    "RandomPosterize",
    "RandomResizedCrop",
    "RandomSolarize",
    "Resize",
    "Shuffle",
    "TrivialAugmentWide",
    "Views",
    "__version__",
    "batched",
    "mix",
    "per_sample",
    "presets",
    "suggest_shuffle",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"feeder.{name}")
    else:
        raise AttributeError(f"module 'feeder' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
