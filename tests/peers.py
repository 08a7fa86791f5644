"""Other packages that read and write shards, which ours are held against; ``make peers`` installs them.

With FEEDER_REQUIRE_PEERS=1 in the environment a missing one fails the test, which skips otherwise.
"""

import importlib
import os
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
