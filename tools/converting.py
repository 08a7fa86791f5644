"""``feeder convert``: a dataset in another format, order or cut, or as Parquet, without touching pixels."""

import argparse
import json
import shlex
import time
from contextlib import ExitStack
from typing import Any

from feeder.errors import ConfigError
from feeder.resources import usable_cores
from feeder.shards.building.committing import BuildReport
from feeder.shards.building.parquet_export import FILE_BYTES, ParquetReport, export_parquet
from feeder.shards.building.planning import DEFAULT_SHARD_BYTES
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.sources import SourceOptions
from feeder.tools import console
from feeder.tools.building import print_report, report_document, size_bytes

_ORDERS = ("keep", "shuffle", "balanced")
_NOT_FOR_PARQUET = ("format", "shard_samples", "shards", "order", "shuffle_seed", "split_by_hash", "workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder convert``."""
    parser.epilog = (
        "Images, keys, sources, classes and all other fields stay as they are, bad images too. Every image is checked "
        "against its CRC-32C on the way. The same command again goes on with a conversion that was interrupted."
    )
    parser.add_argument("source", metavar="DATASET", help="a dataset, or a folder of splits; a path or URL")
    parser.add_argument("dest", metavar="DEST", help="a new or empty folder; splits go to DEST/train and so on")
    parser.add_argument("--format", choices=WRITTEN_FORMATS, help="of the shards (tar)")
    parser.add_argument("--to", choices=("parquet",), help="export files for Hugging Face datasets instead, in order")
    parser.add_argument(
        "--shard-size", type=size_bytes, metavar="SIZE", help="the most bytes of a shard (64MiB), or of a Parquet file"
    )
    parser.add_argument("--shard-samples", type=int, metavar="N", help="the most samples of a shard (no limit)")
    parser.add_argument("--shards", type=int, metavar="N", help="so many shards, in a split, of equally many samples")
    parser.add_argument(
        "--order",
        choices=_ORDERS,
        help="keep the samples' order, shuffle them, or let classes take turns in random order (keep)",
    )
    parser.add_argument(
        "--shuffle-seed", type=int, metavar="N", help="of the random order; alone, it means --order shuffle (0)"
    )
    parser.add_argument(
        "--split-by-hash",
        type=fractions,
        metavar="NAME=F,…",
        help="cut splits off by a hash of the key, such as val=0.02: a sample's split never changes",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that write shards (cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Convert, then say what was made."""
    begin = time.monotonic()
    if args.to == "parquet":
        exported = _export(args)
        seconds = time.monotonic() - begin
        if args.json:
            print(json.dumps(_exported_document(exported, seconds)))
        else:
            _print_exported(exported, args.dest, seconds)
        return 0
    report = _convert(args)
    seconds = time.monotonic() - begin
    if args.json:
        print(json.dumps(report_document(report, seconds)))
    else:
        print_report(report, seconds, "converted")
    return 0


def _convert(args: argparse.Namespace) -> BuildReport:
    order = args.order or ("keep" if args.shuffle_seed is None else "shuffle")
    if order == "keep" and args.shuffle_seed is not None:
        raise ConfigError("--order keep and --shuffle-seed contradict each other; give one of them")
    options = BuildOptions(
        format=args.format or WRITTEN_FORMATS[0],
        shuffle=order != "keep",
        balanced=order == "balanced",
        seed=args.shuffle_seed or 0,
        shard_bytes=args.shard_size or DEFAULT_SHARD_BYTES,
        shard_samples=args.shard_samples,
        shards=args.shards,
        on_error="keep",
    )
    source = SourceOptions(kind="dataset", split_by_hash=args.split_by_hash or {})
    workers = args.workers if args.workers is not None else usable_cores()
    with ExitStack() as stack:

        def start(total: int) -> console.Advance:
            return stack.enter_context(console.progress(total, "converting", "samples"))

        return build(args.source, args.dest, options, source_options=source, workers=workers, start=start)


def _export(args: argparse.Namespace) -> ParquetReport:
    if given := [name for name in _NOT_FOR_PARQUET if getattr(args, name) is not None]:
        option = given[0].replace("_", "-")
        raise ConfigError(
            f"--{option} does not go with --to parquet, which keeps order and splits; convert first, then export"
        )
    with ExitStack() as stack:

        def start(total: int) -> console.Advance:
            return stack.enter_context(console.progress(total, "exporting", "samples"))

        return export_parquet(args.source, args.dest, file_bytes=args.shard_size or FILE_BYTES, start=start)


def fractions(text: str) -> dict[str, float]:
    """Read the value of ``--split-by-hash``."""
    try:
        parts = dict(part.split("=") for part in text.split(","))
        return dict(SourceOptions(split_by_hash={name: float(part) for name, part in parts.items()}).split_by_hash)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form val=0.02,test=0.1") from error


def _exported_document(report: ParquetReport, seconds: float) -> dict[str, Any]:
    return {
        "files": report.files,
        "samples": report.num_samples,
        "size_bytes": report.size_bytes,
        "seconds": round(seconds, 3),
    }


def _print_exported(report: ParquetReport, dest: str, seconds: float) -> None:
    console.print_figures(
        [
            ("files", f"{len(report.files):,} of Parquet, {console.format_bytes(report.size_bytes)}"),
            ("samples", f"{report.num_samples:,}"),
        ]
    )
    rate = console.format_rate(report.num_samples, seconds)
    print(f"exported in {console.format_duration(seconds)}, {rate}")
    print(f"\nnext: python -c {shlex.quote(f'import datasets; print(datasets.load_dataset({dest!r}))')}")
