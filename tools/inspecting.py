"""``feeder inspect``: what is in a dataset as a whole, its samples one by one, one as files, and how batches mix."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from feeder.errors import ConfigError
from feeder.shards.dataset.contents import generation_name, list_files, read_generations
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.errors import StorageError
from feeder.shards.reading.listing import list_samples
from feeder.shards.reading.opening import find_datasets, open_dataset
from feeder.shards.reading.rows import Reader
from feeder.shards.reading.summary import QUANTILES, FieldSummary, Summary, summarise
from feeder.shards.storage import open_folder
from feeder.tools import console
from feeder.tools.extracting import extract
from feeder.tools.shuffle_report import add_shuffle_report_options, check_shuffle_report_options, report_shuffle

_SHOWN_CLASSES = 10
_BAR = 40  # characters of the most frequent class
_EXAMPLE_LENGTH = 40


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
        help="look into at most N shards, evenly spaced, for classes, sizes and fields (%(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a dataset; with --list, one a sample"
    )
    which = parser.add_argument_group("single samples")
    which.add_argument(
        "--list",
        action="store_true",
        help="print of each sample key, class, bytes, width x height, format and shard, between tabs",
    )
    which.add_argument("--limit", type=int, metavar="N", help="with --list: the first N samples (all)")
    which.add_argument("--shard", metavar="NAME", help="with --list: those of one shard")
    which.add_argument("--extract", metavar="KEY", help="write the fields of one sample into files, byte for byte")
    which.add_argument("--to", metavar="FILE|DIR", help="with --extract: a file for the image, or a folder for all (.)")
    add_shuffle_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is in each dataset at a place, or its samples, or write one of them into files."""
    _refuse_contradictions(args)
    sources = find_datasets(args.dataset) or [args.dataset]
    if args.extract is not None:
        return _extract(sources, args)
    if args.list:
        _list(sources, args)
        return 0
    if args.shuffle:
        return report_shuffle(sources, args)
    for number, source in enumerate(sources):
        reader = open_dataset(source)
        summary = summarise(reader, args.max_shards)
        generations = list(_generations(reader, source))
        if args.json:
            print(json.dumps(_document(reader, summary, generations)))
        else:
            if number:
                print()
            _print(reader, summary, generations)
        reader.close()
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    asked = [f"--{name}" for name in ("list", "extract", "shuffle") if getattr(args, name)]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} exclude each other; give one of them")
    check_shuffle_report_options(args)
    for name, needed in (("limit", "list"), ("shard", "list"), ("to", "extract")):
        if getattr(args, name) is not None and not getattr(args, needed):
            raise ConfigError(f"--{name} says something about --{needed}; give that too")
    if args.limit is not None and args.limit < 0:
        raise ConfigError(f"--limit is {args.limit}, expected a number from 0")


# Single samples ------------------------------------------------------------------------------------------------------


def _list(sources: list[str], args: argparse.Namespace) -> None:
    """Print the samples, one line each, as they are read."""
    left = args.limit
    for source in sources:
        reader = open_dataset(source)
        classes = reader.manifest.classes
        for sample in islice(list_samples(reader, args.shard), left):
            left = None if left is None else left - 1
            name = classes[sample.label] if 0 <= sample.label < len(classes) else ""
            if args.json:
                print(json.dumps(dataclasses.asdict(sample) | {"class": name or None}))
            else:
                size = f"{sample.width}x{sample.height}"
                values = (sample.key, name or sample.label, sample.size_bytes, size, sample.format, sample.shard)
                print("\t".join(console.printable(str(value)) for value in values))
        reader.close()


def _extract(sources: list[str], args: argparse.Namespace) -> int:
    """Write a sample into files, and print their names."""
    if len(sources) > 1:
        raise ConfigError(f"{args.dataset} holds several datasets, expected one; name {' or '.join(sources)}")
    reader = open_dataset(sources[0])
    written = extract(reader, args.extract, args.to if args.to is not None else ".")
    reader.close()
    if args.json:
        print(json.dumps({"key": args.extract, "files": [str(path) for path in written]}))
    else:
        for path in written:
            print(console.printable(str(path)))
    return 0


# The whole -----------------------------------------------------------------------------------------------------------


def _generations(reader: Reader, source: str) -> Iterator[dict[str, Any]]:
    """Yield what is known of each generation, the first one first."""
    newest = _generation(reader.manifest)
    if reader.manifest.generation and not source.endswith(".json"):
        folder = open_folder(reader.url)
        try:
            for earlier in read_generations(folder, list_files(folder)):
                if earlier.manifest is not None:
                    yield _generation(earlier.manifest)
                else:
                    number = int(earlier.name.rpartition("/")[2].removesuffix(".json"))
                    yield {"generation": number, "purged_by": earlier.purged_by, "problem": earlier.problem or None}
        except StorageError:  # some servers give files and list none
            console.warn(f"the earlier generations of {reader.url} cannot be listed")
    yield newest


def _generation(manifest: Manifest) -> dict[str, Any]:
    return {
        "generation": manifest.generation,
        "digest": manifest.digest,
        "parent": manifest.parent,
        "samples": manifest.num_samples,
        "shards": len(manifest.shards),
    }


def _document(reader: Reader, summary: Summary, generations: list[dict[str, Any]]) -> dict[str, Any]:
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
        "origin": manifest.origin,
        "adopted": manifest.adopted,
        "segments": len(manifest.segments),
        "dropped": sum(manifest.shards.dropped.values()),
        "columns": {name: column.file for name, column in manifest.columns.items()},
        "generation": manifest.generation,
        "generations": generations,
        "looked_at": {"shards": summary.shards_read, "samples": summary.samples_read},
        "class_counts": summary.class_counts.tolist(),
        "unlabelled": summary.unlabelled,
        "image_formats": summary.formats,
        "quantiles": list(QUANTILES),
        "widths": summary.widths,
        "heights": summary.heights,
        "sizes": summary.sizes,
        "other_fields": {name: _field_document(field) for name, field in summary.fields.items()},
    }


def _field_document(field: FieldSummary) -> dict[str, Any]:
    """Return a field's summary; JSON has no NaN and no infinity, so these become text."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    document = dataclasses.asdict(field)
    return document | {
        "examples": [plain(value) for value in field.examples],
        "lowest": plain(field.lowest),
        "highest": plain(field.highest),
    }


def _print(reader: Reader, summary: Summary, generations: list[dict[str, Any]]) -> None:
    manifest = reader.manifest
    count = len(manifest.shards)
    mean = console.format_bytes(manifest.size_bytes / max(1, manifest.num_samples))
    console.print_figures(
        [
            ("dataset", reader.url),
            ("format", "plain folder of images" if _is_plain(reader) else manifest.format),
            *([("split", manifest.split)] if manifest.split else []),
            ("samples", f"{manifest.num_samples:,}"),
            *([("classes", f"{len(manifest.classes):,}")] if manifest.classes else []),
            ("size", f"{console.format_bytes(manifest.size_bytes)}, {mean} a sample"),
            ("shards", f"{count:,} groups of files" if manifest.format == "folder" else f"{count:,}"),
            *_print_unusual(manifest),
            ("fields", ", ".join(f"{name} ({field.type})" for name, field in manifest.fields.items())),
            ("order", _order(manifest)),
            ("digest", manifest.digest),
        ]
    )
    if summary.shards_read < count:
        print(f"\nfrom {summary.shards_read:,} of {count:,} shards, {summary.samples_read:,} samples:")
    else:
        print()
    console.print_figures(
        [
            ("formats", _formats(summary.formats)),
            ("width", _spread(summary.widths)),
            ("height", _spread(summary.heights)),
            ("bytes", _spread(summary.sizes, "")),
            *((name, _field(field)) for name, field in summary.fields.items()),
        ]
    )
    if manifest.classes:
        _print_classes(manifest, summary)
    if len(generations) > 1:
        print("\ngenerations:")
        console.print_table(("generation", "samples", "shards", "digest"), map(_generation_row, generations))


def _is_plain(reader: Reader) -> bool:
    return reader.manifest.format == "folder" and not reader.manifest.adopted


def _print_unusual(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield figures that most datasets need not show."""
    if len(manifest.segments) > len(manifest.shards):
        yield "segments", f"{len(manifest.segments):,}"
    if manifest.adopted or manifest.origin is not None:
        yield "adopted", f"from {manifest.origin}" if manifest.origin else "the manifest stands beside the data"
    if manifest.shards.dropped:
        dropped = sum(manifest.shards.dropped.values())
        yield "dropped", f"{console.format_count(dropped, 'sample')} that shards still hold"
    if manifest.columns:
        yield "columns", f"{len(manifest.columns)} consolidated"
    if manifest.generation:
        yield "generation", f"{manifest.generation} (earlier ones: URL/{generation_name(0).rpartition('/')[0]}/…)"


def _print_classes(manifest: Manifest, summary: Summary) -> None:
    """Print a histogram of the most frequent classes."""
    counts = summary.class_counts
    more = f" of {len(counts):,}" if len(counts) > _SHOWN_CLASSES else ""
    print(f"\nmost frequent classes{more}:")
    most = (-counts).argsort(kind="stable")[:_SHOWN_CLASSES].tolist()
    unit = max(1, int(counts.max())) / _BAR
    rows = [(label, manifest.classes[label], int(counts[label]), "#" * round(counts[label] / unit)) for label in most]
    console.print_table(("label", "class", "samples", ""), rows)
    if summary.unlabelled:
        print(f"{console.format_count(summary.unlabelled, 'sample')} without a label")


def _generation_row(generation: dict[str, Any]) -> tuple[Any, ...]:
    if "digest" in generation:
        return generation["generation"], f"{generation['samples']:,}", f"{generation['shards']:,}", generation["digest"]
    gone = f"purged by generation {generation['purged_by']}" if generation["problem"] is None else "cannot be read"
    return generation["generation"], "", "", gone


def _field(field: FieldSummary) -> str:
    """Return one line about a field."""
    parts = [field.type]
    if field.absent:
        parts.append(f"absent in {field.absent:,}")
    if field.formats:
        parts.append(_formats(field.formats))
    if any(field.sizes):
        parts.append(f"bytes: {_spread(field.sizes, '')}")
    if field.lowest is not None:
        parts.append(f"from {field.lowest:g} to {field.highest:g}")
    elif field.examples:
        parts.append(f"such as {', '.join(_example(value) for value in field.examples)}")
    return ", ".join(parts)


def _example(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _EXAMPLE_LENGTH else f"{text[: _EXAMPLE_LENGTH - 1]}…"


def _formats(formats: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name or 'unreadable'}" for name, number in formats.items())


def _order(manifest: Manifest) -> str:
    if not manifest.shuffled:
        return "as in the source"
    return "shuffled" if manifest.shuffle_seed is None else f"shuffled with seed {manifest.shuffle_seed}"


def _spread(values: list[int], unit: str = " pixels") -> str:
    least, low, median, high, most = values
    return f"median {median}{unit}, 90% from {low} to {high}, all from {least} to {most}"
