"""The photographs that benchmarks run on."""

from pathlib import Path

from feeder.tools.photographs import make_photographs

_REAL = Path(__file__).parents[2] / "shared" / "data" / "photos"


def photographs(folder: str, *, made: int | None = None) -> Path:
    """Return a folder of class folders: real photographs where they are at hand, else 600 that are made below a folder.

    Args:
        folder: where photographs are made if need be.
        made: make so many in any case.
    """
    if made is None and _REAL.is_dir():
        return _REAL
    path = Path(folder, "photographs")
    make_photographs(path, made or 600, seed=0, processes=2, advance=lambda images, size_bytes: None)
    return path
