"""Other packages, which ours is held against and used with; ``make peers`` installs them.

With FEEDER_REQUIRE_PEERS=1 in the environment a missing one fails the test, which skips otherwise.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest


def peer(name: str) -> Any:
    """Import a module of such a package, or skip with the reason."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("FEEDER_REQUIRE_PEERS") == "1":
            pytest.fail(f"FEEDER_REQUIRE_PEERS=1, and {name} cannot be imported: {error}")
        pytest.skip(f"{name} is not installed; run: make peers")


def torchvision_transforms() -> Any:
    """Return ``torchvision.transforms.v2``, or skip with the reason.

    Wheels of torchvision may be built for CUDA where the installed torch is not: then its compiled operators cannot be
    loaded, and importing it, which lightning does when it finds it, fails. So ``make peers`` puts it into a folder of
    its own, and the two operators that the import stumbles over, and transforms never use, are declared beforehand.
    """
    torch = peer("torch")
    if _TORCHVISION.is_dir() and "torchvision" not in sys.modules:
        sys.path.append(str(_TORCHVISION))
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return peer("torchvision.transforms.v2")


_TORCHVISION = Path(sys.prefix, "torchvision")
_KEPT: list[Any] = []  # what is declared lasts as long as the library object
