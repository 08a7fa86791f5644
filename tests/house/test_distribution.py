"""What a wheel holds, from a checkout and from a source distribution."""

import shutil
import zipfile
from pathlib import Path

import pytest

from feeder.optional import PACKAGES
from tests.house.conftest import ROOT, build


def members(wheel: Path) -> list[str]:
    """Return the files of the package in a wheel, without the metadata beside it."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def expected_members() -> list[str]:
    """Return the modules of the checkout, as a wheel names them."""
    names = ["feeder/py.typed"]
    for folder, prefix in (("feeder", "feeder"), *((name, f"feeder/{name}") for name in ("shards", "cache", "tools"))):
        modules = (path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py") if not _is_linked(path))
        names += [f"{prefix}/{module}" for module in modules]
    return sorted(names)


def _is_linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def test_a_wheel_holds_feeder_alone_with_its_parts_inside(wheel: Path) -> None:
    assert members(wheel) == expected_members()


def test_a_wheel_by_way_of_a_source_distribution_is_the_same(
    sources: Path, wheel: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    archive = build(sources, "--sdist", tmp_path / "sdist")
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = tmp_path.glob("shardfeed-*")
    assert members(build(unpacked, "--wheel", tmp_path / "wheel")) == members(wheel)


def test_the_metadata_names_the_licence_the_command_and_the_extras(unpacked_wheel: Path) -> None:
    (info,) = unpacked_wheel.glob("*.dist-info")
    metadata = (info / "METADATA").read_text().splitlines()
    assert "License-Expression: Apache-2.0" in metadata
    assert "feeder = feeder.tools.main:main" in (info / "entry_points.txt").read_text()
    extras = {line.partition(": ")[2] for line in metadata if line.startswith("Provides-Extra: ")}
    assert extras == {package.extra for package in PACKAGES.values()} | {"pillow-simd", "dev", "peers"}


def test_nothing_pulls_pillow_over_pillow_simd(unpacked_wheel: Path) -> None:
    """Both unpack into PIL/; a plain requirement of the one would overwrite the other."""
    (info,) = unpacked_wheel.glob("*.dist-info")
    required = [line for line in (info / "METADATA").read_text().splitlines() if line.startswith("Requires-Dist: ")]
    plain = [line for line in required if "extra ==" not in line]
    assert plain
    assert not [line for line in plain if "pillow" in line.lower()]
