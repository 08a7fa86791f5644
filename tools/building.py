"""``feeder build``: shards and a manifest from any source; the same command again goes on with it."""

import argparse
import json
import re
import shlex
import time
from contextlib import ExitStack
from typing import Any

from feeder.errors import ConfigError
from feeder.resources import usable_cores
from feeder.shards.building.bad_samples import ALWAYS_ALLOWED_BAD
from feeder.shards.building.committing import BuildReport
from feeder.shards.building.duplicates import MODES
from feeder.shards.building.planning import DEFAULT_SHARD_BYTES
from feeder.shards.building.writing import BuildOptions, BuildPreview, build, preview
from feeder.shards.changing.retrying import retry_failed
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.images.headers import CAUSES, MAX_PIXELS
from feeder.shards.images.rules import FILTERED
from feeder.shards.sources.options import SourceOptions
from feeder.tools import console
from feeder.tools.image_options import add_image_arguments, image_rules
from feeder.tools.source_options import add_source_arguments, source_options

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_SHOWN_BAD = 5  # bad images named on the terminal; the file has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder build``."""
    defaults = BuildOptions()
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="images in class folders or not, in splits or not; a CSV, TSV, JSONL or Parquet list; tar archives, such "
        "as 'train-{000..146}.tar'; Parquet files with images; a dataset; each local or a URL",
    )
    parser.add_argument("dest", metavar="DEST", help="a new or empty folder or URL; splits go to DEST/train and so on")
    parser.add_argument(
        "--format",
        choices=WRITTEN_FORMATS,
        default=defaults.format,
        help="of the shards: tar for webdataset and DALI, arrow for pyarrow, polars and datasets (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="N", help="of the shuffle (%(default)s)")
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=defaults.shuffle,
        help="lay samples in random order over all shards (on); off keeps the order of names",
    )
    parser.add_argument(
        "--shard-size",
        type=size_bytes,
        default=DEFAULT_SHARD_BYTES,
        metavar="SIZE",
        help="the most bytes of a tar shard, such as 64MiB (64MiB); arrow shards hold the same samples",
    )
    parser.add_argument("--shard-samples", type=int, metavar="N", help="the most samples of a shard (no limit)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that write shards (cores it may use)")
    parser.add_argument(
        "--on-error",
        choices=("skip", "fail"),
        default=defaults.on_error,
        help="set bad images aside, or stop at the first (%(default)s)",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=defaults.max_bad_fraction,
        metavar="F",
        help=f"with skip, the most that may be bad (%(default)s; {ALWAYS_ALLOWED_BAD} always may, unless it is 0)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=defaults.max_pixels,
        metavar="N",
        help=f"an image with more pixels is bad ({MAX_PIXELS:,})",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard what an interrupted build has written to DEST, and start over"
    )
    parser.add_argument(
        "--duplicates",
        choices=MODES,
        default=defaults.duplicates,
        help="of images with the same bytes: keep all, drop all but the first, or fail (%(default)s)",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="read again what a finished build set aside, and append what is good now as a new generation",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_source_arguments(parser)
    add_image_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Build, then say what was made."""
    options = BuildOptions(
        format=args.format,
        seed=args.seed,
        shuffle=args.shuffle,
        shard_bytes=args.shard_size,
        shard_samples=args.shard_samples,
        max_pixels=args.max_pixels,
        images=image_rules(args),
        on_error=args.on_error,
        max_bad_fraction=args.max_bad_fraction,
        duplicates=args.duplicates,
    )
    said = source_options(args)
    if args.retry_failed:
        _refuse_ignored(args, options)
    if args.dry_run:
        _print_preview(preview(args.source, args.dest, options, source_options=said), args.dest, as_json=args.json)
        return 0
    workers = args.workers if args.workers is not None else usable_cores()
    if args.retry_failed:
        return _retry(args, said, workers)
    begin = time.monotonic()
    with ExitStack() as stack:

        def start(total: int) -> console.Advance:
            return stack.enter_context(console.progress(total, "building", "images"))

        report = build(
            args.source,
            args.dest,
            options,
            source_options=said,
            workers=workers,
            start=start,
            restart=args.restart,
        )
    seconds = time.monotonic() - begin
    if args.json:
        print(json.dumps(report_document(report, seconds)))
    else:
        print_report(report, seconds, "built")
    return 0


def _refuse_ignored(args: argparse.Namespace, options: BuildOptions) -> None:
    """Raise `ConfigError` for what trying again would not heed: it does as the build did, by its manifest."""
    usual = BuildOptions()
    given = {
        "--restart": args.restart,
        "--dry-run": args.dry_run,
        "--on-error": options.on_error != usual.on_error,
        "--max-bad-fraction": options.max_bad_fraction != usual.max_bad_fraction,
        "--max-pixels": options.max_pixels != usual.max_pixels,
        "--duplicates": options.duplicates != usual.duplicates,
        "options for images": options.images != usual.images,
    }
    if ignored := [name for name, is_given in given.items() if is_given]:
        raise ConfigError(
            f"--retry-failed does as the finished build did and takes no {' or '.join(ignored)}; leave that out, or "
            "build anew"
        )


def _retry(args: argparse.Namespace, said: SourceOptions, workers: int) -> int:
    """Try again what a build set aside, then say what came of it."""
    with ExitStack() as stack:

        def start(total: int) -> console.Advance:
            return stack.enter_context(console.progress(total, "trying again", "images"))

        report = retry_failed(args.source, args.dest, source_options=said, workers=workers, start=start)
    if args.json:
        document = {"tried": report.tried, "recovered": report.recovered, "bad": len(report.bad), "gone": report.gone}
        print(json.dumps(document))
        return 0
    console.print_figures(
        [
            ("tried", f"{report.tried:,}"),
            ("recovered", f"{report.recovered:,}"),
            ("still bad", f"{len(report.bad) - report.gone:,}"),
            ("gone", f"{report.gone:,}"),
        ]
    )
    for image in report.bad[:_SHOWN_BAD]:
        print(f"  {console.printable(image.source)}: {console.printable(image.reason)}")
    return 0


def size_bytes(text: str) -> int:
    """Read a size such as ``64MiB``, ``100MB`` or ``1000000``."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 64MiB, 100MB or 1000000")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def report_document(report: BuildReport, seconds: float) -> dict[str, Any]:
    """Return what was made as the object that ``--json`` prints."""
    return {
        "datasets": [
            {
                "path": str(dataset.path),
                "split": dataset.manifest.split,
                "samples": dataset.manifest.num_samples,
                "shards": len(dataset.manifest.shards),
                "classes": len(dataset.manifest.classes),
                "size_bytes": dataset.manifest.size_bytes,
                "digest": dataset.manifest.digest,
            }
            for dataset in report.datasets
        ],
        "samples": report.num_samples,
        "size_bytes": report.size_bytes,
        "bad": report.bad_by_cause,
        "bad_images": str(report.bad_path) if report.bad_path else None,
        "duplicates": report.duplicates,
        "resumed_shards": report.resumed_shards,
        "seconds": round(seconds, 3),
    }


def _print_preview(would: BuildPreview, dest: str, *, as_json: bool) -> None:
    """Say what a build would make."""
    parts = [
        {
            "split": table.split,
            "samples": len(table),
            "shards": shards,
            "classes": len(table.classes),
            "size_bytes": table.size_bytes,
            "estimated": table.estimated,
        }
        for table, shards in zip(would.tables, would.shards, strict=True)
    ]
    if as_json:
        print(json.dumps({"dry_run": True, "destination": dest, "datasets": parts}))
        return
    for table, part in zip(would.tables, parts, strict=True):
        console.print_figures(
            [
                ("dataset", f"{dest.rstrip('/')}/{table.split}" if table.split else dest),
                ("samples", f"{part['samples']:,}"),
                *([("classes", f"{part['classes']:,}")] if table.labelled else []),
                ("shards", _planned(part)),
            ]
        )
    print("\nnothing was written; without --dry-run, this is what would be built")


def _planned(part: dict[str, Any]) -> str:
    """Return how many shards a split would get, and from how much."""
    about = "about " if part["estimated"] else ""
    return f"{about}{part['shards']:,}, from {about}{console.format_bytes(part['size_bytes'])}"


def print_report(report: BuildReport, seconds: float, done: str) -> None:
    """Say what was made; `done` is the word for it."""
    for dataset in report.datasets:
        manifest = dataset.manifest
        console.print_figures(
            [
                ("dataset", dataset.path),
                ("samples", f"{manifest.num_samples:,}"),
                *([("classes", f"{len(manifest.classes):,}")] if "label" in manifest.fields else []),
                ("shards", f"{len(manifest.shards):,}, {console.format_bytes(manifest.size_bytes)}"),
                ("order", _order(manifest)),
                ("digest", manifest.digest),
            ]
        )
    rate = console.format_rate(report.written_samples, seconds)
    speed = f"{rate}, {console.format_bytes(report.written_bytes / seconds)}/s"
    print(f"{done} in {console.format_duration(seconds)}, {speed}")
    if report.resumed_shards:
        print(f"{console.format_count(report.resumed_shards, 'shard')} had been finished before")
    if report.duplicates:
        print(f"{console.format_count(report.duplicates, 'duplicate')} left out, listed in duplicates.jsonl")
    if report.bad_path:
        count = len(report.bad)
        noun = "image" if FILTERED & report.bad_by_cause.keys() else "bad image"
        said = f"{count:,} {noun}s were" if count > 1 else f"1 {noun} was"
        print(f"\n{said} set aside, listed in {report.bad_path}:")
        console.print_table(
            ("cause", "images", "meaning"),
            [(cause, count, CAUSES[cause]) for cause, count in report.bad_by_cause.items()],
        )
        for image in report.bad[:_SHOWN_BAD]:
            print(f"  {console.printable(image.source)}: {console.printable(image.reason)}")
    print(f"\nnext: feeder stream {shlex.quote(str(report.datasets[0].path))}")


def _order(manifest: Manifest) -> str:
    if not manifest.shuffled:
        return "as in the source"
    return "shuffled" if manifest.shuffle_seed is None else f"shuffled with seed {manifest.shuffle_seed}"


# argparse names a type in its sentence by __name__: "invalid size value: 'x'"
size_bytes.__name__ = "size"
