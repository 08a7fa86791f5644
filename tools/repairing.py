"""``feeder repair``: save what is whole of a damaged dataset, and list what is lost."""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from feeder.errors import ConfigError
from feeder.resources import usable_cores
from feeder.shards.formats.index import index_name
from feeder.shards.reading.opening import find_datasets
from feeder.shards.repairing.repair import RepairReport, repair
from feeder.shards.repairing.repair_writing import LOST_NAME
from feeder.shards.sources.options import read_classes
from feeder.shards.storage import open_folder
from feeder.shards.table import SPLITS
from feeder.tools import console

_LEFT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder repair``."""
    parser.epilog = (
        "Indexes, columns and manifests are made again, byte for byte where that is possible; the samples of damaged "
        "shards that are right go into new ones, as a new generation, and no shard is changed; what is lost is listed "
        f"in {LOST_NAME}. "
        "Exit code 0: nothing to repair, or all repaired; 1: something to repair, and nothing was written, or what "
        "cannot be repaired; 2: no dataset there, or it cannot be written"
    )
    parser.add_argument("dataset", metavar="DATASET", help="made by 'feeder build', or the folder of its splits")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write", action="store_true", help="repair it in place (only say what would be done)")
    where.add_argument("--out", metavar="DIR", help="write what --write would into a new folder, to lay over DATASET")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, where the manifest is lost")
    parser.add_argument("--threads", type=int, metavar="N", help="shards examined at once (cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a dataset")


def run(args: argparse.Namespace) -> int:
    """Repair each dataset at a place, or say what there is to repair."""
    threads = args.threads if args.threads is not None else usable_cores()
    classes = None if args.classes is None else read_classes(args.classes)
    sources = _datasets_at(args.dataset)
    left = False
    for source in sources:
        out = args.out
        if out is not None and len(sources) > 1:
            os.makedirs(out, exist_ok=True)
            out = os.path.join(out, os.path.basename(source))
        with ExitStack() as stack:

            def start(total: int, stack: ExitStack = stack) -> Callable[[int], None]:
                return stack.enter_context(console.progress(total, "examining", "shards"))

            report = repair(source, write=args.write, out=out, classes=classes, threads=threads, start=start)
        left = left or bool(report.beyond) or (bool(report.sentences) and report.written is None)
        if args.json:
            print(json.dumps(_document(source, report)))
        else:
            _print(source, report)
    return _LEFT if left else 0


def _datasets_at(place: str) -> list[str]:
    """Return the datasets at a place, also those whose manifest is lost: itself, or its splits.

    Raises:
        ConfigError: a file of shards is named, not their folder.
    """
    if os.path.isfile(place) and not place.endswith(".json"):
        raise ConfigError(f"{place} is a file, expected the folder of a dataset")
    found = find_datasets(place)
    if found and os.path.basename(found[0]) not in SPLITS:
        return found
    lost = [os.path.join(place, split) for split in SPLITS if _holds_shards(os.path.join(place, split))]
    known = {os.path.realpath(source) for source in found}
    if _holds_shards(place):
        return [place]
    return [*found, *(split for split in lost if os.path.realpath(split) not in known)] or [place]


def _holds_shards(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith((index_name(""), ".tar")) for entry in entries)
    except OSError:
        return False


def _document(source: str, report: RepairReport) -> dict[str, Any]:
    return {
        "dataset": source,
        "written": report.written,
        "generation": report.manifest.generation,
        "digest": report.manifest.digest,
        "repairs": report.sentences,
        "beyond_repair": report.beyond,
        "lost": sum(sample.samples for sample in report.lost),
    }


def _print(source: str, report: RepairReport) -> None:
    for sentence in report.sentences:
        print(console.printable(sentence))
    if not report.sentences:
        print(f"{source}: nothing to repair")
        return
    lost = sum(sample.samples for sample in report.lost)
    todo = len(report.sentences) - len(report.beyond)
    parts = [console.format_count(todo, "repair")]
    if report.beyond:
        parts.append(f"{len(report.beyond):,} beyond repair")
    if lost:
        parts.append(f"{console.format_count(lost, 'sample')} lost")
    if report.written is None:
        print(f"{source}: {', '.join(parts)}; nothing was written: do it with --write, or elsewhere with --out DIR")
        return
    if lost:
        parts.append(f"listed in {LOST_NAME}")
    if report.written == open_folder(source).url:
        print(f"{source}: {', '.join(parts)}: done")
    else:
        print(f"{source}: {', '.join(parts)}, written to {report.written}: lay its files over the dataset")
