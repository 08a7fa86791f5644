"""Other packages, which ours is held against and used with; ``make peers`` installs them.

With FEEDER_REQUIRE_PEERS=1 in the environment a missing one fails the test, which skips otherwise.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest

import benchmarks.torchvision_transforms


def peer(name: str) -> Any:
    """Import a module of such a package, or skip with the reason."""
    return _imported(name, lambda: importlib.import_module(name))


def torchvision_transforms() -> Any:
    """Return ``torchvision.transforms.v2``, or skip with the reason."""
    return _imported("torchvision", benchmarks.torchvision_transforms.torchvision_transforms)


def _imported(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ImportError as error:
        if os.environ.get("FEEDER_REQUIRE_PEERS") == "1":
            pytest.fail(f"FEEDER_REQUIRE_PEERS=1, and {name} cannot be imported: {error}")
        pytest.skip(f"{name} is not installed; run: make peers", allow_module_level=True)
