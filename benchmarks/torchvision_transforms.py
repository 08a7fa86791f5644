"""torchvision's transforms beside a torch of another build."""

import importlib
import sys
from pathlib import Path
from typing import Any


def torchvision_transforms() -> Any:
    """Return ``torchvision.transforms.v2``; ImportError where it, or torch, is not installed.

    Wheels of torchvision may be built for CUDA where the installed torch is not: then its compiled operators cannot be
    loaded, and importing it, which lightning does when it finds it, fails. So ``make peers`` puts it into a folder of
    its own, and the two operators that the import stumbles over, and transforms never use, are declared beforehand.
    """
    torch = importlib.import_module("torch")
    if _FOLDER.is_dir() and "torchvision" not in sys.modules:
        sys.path.append(str(_FOLDER))
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return importlib.import_module("torchvision.transforms.v2")


_FOLDER = Path(sys.prefix, "torchvision")
_KEPT: list[Any] = []  # what is declared lasts as long as the library object
