"""Who imports whom, and how the modules are cut."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from feeder.optional import PACKAGES
from tests.house.conftest import ROOT

FOLDERS = ("feeder", "shards", "cache", "tools")
MOST_LINES = 600
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "common", "base", "misc"}
# Pillow is the reference decoder and what images are drawn with; every other optional package has one module.
SINGLE_MODULE = {name: package for name, package in PACKAGES.items() if name != "pillow"}


def modules() -> list[Path]:
    """Return every module of the package once, by its place at the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if not any(parent.is_symlink() for parent in path.parents))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_arrows_point_as_drawn() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_names_the_modules_of_the_runtime_in_the_order_of_their_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    rank = {name: number for number, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    page = (
        (ROOT / "ARCHITECTURE.md").read_text().split("| modules | what is in them |\n|---|---|\n")[1].split("\n\n")[0]
    )
    rows = [[rank[name] for name in re.findall(r"`(\w+)`", row.split("|")[1])] for row in page.splitlines()]
    outside = {"tools", "shards", "cache"} | set(re.findall(r"\w+", layers[-1]))
    assert sorted(itertools.chain(*rows)) == sorted(number for name, number in rank.items() if name not in outside)
    assert all(max(above) < min(below) for above, below in itertools.pairwise(rows))


def test_each_optional_package_has_one_module() -> None:
    """Counted are import statements, wherever they stand, and ``load("name")``; not those for type checkers alone.

    The modules of ``feeder/tensors`` count as one: all that is torch's stands there.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        for name in _optional_packages_of(ast.parse(path.read_text())):
            users[name].add("feeder/tensors" if path.parent == ROOT / "feeder/tensors" else named(path))
    assert {name: sorted(paths) for name, paths in users.items() if len(paths) > 1} == {}


def _optional_packages_of(tree: ast.Module) -> set[str]:
    found = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            imported = []
        for name, package in SINGLE_MODULE.items():
            if any(f"{module}.".startswith(f"{package.module}.") for module in imported):
                found.add(name)
        match node:
            case ast.Call(func=ast.Name(id="load") | ast.Attribute(attr="load"), args=[ast.Constant(value=str(name))]):
                found |= {name} & SINGLE_MODULE.keys()
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", {"torch"}),
        ("def f():\n    from torch.utils.data import IterableDataset", {"torch"}),
        ("from nvidia import dali", {"dali"}),
        ("from nvidia.dali import fn", {"dali"}),
        ("from feeder.optional import load\nload('redis')", {"redis"}),
        ("from feeder import optional\noptional.load('s3')", {"s3"}),
        ("if TYPE_CHECKING:\n    import ray", set()),
        ("import torchvision, rayleigh", set()),
    ],
)
def test_the_search_for_optional_packages_finds_them(source: str, expected: set[str]) -> None:
    assert _optional_packages_of(ast.parse(source)) == expected


def test_no_module_is_too_long_to_read() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_every_module_has_a_name_that_says_what_it_is() -> None:
    assert [named(path) for path in modules() if path.stem in NAMES_THAT_SAY_NOTHING] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [named(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_module_is_reached_by_the_type_checker_and_the_arrows_under_one_name() -> None:
    """The links are followed, and nothing is seen a second time under its bare folder name."""
    import grimp

    graph = grimp.build_graph("feeder", cache_dir=None)
    expected = set()
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "feeder" else ("feeder", *parts)
        expected.add(".".join(parts).removesuffix(".__init__"))
    assert graph.modules == expected
