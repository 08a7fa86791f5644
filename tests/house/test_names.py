"""The folders at the root are imported as parts of ``feeder`` only, and stay out of the way of a user's own names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import feeder

ROOT = Path(__file__).parents[2]
FOLDERS = ("shards", "cache", "tools")

PUBLIC_NAMES = [
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

# What a training script beside a user's own `cache.py` and `tools/` does: both its modules and ours are wanted.
TRAIN = """
import cache, tools.plot, shards
import feeder.cache, feeder.shards, feeder.tools.main
print(cache.OWNER, tools.plot.OWNER, shards.OWNER, feeder.shards.__name__, feeder.tools.main.__name__)
"""


def python(program: str, *, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in another interpreter, in ``folder`` and with it first on the path, as for ``python train.py``."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder with a user's own modules of our folders' names."""
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    (folder / "tools" / "__init__.py").touch()
    (folder / "tools" / "plot.py").write_text("OWNER = 'user'\n")
    (folder / "cache.py").write_text("OWNER = 'user'\n")
    (folder / "shards.py").write_text("OWNER = 'user'\n")
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bare_folder_name_is_refused_from_the_root(name: str) -> None:
    done = python(f"import {name}", folder=ROOT)
    sentence = f"this folder is imported as 'feeder.{name}', not as '{name}'; write: import feeder.{name}"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {sentence}"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bare_folder_name_does_not_exist_elsewhere(name: str, tmp_path: Path) -> None:
    """An installation adds the one name ``feeder`` to the path, an editable one too."""
    done = python(f"import {name}", folder=tmp_path)
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: No module named '{name}'"


def test_a_users_own_modules_do_no_harm(users_folder: Path) -> None:
    done = python(TRAIN, folder=users_folder)
    assert done.stdout == "user user user feeder.shards feeder.tools.main\n", done.stderr


def test_a_users_own_modules_do_no_harm_to_an_installed_wheel(users_folder: Path, unpacked_wheel: Path) -> None:
    done = python(f"{TRAIN}print(feeder.__file__)", folder=users_folder, path=unpacked_wheel)
    lines = done.stdout.splitlines()
    assert lines == [
        "user user user feeder.shards feeder.tools.main",
        str(unpacked_wheel / "feeder/__init__.py"),
    ], done.stderr


def test_the_command_runs_beside_a_users_own_modules(users_folder: Path) -> None:
    command = [sys.executable, "-m", "feeder.tools.main", "--version"]
    done = subprocess.run(command, cwd=users_folder, capture_output=True, text=True, check=False)
    assert done.stdout == f"shardfeed {feeder.__version__}\n", done.stderr


def test_importing_a_part_stays_light(tmp_path: Path) -> None:
    program = (
        "import sys; import feeder.shards, feeder.cache, feeder.errors, feeder.tools.main;"
        "heavy = {'torch', 'webdataset', 'pyarrow', 'PIL', 'fsspec', 's3fs', 'redis', 'rich', 'nvidia', 'ray'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = python(program, folder=tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_the_public_names_are_these() -> None:
    assert feeder.__all__ == PUBLIC_NAMES
    assert dir(feeder) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(feeder, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError) as caught:
        feeder.ImageDatasets  # noqa: B018 - looking it up is the test
    assert str(caught.value) == "module 'feeder' has no attribute 'ImageDatasets'"


def test_the_three_links_are_relative_links() -> None:
    for name in FOLDERS:
        link = ROOT / "feeder" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert feeder.__version__ == version("shardfeed")
    assert re.fullmatch(r"\d+\.\d+\.\d+", feeder.__version__)
