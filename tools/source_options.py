"""The arguments of commands that open sources: what may be said about one."""

import argparse

from feeder.shards.sources.options import KINDS, SourceOptions


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the group of arguments that `source_options` reads."""
    group = parser.add_argument_group(
        "source", "A source is what its name or its content says; these say what cannot be seen."
    )
    group.add_argument("--kind", choices=KINDS, help="of the source (found out)")
    group.add_argument(
        "--classes", metavar="FILE", help="class names, one a line, in order of their labels (those there are, sorted)"
    )
    group.add_argument(
        "--split-by-hash",
        type=fractions,
        default={},
        metavar="val=F[,test=F]",
        help="cut splits off by a hash of each key: a sample stays where it is when others come or go",
    )
    group.add_argument("--image-column", metavar="NAME", help="of lists and Parquet: the image (image, file_name, …)")
    group.add_argument(
        "--image-field",
        type=named_column,
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="a further image of each sample, such as a mask; may be given again",
    )
    group.add_argument("--label-column", metavar="NAME", help="the label (label or class)")
    group.add_argument("--key-column", metavar="NAME", help="the key (key)")
    group.add_argument("--split-column", metavar="NAME", help="the split (split)")
    group.add_argument(
        "--columns", type=names, metavar="NAME[,NAME]", help="which further columns become fields (all of them)"
    )
    group.add_argument("--base", metavar="FOLDER", help="where relative paths in a list start (the list's own folder)")
    group.add_argument(
        "--damaged",
        choices=("fail", "keep"),
        default="fail",
        help="refuse tar archives that are cut, or keep the samples before the damage (%(default)s)",
    )


def source_options(args: argparse.Namespace) -> SourceOptions:
    """Return what the arguments say of the source.

    Raises:
        ConfigError: options that cannot be.
    """
    return SourceOptions(
        kind=args.kind,
        classes_file=args.classes,
        image_column=args.image_column,
        image_columns=dict(args.image_field),
        label_column=args.label_column,
        key_column=args.key_column,
        split_column=args.split_column,
        columns=args.columns,
        base=args.base,
        split_by_hash=args.split_by_hash,
        damaged=args.damaged,
    )


def fractions(text: str) -> dict[str, float]:
    """Read the value of ``--split-by-hash``: ``val=0.02,test=0.1``."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        found = {name.strip(): float(value) for name, value in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} gives no fractions; write them like val=0.02,test=0.1") from error
    if len(found) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a split twice; give each one fraction")
    return found


def named_column(text: str) -> tuple[str, str]:
    """Read the value of ``--image-field``: ``mask=mask_path``."""
    name, equals, column = text.partition("=")
    if not (equals and name and column):
        raise argparse.ArgumentTypeError(f"{text!r} names no column; write it like mask=mask_path")
    return name, column


def names(text: str) -> list[str]:
    """Read the value of ``--columns``: ``caption,source``; nothing stands for none."""
    return [name.strip() for name in text.split(",") if name.strip()]
