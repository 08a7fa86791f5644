"""``feeder index``: use data where they lie, here and in other loaders."""

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from feeder.errors import ConfigError
from feeder.resources import usable_cores
from feeder.shards.adoption.adopting import AdoptedDataset, AdoptReport, adopt
from feeder.shards.adoption.finding import find_adoptable
from feeder.shards.archives.foreign_indexes import FOREIGN_TOOLS, ForeignIndexes, write_foreign_indexes
from feeder.shards.dataset.manifest import Manifest, load_manifest
from feeder.shards.errors import SourceError
from feeder.shards.reading.opening import find_datasets
from feeder.shards.sources.options import SourceOptions
from feeder.shards.storage import is_remote, open_folder
from feeder.tools import console

_SHOWN = 5  # files named on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder index``."""
    parser.epilog = (
        "Without --for, SOURCE may be tar archives (also 's3://bucket/train-{000000..000146}.tar' and what img2dataset "
        "writes), their folder, an MDS set of MosaicML Streaming, or a folder of images; DEST gets a manifest and "
        "an index for each shard, and is then a dataset. With --for, SOURCE is a dataset or tar archives; there is no "
        "DEST."
    )
    parser.add_argument("paths", nargs="+", metavar="SOURCE… DEST", help="what to adopt, and a new or empty folder")
    parser.add_argument(
        "--for", dest="tool", choices=FOREIGN_TOOLS, help="write the index files of another loader beside tar archives"
    )
    parser.add_argument("--replace", action="store_true", help="with --for, overwrite index files that differ")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, in order of their labels")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read shards (cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Index, then say what was found."""
    if args.tool:
        return _run_foreign(args)
    if args.replace:
        raise ConfigError("--replace goes with --for dali or --for energon; a dataset is never overwritten")
    if len(args.paths) < 2:
        raise ConfigError(f"only {args.paths[0]!r} was given; expected what to adopt, then where its manifest goes")
    *sources, dest = args.paths
    workers = args.workers if args.workers is not None else usable_cores()
    begin = time.monotonic()
    with ExitStack() as stack:

        def start(shards: int, size_bytes: int) -> Callable[[int, int], None]:
            advance = stack.enter_context(console.progress(shards, "indexing", "shards"))
            return lambda done, done_bytes: advance(done, size_bytes=done_bytes)

        report = adopt(sources, dest, SourceOptions(classes_file=args.classes), workers=workers, start=start)
    seconds = time.monotonic() - begin
    for dataset in report.datasets:
        _warn(dataset)
    if args.json:
        print(json.dumps(_document(report, seconds)))
    else:
        _print(report, seconds)
    return 0


def _warn(dataset: AdoptedDataset) -> None:
    if dataset.labels_look_sorted:
        console.warn(
            f"the labels of {dataset.url} come in runs, though it is taken as shuffled: training shuffles within a "
            "window of shards; rewrite it in random order with 'feeder convert', or train with window_shards='all'"
        )


def _document(report: AdoptReport, seconds: float) -> dict[str, Any]:
    return {
        "datasets": [
            {
                "path": dataset.url,
                "split": dataset.manifest.split,
                "format": dataset.manifest.format,
                "origin": dataset.manifest.origin,
                "samples": dataset.manifest.num_samples,
                "shards": len(dataset.manifest.shards),
                "classes": len(dataset.manifest.classes),
                "fields": {name: field.type for name, field in dataset.manifest.fields.items()},
                "size_bytes": dataset.manifest.size_bytes,
                "unreadable": dataset.unreadable,
                "without_image": dataset.dropped,
                "digest": dataset.manifest.digest,
            }
            for dataset in report.datasets
        ],
        "surveyed": report.surveyed,
        "kept": report.kept,
        "seconds": round(seconds, 3),
    }


def _print(report: AdoptReport, seconds: float) -> None:
    for dataset in report.datasets:
        manifest = dataset.manifest
        console.print_figures(
            [
                ("dataset", dataset.url),
                ("data", manifest.origin or dataset.url),
                ("samples", f"{manifest.num_samples:,}"),
                *([("classes", f"{len(manifest.classes):,}")] if "label" in manifest.fields else []),
                ("fields", ", ".join(manifest.fields)),
                ("shards", _shards(manifest)),
                *([("bad headers", f"{dataset.unreadable:,}, replaced in training")] if dataset.unreadable else []),
                *([("without image", f"{dataset.dropped:,}, left out")] if dataset.dropped else []),
                ("digest", manifest.digest),
            ]
        )
    size_bytes = sum(dataset.manifest.size_bytes for dataset in report.datasets)
    rate = f", {console.format_bytes(size_bytes / max(seconds, 1e-9))}/s" if report.surveyed else ""
    kept = f", {console.format_count(report.kept, 'shard')} read before" if report.kept else ""
    print(f"indexed in {console.format_duration(seconds)}{rate}{kept}")
    print(f"\nnext: feeder stream {shlex.quote(report.datasets[0].url)}")


def _shards(manifest: Manifest) -> str:
    segments = len(manifest.segments)
    parts = f" in {segments:,} segments" if segments != len(manifest.shards) else ""
    return f"{len(manifest.shards):,}{parts}, {manifest.format}, {console.format_bytes(manifest.size_bytes)}"


# Index files of other loaders ----------------------------------------------------------------------------------------


def _run_foreign(args: argparse.Namespace) -> int:
    splits = _tars(args.paths)
    total = sum(map(len, splits.values()))
    with console.progress(total, f"indexing for {args.tool}", "archives") as advance:
        report = write_foreign_indexes(splits, args.tool, replace=args.replace, advance=advance)
    if args.json:
        print(json.dumps(_foreign_document(report)))
    else:
        for path in report.kept:
            print(f"kept {console.printable(str(path))}, which is there already")
        samples = console.format_count(sum(report.samples.values()), "sample")
        written = console.format_count(len(report.written), "file")
        print(f"wrote {written} for {args.tool}: {samples} in {console.format_count(total, 'archive')}")
    return 0


def _foreign_document(report: ForeignIndexes) -> dict[str, Any]:
    return {
        "written": [str(path) for path in report.written],
        "kept": [str(path) for path in report.kept],
        "samples": report.samples,
    }


def _tars(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the local tar archives of datasets, or those that paths, patterns or a folder name, by split."""
    splits: dict[str, list[str]] = {}
    remote = next((path for path in paths if is_remote(path)), None)
    datasets = find_datasets(paths[0]) if remote is None and len(paths) == 1 and os.path.isdir(paths[0]) else []
    for dataset in datasets:
        manifest = load_manifest(dataset)
        root = manifest.origin or dataset
        remote = remote or (root if is_remote(root) else None)
        splits[manifest.split or "train"] = [open_folder(root).where(name) for name in manifest.shards.names]
        _refuse_other_formats(manifest.format, dataset)
    if remote is not None:
        raise SourceError(f"{remote} is behind a URL, and index files go beside local archives; copy or mount it first")
    for found in () if datasets else find_adoptable(paths, SourceOptions()):
        _refuse_other_formats(found.format, found.root)
        splits[found.split or "train"] = [open_folder(found.root).where(name) for name in found.names]
    return splits


def _refuse_other_formats(shard_format: str, where: str) -> None:
    if shard_format != "tar":
        raise SourceError(
            f"the shards of {where} are of the format {shard_format!r}, and other loaders read tar; make tar shards "
            "with 'feeder convert --format tar'"
        )
