"""Optional packages: present, absent, and installed but broken."""

import sys
import tomllib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from feeder.errors import FeederError, MissingPackageError
from feeder.optional import PACKAGES, load

ROOT = Path(__file__).parents[2]


class Finder(MetaPathFinder, Loader):
    """Answers for one package and what is below it, before anything installed does: absent, or failing on import."""

    def __init__(self, package: str, failure: Exception | None) -> None:
        self.package, self.failure = package, failure

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not f"{name}.".startswith(f"{self.package}."):
            return None
        if self.failure is None:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)
        return spec_from_loader(name, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        assert self.failure is not None
        raise self.failure


def answer_for(package: str, monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> None:
    """Let imports of ``package`` fail for this test: as not installed, or with ``failure``."""
    for name in list(sys.modules):
        if f"{name}.".startswith(f"{package}."):
            # None halts an import; removing and restoring would change the order in which modules are torn down at exit
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "meta_path", [Finder(package, failure), *sys.meta_path])


@pytest.mark.parametrize("name", PACKAGES)
def test_an_absent_package_is_named_with_the_command_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_for(PACKAGES[name].module.partition(".")[0], monkeypatch)
    with pytest.raises(MissingPackageError) as caught:
        load(name)
    purpose, extra = PACKAGES[name].purpose, PACKAGES[name].extra
    sentence = f"{purpose} needs a package that is not installed; run: pip install 'shardfeed[{extra}]'"
    assert str(caught.value) == sentence


def test_the_sentence_for_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_for("nvidia", monkeypatch)
    with pytest.raises(FeederError) as caught:
        load("dali")
    sentence = "engine 'dali' needs a package that is not installed; run: pip install 'shardfeed[dali]'"
    assert str(caught.value) == sentence


def test_a_part_missing_from_a_shared_namespace_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA's libraries bring a package ``nvidia`` without ``nvidia.dali``."""
    (tmp_path / "nvidia").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    answer_for("nvidia.dali", monkeypatch)
    with pytest.raises(MissingPackageError, match="needs a package that is not installed"):
        load("dali")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_present_package_is_returned(name: str) -> None:
    module = PACKAGES[name].module
    pytest.importorskip(module, exc_type=ImportError)
    assert load(name) is sys.modules[module]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError("libcudart.so.12: cannot open shared object file\nsecond line"), "OSError: libcudart.so.12: cannot "),
        (ModuleNotFoundError("No module named 'attr'", name="attr"), "ModuleNotFoundError: No module named 'attr'"),
        (RuntimeError("built for another NumPy"), "RuntimeError: built for another NumPy"),
    ],
)
def test_a_broken_package_is_not_called_absent(
    failure: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_for("ray", monkeypatch, failure)
    with pytest.raises(MissingPackageError) as caught:
        load("ray")
    sentence = str(caught.value)
    beginning = "running on a Ray cluster needs the package 'ray', which is installed but cannot be imported ("
    assert sentence.startswith(beginning + reason)
    assert sentence.endswith("); run: pip install --force-reinstall 'shardfeed[ray]'")
    assert "\n" not in sentence
    assert caught.value.__cause__ is failure


def test_every_package_has_an_extra_of_the_distribution() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {package.extra for package in PACKAGES.values()} | {"pillow-simd", "dev", "peers"} == extras.keys()
