"""shardfeed: the data pipeline that keeps GPUs fed with images.

The names below are the public ones; each is imported on first use (PEP 562), so that ``import feeder.shards`` stays
light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from feeder import presets as presets
    from feeder.augment import CenterCrop as CenterCrop
    from feeder.augment import Normalize as Normalize
    from feeder.augment import RandomHorizontalFlip as RandomHorizontalFlip
    from feeder.augment import RandomResizedCrop as RandomResizedCrop
    from feeder.augment import Resize as Resize
    from feeder.dataset import ImageDataset as ImageDataset
    from feeder.errors import FeederError as FeederError
    from feeder.loader import Loader as Loader
    from feeder.order import Shuffle as Shuffle

_HOMES = {
    "CenterCrop": "feeder.augment",
    "FeederError": "feeder.errors",
    "ImageDataset": "feeder.dataset",
    "Loader": "feeder.loader",
    "Normalize": "feeder.augment",
    "RandomHorizontalFlip": "feeder.augment",
    "RandomResizedCrop": "feeder.augment",
    "Resize": "feeder.augment",
    "Shuffle": "feeder.order",
}
_MODULES = ("presets",)

__all__ = [
    "CenterCrop",
    "FeederError",
    "ImageDataset",
    "Loader",
    "Normalize",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Resize",
    "Shuffle",
    "__version__",
    "presets",
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
