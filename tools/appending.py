"""``feeder append``: add the samples of a source to a dataset."""

import argparse
import json
import shlex
import time
from contextlib import ExitStack

from feeder.resources import usable_cores
from feeder.shards.building.bad_samples import ALWAYS_ALLOWED_BAD
from feeder.shards.building.packing import Advance
from feeder.shards.building.spooling import opened
from feeder.shards.changing.appending import AppendReport, append
from feeder.shards.errors import SourceError
from feeder.shards.table import SPLITS, SampleTable
from feeder.tools import console
from feeder.tools.source_options import add_source_arguments, source_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder append``."""
    parser.epilog = (
        "The samples go into new shards, of the dataset's format and with the settings of its build. New classes get "
        "numbers behind those that there are."
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset made by 'feeder build': one split")
    parser.add_argument("source", metavar="SOURCE", help="what 'feeder build' takes: one split of it")
    parser.add_argument("--split", choices=SPLITS, help="the split of the source to append, where it has several")
    parser.add_argument("--skip-existing", action="store_true", help="leave out samples whose key the dataset has")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that write shards (cores it may use)")
    parser.add_argument(
        "--on-error",
        choices=("skip", "fail"),
        default="skip",
        help="set bad images aside, or stop at the first (%(default)s)",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        metavar="F",
        help=f"with skip, the most that may be bad (%(default)s; {ALWAYS_ALLOWED_BAD} always may, unless it is 0)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Append, then say what was added."""
    workers = args.workers if args.workers is not None else usable_cores()
    begin = time.monotonic()
    with ExitStack() as stack:

        def start(total: int) -> Advance:
            return stack.enter_context(console.progress(total, "appending", "images"))

        tables = stack.enter_context(opened(args.source, source_options(args)))
        report = append(
            args.dataset,
            _chosen(tables, args.source, args.split),
            skip_existing=args.skip_existing,
            on_error=args.on_error,
            max_bad_fraction=args.max_bad_fraction,
            workers=workers,
            start=start,
        )
    seconds = time.monotonic() - begin
    if args.json:
        print(json.dumps(_document(report, seconds)))
    else:
        _print(args.dataset, report, seconds)
    return 0


def _chosen(tables: list[SampleTable], source: str, split: str | None) -> SampleTable:
    """Return the samples of a source without splits, or of the one that was named."""
    if split is None and len(tables) == 1 and tables[0].split is None:
        return tables[0]
    for table in tables:
        if split is not None and table.split == split:
            return table
    splits = ", ".join(str(table.split) for table in tables if table.split)
    if not splits:
        raise SourceError(f"{source} has no splits, so none is {split}; append it without --split")
    if split is not None:
        raise SourceError(f"{source} has no split {split}: it has {splits}; name one of them with --split")
    raise SourceError(f"{source} has the splits {splits}, but a dataset is one split; name one of them with --split")


def _document(report: AppendReport, seconds: float) -> dict[str, object]:
    return {
        "generation": report.manifest.generation,
        "digest": report.manifest.digest,
        "added": report.samples,
        "shards": report.shards,
        "new_classes": report.classes,
        "skipped": report.skipped,
        "samples": report.manifest.num_samples,
        "bad": report.bad_by_cause,
        "bad_images": report.bad_name,
        "seconds": round(seconds, 3),
    }


def _print(dataset: str, report: AppendReport, seconds: float) -> None:
    console.print_figures(
        [
            ("dataset", dataset),
            ("generation", report.manifest.generation),
            ("added", f"{report.samples:,} samples in {console.format_count(report.shards, 'shard')}"),
            *([("new classes", ", ".join(report.classes))] if report.classes else []),
            *([("already there", f"{report.skipped:,} samples")] if report.skipped else []),
            ("samples", f"{report.manifest.num_samples:,}"),
            ("digest", report.manifest.digest),
        ]
    )
    rate = console.format_rate(report.samples, seconds)
    print(f"appended in {console.format_duration(seconds)}, {rate}")
    if report.bad:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in report.bad_by_cause.items())
        print(f"{len(report.bad):,} set aside, listed in {report.bad_name}: {causes}")
    print(f"\nnext: feeder inspect {shlex.quote(dataset)}")
