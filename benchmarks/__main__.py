"""Runs benchmarks by name, and prints their results as tables, or as JSON lines with ``--json``."""

import argparse
import importlib
import json
import os
import platform
import sys
from importlib.metadata import version

BENCHMARKS = (
    "columns",
    "selection",
    "order",
    "shuffle",
    "startup",
    "engine",
    "shards",
    "build",
    "stream",
    "pixels",
    "loader",
)


def hardware() -> dict[str, object]:
    """Return what the figures depend on."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "shardfeed": version("shardfeed"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--tiny", action="store_true", help="small inputs: the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object a benchmark")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    for name in args.names or BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        rows = module.run(tiny=args.tiny)
        if args.json:
            print(json.dumps({"benchmark": name, "hardware": hardware(), "rows": rows}), flush=True)
        else:
            print(f"{name}: {module.TITLE}")
            print("  on " + ", ".join(f"{key} {value}" for key, value in hardware().items()))
            for row in rows:
                print("  " + "  ".join(f"{key} {_figure(value)}" for key, value in row.items()))
            sys.stdout.flush()
    return 0


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
