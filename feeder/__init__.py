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
    from feeder.mixing import mix as mix
    from feeder.order import Shuffle as Shuffle
    from feeder.program import Views as Views
    from feeder.transforms import CenterCrop as CenterCrop
    from feeder.transforms import Normalize as Normalize
    from feeder.transforms import RandomHorizontalFlip as RandomHorizontalFlip
    from feeder.transforms import RandomResizedCrop as RandomResizedCrop
    from feeder.transforms import Resize as Resize

_HOMES = {
    "CenterCrop": "feeder.transforms",
    "FeederError": "feeder.errors",
    "ImageDataset": "feeder.dataset",
    "Normalize": "feeder.transforms",
    "RandomHorizontalFlip": "feeder.transforms",
    "RandomResizedCrop": "feeder.transforms",
    "Resize": "feeder.transforms",
    "Shuffle": "feeder.order",
    "Views": "feeder.program",
    "mix": "feeder.mixing",
}
_MODULES = ("presets",)

__all__ = [
    "CenterCrop",
    "FeederError",
    "ImageDataset",
    "Normalize",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Resize",
    "Shuffle",
    "Views",
    "__version__",
    "mix",
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
