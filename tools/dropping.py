"""``feeder drop``: remove samples from a dataset."""

import argparse
import json
import shlex
import sys
from contextlib import ExitStack

from feeder.resources import usable_cores
from feeder.shards.building.packing import Advance
from feeder.shards.changing.dropping import DropReport, drop
from feeder.shards.columns.key_lists import listed_keys, read_keys
from feeder.shards.errors import SourceError
from feeder.tools import console

_SHOWN = 5  # missing keys named on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder drop``."""
    parser.epilog = (
        "Without --purge the bytes of the samples stay in the shards, for older generations. With it, the shards "
        "concerned are rewritten, and the generations that have the samples are removed."
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset made by 'feeder build': one split")
    parser.add_argument(
        "keys", metavar="KEYS", nargs="?", help="a file with one key a line, - for standard input; none only to purge"
    )
    parser.add_argument("--ignore-missing", action="store_true", help="go on where no sample has a key")
    parser.add_argument(
        "--purge", action="store_true", help="remove the bytes of all samples that were dropped, now or before"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that rewrite shards (cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Drop, then say what went."""
    workers = args.workers if args.workers is not None else usable_cores()
    keys = [] if args.keys is None else _given_keys(args.keys)
    with ExitStack() as stack:

        def start(total: int) -> Advance:
            return stack.enter_context(console.progress(total, "rewriting", "images"))

        report = drop(
            args.dataset, keys, ignore_missing=args.ignore_missing, purge=args.purge, workers=workers, start=start
        )
    if args.json:
        print(json.dumps(_document(report)))
    else:
        _print(args.dataset, report, purge=args.purge)
    return 0


def _given_keys(path: str) -> list[str]:
    if path != "-":
        return read_keys(path)
    try:
        return listed_keys(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise SourceError(f"cannot read the keys in {path}: {error}; expected text with one key a line") from error


def _document(report: DropReport) -> dict[str, object]:
    return {
        "generation": report.manifest.generation,
        "digest": report.manifest.digest,
        "samples": report.manifest.num_samples,
        "dropped": report.dropped,
        "missing": report.missing,
        "shards": report.shards,
        "rewritten": report.rewritten,
        "gone": report.gone,
    }


def _print(dataset: str, report: DropReport, *, purge: bool) -> None:
    generations = ", ".join(map(str, report.gone))
    console.print_figures(
        [
            ("dataset", dataset),
            ("generation", report.manifest.generation),
            ("dropped", f"{console.format_count(report.dropped, 'sample')} of {report.shards:,} shards"),
            ("samples left", f"{report.manifest.num_samples:,}"),
            *([("shards rewritten", f"{report.rewritten:,}")] if purge else []),
            *([("generations gone", generations)] if generations else []),
            ("digest", report.manifest.digest),
        ]
    )
    if report.missing:
        named = ", ".join(report.missing[:_SHOWN]) + (", …" if len(report.missing) > _SHOWN else "")
        print(f"{console.format_count(len(report.missing), 'key')} of no sample: {console.printable(named)}")
    if not purge and report.dropped:
        print(
            "\ntheir bytes are still in the shards, for older generations; to remove them for good: "
            f"feeder drop {shlex.quote(dataset)} --purge"
        )
