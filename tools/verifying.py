"""``feeder verify``: check a dataset for damage."""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from feeder.errors import ConfigError
from feeder.resources import usable_cores
from feeder.shards.dataset.contents import generation_name
from feeder.shards.dataset.manifest import MANIFEST_NAME, load_manifest
from feeder.shards.reading.opening import find_datasets
from feeder.shards.repairing.verify import LEVELS, VerifyReport, verify
from feeder.tools import console

_DAMAGED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder verify``."""
    parser.epilog = (
        "exit code 0: no damage, though there may be notes; 1: damage, all of it listed; 2: no dataset there, or an "
        "unreadable manifest. What is damaged can be repaired as far as possible with 'feeder repair'."
    )
    parser.add_argument("dataset", metavar="DATASET", help="made by 'feeder build', or the folder of its splits")
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="quick",
        help="quick: sizes and indexes; full: also every byte; deep: also decode every image (%(default)s)",
    )
    parser.add_argument("--generation", type=int, metavar="N", help="an earlier generation (the newest)")
    parser.add_argument("--threads", type=int, metavar="N", help="shards checked at once (cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a dataset")


def run(args: argparse.Namespace) -> int:
    """Check each dataset at a place, and list the problems."""
    threads = args.threads if args.threads is not None else usable_cores()
    damaged = False
    for source in datasets_at(args.dataset, args.generation):
        with ExitStack() as stack:

            def start(total: int, stack: ExitStack = stack) -> Callable[[int], None]:
                return stack.enter_context(console.progress(total, "verifying", "shards"))

            decode = _decode if args.level == "deep" else None
            report = verify(source, args.level, decode=decode, threads=threads, start=start)
        damaged = damaged or bool(report.problems)
        if args.json:
            print(json.dumps(_document(source, report)))
        else:
            _print(source, report)
    return _DAMAGED if damaged else 0


def datasets_at(place: str, generation: int | None) -> list[str]:
    """Return the datasets at a place, or that generation of each; the place itself where there are none.

    Raises:
        ConfigError: a number that no generation has.
        ManifestError: a manifest cannot be read.
    """
    found = find_datasets(place) or [place]
    if generation is None:
        return found
    if generation < 0:
        raise ConfigError(f"--generation is {generation}, expected a number from 0")
    chosen = []
    for source in found:
        newest = load_manifest(source).generation
        if generation > newest:
            raise ConfigError(f"{source} has no generation {generation}; expected 0 to {newest}")
        earlier = f"{source.removesuffix('/' + MANIFEST_NAME)}/{generation_name(generation)}"
        chosen.append(source if generation == newest else earlier)
    return chosen


def _document(source: str, report: VerifyReport) -> dict[str, Any]:
    return {
        "dataset": source,
        "generation": report.manifest.generation,
        "digest": report.manifest.digest,
        "level": report.level,
        "problems": report.problems,
        "notes": report.notes,
    }


def _print(source: str, report: VerifyReport) -> None:
    for problem in report.problems:
        print(console.printable(problem))
    for note in report.notes:
        print(console.printable(f"note: {note}"))
    manifest = report.manifest
    shards = console.format_count(len(manifest.shards), "shard")
    what = f"{shards}, {console.format_count(manifest.num_samples, 'sample')}, level {report.level}"
    found = console.format_count(len(report.problems), "problem") if report.problems else "no damage"
    print(f"{source}: {found} ({what})")


def _decode(images: list[bytes], sizes: list[tuple[int, int]]) -> dict[int, str]:
    """Decode whole images with the reference engine; return why some fail."""
    from feeder.engines import open_engine
    from feeder.windows import Windows

    count = len(images)
    boxes = np.array([[(0, 0, width, height)] for width, height in sizes], np.float64)
    windows = Windows(
        sizes=np.array(sizes, np.int32),
        boxes=boxes,
        flips=np.zeros((count, 1), np.bool_),
        clipped=True,
        interpolation="nearest",  # the pixels are not looked at
    )
    return open_engine("pillow").decode(images, [windows], [np.zeros((count, 1, 1, 1, 3), np.uint8)])
