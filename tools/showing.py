"""``feeder show``: draws one batch as the model gets it, after crop and flip: a PNG contact sheet with keys and labels.

The batch is that of any epoch, step and rank, or the one with which a run would go on from a saved state: a pure
function of the dataset, the seed and these numbers, so it may be looked at on any machine, long after the run, and
``--digest`` proves that it is the same.
``--random N`` draws samples as they are stored instead.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feeder import optional
from feeder.errors import ConfigError
from feeder.placement import Placement, resolve_placement
from feeder.tools import console
from feeder.tools.dataset_options import add_dataset_options, check_output, count, open_stream
from feeder.tools.measuring import BatchDigests, image_arrays

if TYPE_CHECKING:
    from feeder.dataset import ImageDataset

DEFAULT_LIMIT = 64  # images: about what an eye takes in, and a sheet of 3 MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_dataset_options(parser, transform="imagenet-train:224")
    which = parser.add_argument_group("which batch")
    which.add_argument("--epoch", type=count, metavar="N", help="(0)")
    which.add_argument("--step", type=count, metavar="N", help="step of the epoch, from 0 (0)")
    which.add_argument(
        "--digest", action="store_true", help="print what 'feeder stream --digest pixels' would of this batch alone"
    )
    stored = parser.add_argument_group("or samples as they are stored")
    stored.add_argument("--random", type=count, metavar="N", help="N samples drawn with --seed, whole and unchanged")
    stored.add_argument("--class", dest="class_name", metavar="NAME", help="with --random: those of one class")
    sheet = parser.add_argument_group("sheet")
    sheet.add_argument("-o", "--output", default="sheet.png", metavar="FILE", help="(sheet.png)")
    sheet.add_argument("--images", type=count, default=DEFAULT_LIMIT, metavar="N", help=f"images ({DEFAULT_LIMIT})")


def run(args: argparse.Namespace) -> int:
    """Draw the sheet and say where it is."""
    if args.state is not None and (args.epoch is not None or args.step is not None):
        raise ConfigError("--state says which batch, and so do --epoch and --step; give one or the other")
    if args.images == 0:
        raise ConfigError("--images is 0; a sheet shows at least 1 image")
    if args.class_name is not None and args.random is None:
        raise ConfigError("--class says which samples --random draws; give that too")
    if args.random is not None and args.digest:
        raise ConfigError("--digest is of a batch, and --random draws samples of none; give one of them")
    if args.random is not None and (args.random == 0 or args.state or args.epoch is not None or args.step is not None):
        raise ConfigError("--random draws at least 1 sample, of no batch: without --state, --epoch and --step")
    output = Path(args.output)
    if output.suffix.lower() != ".png":
        raise ConfigError(f"--output {args.output} is no name for a PNG; let it end in .png")
    check_output("--output", args.output)
    if args.random is not None:
        optional.load("pillow")
        from feeder.tools.stored_samples import show_stored

        return show_stored(args.dataset, args.random, seed=args.seed or 0, class_name=args.class_name, output=output)
    dataset = open_stream(args)
    if args.state is None:
        batch = dataset.batch(epoch=args.epoch or 0, step=args.step or 0)
    else:
        state = dataset.state_dict()
        batch = dataset.batch_at(epoch=state["epoch"], position=state["position"])
    draw_batch(dataset, batch, resolve_placement(args.rank, args.world_size), output, args.images)
    rows, where = len(batch["id"]), f"epoch {batch['epoch']}, position {batch['position']}"
    print(f"{args.output}: {min(args.images, rows):,} of {rows:,} images, {where}")
    if args.digest:
        digests = BatchDigests()
        digests.add(batch)
        console.print_figures([("ids", digests.ids), ("pixels", digests.pixels)])
    dataset.close()
    return 0


def draw_batch(
    dataset: "ImageDataset", batch: dict[str, Any], placement: Placement, output: Path, limit: int = DEFAULT_LIMIT
) -> None:
    """Write the contact sheet of a batch of NumPy arrays.

    Args:
        dataset: what the batch is of, for the title and the names of the classes.
        batch: as `ImageDataset` yields it, images uint8.
        placement: the rank that gets it.
        output: a PNG file, replaced if there is one.
        limit: images shown at most, the first of the batch.
    """
    optional.load("pillow")
    from feeder.tools.contact_sheet import Tile, draw_sheet, save_sheet

    groups = [images if images.ndim == 5 else images[:, np.newaxis] for images in image_arrays(batch)]
    rows = len(batch["id"])
    tiles = [
        Tile(
            views=[view for images in groups for view in images[row]],
            captions=_captions(dataset.classes, batch, row),
            mark=_mark(batch, row),
        )
        for row in range(min(limit, rows))
    ]
    sheet = draw_sheet(_title(dataset, batch, placement, len(tiles)), tiles)
    save_sheet(sheet, output)


def _title(dataset: "ImageDataset", batch: dict[str, Any], placement: Placement, shown: int) -> list[str]:
    """Return two lines that say which batch it is."""
    height, width = image_arrays(batch)[0].shape[-3:-1]
    step, past = divmod(batch["position"], dataset.global_batch(placement.world_size))
    where = f"position {batch['position']:,}" if past else f"step {step:,}"  # no step of this batch size starts there
    whose = f"rank {placement.rank} of {placement.world_size}, seed {dataset.order_settings.seed}"
    rows = len(batch["id"])
    number = f"{shown} of {rows}" if shown < rows else f"{rows}"
    return [
        f"epoch {batch['epoch']}, {where}, {whose}",
        f"{number} images of {width} by {height} pixels, dataset {dataset.manifest.digest}",
    ]


def _captions(classes: tuple[str, ...], batch: dict[str, Any], row: int) -> tuple[str, str]:
    """Return key and label."""
    label = int(batch["label"][row])
    if not batch["valid"][row]:
        return console.printable(batch["key"][row]), ""
    name = f"{classes[label]} ({label})" if 0 <= label < len(classes) else "no label"
    return console.printable(batch["key"][row]), console.printable(name)


def _mark(batch: dict[str, Any], row: int) -> str | None:
    if batch["valid"][row]:
        return None
    return "padding" if batch["id"][row] < 0 else "cannot be decoded"
