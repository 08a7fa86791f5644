"""``feeder annotate``: add columns to a dataset from a table with keys."""

import argparse
import json
import shlex

from feeder.shards.changing.annotating import AnnotateReport, annotate
from feeder.tools import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder annotate``."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset made by 'feeder build': one split")
    parser.add_argument("table", metavar="TABLE", help="a CSV, TSV, JSON lines or Parquet file, a path or a URL")
    parser.add_argument(
        "--on", default="key", metavar="COLUMN", help="the column of both that says what belongs together (%(default)s)"
    )
    parser.add_argument(
        "--columns", metavar="A,B", help="the columns of the table to add (all but the one of --on)", type=_names
    )
    parser.add_argument("--replace", action="store_true", help="overwrite columns that are there, for all samples")
    parser.add_argument("--strict", action="store_true", help="refuse keys that no sample has")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(args: argparse.Namespace) -> int:
    """Annotate, then say what fitted."""
    report = annotate(
        args.dataset, args.table, on=args.on, columns=args.columns, replace=args.replace, strict=args.strict
    )
    if args.json:
        print(json.dumps(_document(report)))
    else:
        _print(args.dataset, report)
    return 0


def _document(report: AnnotateReport) -> dict[str, object]:
    return {
        "generation": report.manifest.generation,
        "digest": report.manifest.digest,
        "columns": dict(report.columns),
        "matched": report.matched,
        "missing": report.missing,
        "unknown": report.unknown,
    }


def _print(dataset: str, report: AnnotateReport) -> None:
    console.print_figures(
        [
            ("dataset", dataset),
            ("generation", report.manifest.generation),
            ("columns", ", ".join(f"{name} ({kind})" for name, kind in report.columns.items())),
            ("samples with values", f"{report.matched:,}"),
            ("samples without", f"{report.missing:,}"),
            *([("keys of no sample", f"{report.unknown:,}")] if report.unknown else []),
            ("digest", report.manifest.digest),
        ]
    )
    print(f"\nnext: feeder inspect {shlex.quote(dataset)}")
