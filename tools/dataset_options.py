"""The options that make a dataset, shared by the commands that stream or show one."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeder.errors import ConfigError, StateError

if TYPE_CHECKING:
    from feeder.dataset import ImageDataset
    from feeder.order_settings import Shuffle

_PASSED_ON = (
    *("seed", "rank", "world_size", "replicate", "threads", "global_batch_size", "audit_log"),
    *("where", "exclude", "limit", "sample_weights", "balance"),
)
DEFAULT_BATCH = 64  # where neither batch size is given


def add_dataset_options(parser: argparse.ArgumentParser, *, transform: str) -> None:
    """Add the options of `open_stream` to a command; ``transform`` is the default preset."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset made by 'feeder build', or a folder of images")
    batch = parser.add_argument_group("batches")
    batch.add_argument("--batch-size", type=int, metavar="N", help=f"images a batch of one rank ({DEFAULT_BATCH})")
    batch.add_argument("--global-batch-size", type=int, metavar="N", help="images a step over all ranks, in its place")
    batch.add_argument("--rank", type=int, metavar="N", help="this rank, from 0 (that of the launcher, else 0)")
    batch.add_argument("--world-size", type=int, metavar="N", help="number of ranks (that of the launcher, else 1)")
    batch.add_argument("--replicate", type=int, metavar="N", help="ranks in a row that receive the same batches (1)")
    batch.add_argument("--state", metavar="FILE", help="start where this saved state says")
    order = parser.add_argument_group("order")
    order.add_argument("--seed", type=int, metavar="N", help="of order and augmentation (0, or that of the state)")
    order.add_argument("--shuffle", action=argparse.BooleanOptionalAction, default=True, help="(on)")
    add_shuffle_options(order)
    chosen = parser.add_argument_group("selection")
    chosen.add_argument("--where", metavar="EXPR", help="samples for which it holds, as in 'label in [3, 7]'")
    chosen.add_argument("--exclude", metavar="EXPR", help="leave out where it holds, or the keys in a file")
    chosen.add_argument("--limit", type=_limit, metavar="N", help="at most so many, or with 0.1 that part of them")
    chosen.add_argument("--sample-weights", metavar="COLUMN", help="how often each comes in an epoch, on average")
    chosen.add_argument("--balance", metavar="COLUMN", help="the same share for each of its values, as for label")
    pixels = parser.add_argument_group("pixels")
    pixels.add_argument("--transform", metavar="PRESET", default=transform, help=f"NAME[:SIZE[:FILTER]] ({transform})")
    pixels.add_argument("--views", type=int, default=1, metavar="N", help="crops of each sample (1)")
    pixels.add_argument("--engine", default="auto", metavar="NAME", help="what decodes (auto)")
    pixels.add_argument("--threads", type=int, metavar="N", help="decode threads of a process (cores it may use)")
    pixels.add_argument("--on-error", choices=("replace", "raise", "mask"), default="replace", help="for bad samples")
    pixels.add_argument("--audit-log", metavar="FILE", help="add a line of JSON for each bad sample")


def add_shuffle_options(order: "argparse._ArgumentGroup") -> None:
    """Add the options of `asked_shuffle` to a group of a command's options."""
    order.add_argument("--window-shards", type=_window, metavar="N|all", help="how far a shuffle moves a sample")
    order.add_argument("--lanes", type=_lanes, metavar="N|auto", help="streams into which an epoch is dealt")
    order.add_argument("--sticky", action=argparse.BooleanOptionalAction, help="same shards for a lane in every epoch")


def open_stream(args: argparse.Namespace) -> "ImageDataset":
    """Return the dataset that the options describe, at the position of ``--state`` if given.

    Options that were not given are not passed on, so that the library's defaults and its refusals hold.
    """
    from feeder import presets
    from feeder.dataset import ImageDataset
    from feeder.shards.columns.expressions import ExpressionError

    given = {name: getattr(args, name) for name in _PASSED_ON}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.exclude is not None and Path(args.exclude).is_file():
        options["exclude"] = Path(args.exclude)
    if args.batch_size is not None or args.global_batch_size is None:
        options["batch_size"] = DEFAULT_BATCH if args.batch_size is None else args.batch_size
    transform, shuffle = presets.parse(args.transform), asked_shuffle(args)
    try:
        dataset = ImageDataset(
            args.dataset,
            transform=transform,
            shuffle=shuffle,
            views=args.views,
            engine=args.engine,
            on_error=args.on_error,
            arrays="numpy",
            **options,
        )
    except ExpressionError as error:
        if args.exclude is None or repr(args.exclude) not in str(error) or args.exclude == args.where:
            raise
        raise ConfigError(f"{error}; nor is there a file of that name, whose keys --exclude would leave out") from error
    if args.state is not None:
        dataset.load_state_dict(read_state(Path(args.state)))
    return dataset


def read_state(path: Path) -> Any:
    """Return what a file of a saved state holds; the dataset judges it."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        remedy = "write one with 'feeder stream --save-state'"
        raise StateError(f"{path} holds no state: it is not JSON; {remedy}") from None


def check_output(option: str, name: str) -> None:
    """Refuse the name of a file that cannot be written at the end, before the work is done."""
    path = Path(name)
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {name} cannot be written: its folder does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {name} cannot be written: it is a folder; give the name of a file")


def count(text: str) -> int:
    """Read a number from 0, such as an epoch, a position or a number of steps."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    if number > sys.maxsize:
        raise argparse.ArgumentTypeError(f"{number} is more than anything can count to; write a smaller one")
    return number


def asked_shuffle(args: argparse.Namespace) -> "bool | Shuffle":
    """Return what ``shuffle=`` is to be."""
    from feeder.order_settings import Shuffle

    given = {"window_shards": args.window_shards, "lanes": args.lanes, "sticky_shards": args.sticky}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not args.shuffle:
        name = {"window_shards": "--window-shards", "lanes": "--lanes", "sticky_shards": "--sticky"}[next(iter(given))]
        raise ConfigError(f"{name} says how to shuffle, and --no-shuffle not to; give one of them")
    return Shuffle(**given) if given else bool(args.shuffle)


def _limit(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def _window(text: str) -> int | str:
    return text if text in ("all", "auto") else int(text)


def _lanes(text: str) -> int | str:
    return text if text == "auto" else int(text)


# argparse names a type in its sentence by __name__: "invalid number or 'all' value: 'x'"
count.__name__ = "number"
_limit.__name__ = "number or fraction"
_window.__name__, _lanes.__name__ = "number or 'all'", "number or 'auto'"
