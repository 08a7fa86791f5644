"""``feeder inspect``: what is in a dataset."""

import argparse
import json
from typing import Any

from feeder.shards.manifest import Manifest
from feeder.shards.reading import find_datasets, open_dataset
from feeder.shards.rows import Reader
from feeder.shards.summary import QUANTILES, Summary, summarise
from feeder.tools import console

_SHOWN_CLASSES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder inspect``."""
    parser.add_argument(
        "dataset", metavar="DATASET", help="a dataset made by 'feeder build', the folder of its splits, or of images"
    )
    parser.add_argument(
        "--max-shards",
        type=int,
        default=256,
        metavar="N",
        help="look into at most N shards, evenly spaced, for classes and image sizes (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a dataset")


def run(args: argparse.Namespace) -> int:
    """Print what is in each dataset at a place."""
    for number, source in enumerate(find_datasets(args.dataset) or [args.dataset]):
        reader = open_dataset(source)
        summary = summarise(reader, args.max_shards)
        if args.json:
            print(json.dumps(_document(reader, summary)))
        else:
            if number:
                print()
            _print(reader, summary)
        reader.close()
    return 0


def _document(reader: Reader, summary: Summary) -> dict[str, Any]:
    manifest = reader.manifest
    return {
        "dataset": reader.url,
        "digest": manifest.digest,
        "format": manifest.format,
        "split": manifest.split,
        "samples": manifest.num_samples,
        "shards": len(manifest.shards),
        "size_bytes": manifest.size_bytes,
        "fields": {name: field.type for name, field in manifest.fields.items()},
        "classes": list(manifest.classes),
        "shuffled": manifest.shuffled,
        "shuffle_seed": manifest.shuffle_seed,
        "build": dict(manifest.build),
        "looked_at": {"shards": summary.shards_read, "samples": summary.samples_read},
        "class_counts": summary.class_counts.tolist(),
        "image_formats": summary.formats,
        "quantiles": list(QUANTILES),
        "widths": summary.widths,
        "heights": summary.heights,
    }


def _print(reader: Reader, summary: Summary) -> None:
    manifest = reader.manifest
    count = len(manifest.shards)
    mean = console.format_bytes(manifest.size_bytes / max(1, manifest.num_samples))
    console.print_figures(
        [
            ("dataset", reader.url),
            ("format", "plain folder of images" if manifest.format == "folder" else manifest.format),
            *([("split", manifest.split)] if manifest.split else []),
            ("samples", f"{manifest.num_samples:,}"),
            *([("classes", f"{len(manifest.classes):,}")] if manifest.classes else []),
            ("size", f"{console.format_bytes(manifest.size_bytes)}, {mean} a sample"),
            ("shards", f"{count:,}" if manifest.format != "folder" else f"{count:,} groups of files"),
            ("fields", ", ".join(f"{name} ({field.type})" for name, field in manifest.fields.items())),
            ("order", _order(manifest)),
            ("digest", manifest.digest),
        ]
    )
    if summary.shards_read < count:
        print(f"\nfrom {summary.shards_read:,} of {count:,} shards, {summary.samples_read:,} samples:")
    else:
        print()
    formats = ", ".join(f"{number:,} {name or 'unreadable'}" for name, number in summary.formats.items())
    console.print_figures(
        [("formats", formats), ("width", _spread(summary.widths)), ("height", _spread(summary.heights))]
    )
    if manifest.classes:
        print("\nmost frequent classes:")
        most = (-summary.class_counts).argsort(kind="stable")[:_SHOWN_CLASSES].tolist()
        console.print_table(
            ("label", "class", "samples"),
            [(label, manifest.classes[label], int(summary.class_counts[label])) for label in most],
        )


def _order(manifest: Manifest) -> str:
    if not manifest.shuffled:
        return "as in the source"
    return "shuffled" if manifest.shuffle_seed is None else f"shuffled with seed {manifest.shuffle_seed}"


def _spread(values: list[int]) -> str:
    least, low, median, high, most = values
    return f"median {median} pixels, 90% from {low} to {high}, all from {least} to {most}"
