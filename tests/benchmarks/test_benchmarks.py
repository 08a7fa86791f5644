"""Every benchmark runs, on inputs so small that its figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_prints_rows_of_figures(name: str) -> None:
    command = [sys.executable, "-m", "benchmarks", name, "--tiny", "--json"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(output)
    assert result["benchmark"] == name
    assert result["hardware"]["cores"] >= 1
    assert result["rows"]
    assert all(value > 0 for row in result["rows"] for value in row.values() if isinstance(value, float))
