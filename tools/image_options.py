"""The arguments of commands that write images: scaling, turning, converting and filtering them."""

import argparse

from feeder.errors import ConfigError
from feeder.shards.images.rules import DEFAULT_QUALITY, ImageRules, Resize


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the group of arguments that `image_rules` reads."""
    group = parser.add_argument_group(
        "images", "Without these, images pass byte for byte; with them, those that need no change still do."
    )
    group.add_argument(
        "--resize",
        type=size_rule,
        metavar="RULE",
        help="shorter=256, longer=512 or fit=640x480: scale larger images down; shards become smaller with them",
    )
    group.add_argument(
        "--quality", type=int, metavar="Q", help=f"of JPEG and WebP that are encoded anew, 1 to 100 ({DEFAULT_QUALITY})"
    )
    group.add_argument(
        "--orientation",
        choices=("keep", "apply"),
        default="keep",
        help="apply turns images upright that EXIF says are not (%(default)s)",
    )
    group.add_argument(
        "--colour",
        "--color",
        choices=("keep", "rgb"),
        default="keep",
        help="rgb converts grey, palette, CMYK and 16-bit images, transparency on white (%(default)s)",
    )
    group.add_argument("--min-side", type=int, metavar="N", help="leave images out whose shorter side is less")
    group.add_argument("--max-side", type=int, metavar="N", help="leave images out whose longer side is more")
    group.add_argument("--min-pixels", type=int, metavar="N", help="leave images out that have fewer pixels")
    group.add_argument(
        "--max-aspect", type=float, metavar="F", help="leave images out whose longer side is more times the shorter"
    )


def image_rules(args: argparse.Namespace) -> ImageRules:
    """Return the rules that the arguments say.

    Raises:
        ConfigError: rules that cannot be.
    """
    return ImageRules(
        resize=args.resize,
        quality=args.quality,
        orientation=args.orientation,
        colour=args.colour,
        min_side=args.min_side,
        max_side=args.max_side,
        min_pixels=args.min_pixels,
        max_aspect=args.max_aspect,
    )


def size_rule(text: str) -> Resize:
    """Read the value of ``--resize``."""
    try:
        return Resize.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
