"""``feeder inspect --shuffle``: how well batches mix, against a full shuffle; what another window would give.

``--json`` prints one object a dataset: ``schema`` ``"feeder.shuffle/1"``, ``dataset``, ``digest``, ``order`` (settings
as in a state), ``global_batch``, ``world_size``, ``judgement``, and the attributes of
`feeder.shuffle_quality.ShuffleQuality`, with ``buffered_bytes`` beside ``buffered_segments``.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.reading.rows import Reader
from feeder.tools import console
from feeder.tools.dataset_options import DEFAULT_BATCH, add_shuffle_options, asked_shuffle, check_output

if TYPE_CHECKING:
    from feeder.order_settings import OrderSettings
    from feeder.shuffle_counts import Balance
    from feeder.shuffle_quality import BatchQuality, ShuffleQuality
    from feeder.tools.plotting import Chart

SCHEMA = "feeder.shuffle/1"

_OPTIONS = (
    "batch_size",
    "global_batch_size",
    "world_size",
    "seed",
    "epochs",
    "window_shards",
    "lanes",
    "sticky",
    "plot",
)
_BAR = 30  # characters of the longest bar
_UNEVEN = 1.05  # class counts of 5 % more variance than chance are no harm to training, whatever their significance
_SORTED = 2.0  # times as often of one class within a shard as elsewhere


def add_shuffle_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feeder inspect --shuffle``."""
    mixing = parser.add_argument_group("how batches mix")
    mixing.add_argument("--shuffle", action="store_true", help="say how well batches mix; no image is read")
    mixing.add_argument("--batch-size", type=int, metavar="N", help=f"images a batch of one rank ({DEFAULT_BATCH})")
    mixing.add_argument("--global-batch-size", type=int, metavar="N", help="images a step over all ranks, in its place")
    mixing.add_argument("--world-size", type=int, metavar="N", help="number of ranks (1)")
    mixing.add_argument("--seed", type=int, metavar="N", help="of the order (0)")
    mixing.add_argument("--epochs", type=int, metavar="N", help="to look at (2)")
    add_shuffle_options(mixing)
    mixing.add_argument("--plot", metavar="FILE.svg", help="draw what other windows would give, too")


def check_shuffle_report_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    for name in _OPTIONS:
        if getattr(args, name) is not None and not args.shuffle:
            raise ConfigError(f"--{name.replace('_', '-')} says something about --shuffle; give that too")
    if args.plot is not None:
        if Path(args.plot).suffix.lower() != ".svg":
            raise ConfigError(f"--plot {args.plot} is no name for a drawing; let it end in .svg")
        check_output("--plot", args.plot)
    if args.batch_size is not None and args.global_batch_size is not None:
        raise ConfigError("--batch-size and --global-batch-size exclude each other; give one of them")
    for name in ("batch_size", "global_batch_size", "world_size", "epochs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected at least 1")


def report_shuffle(sources: list[str], args: argparse.Namespace) -> int:
    """Print how the batches of each dataset mix."""
    if args.plot is not None and len(sources) > 1:
        raise ConfigError(f"--plot draws one dataset, and {args.dataset} holds several; name {' or '.join(sources)}")
    for number, source in enumerate(sources):
        reader = open_dataset(source)
        if number and not args.json:
            print()
        _report(reader, args)
        reader.close()
    return 0


def _report(reader: Reader, args: argparse.Namespace) -> None:
    from feeder.order import Order
    from feeder.order_settings import resolve_settings
    from feeder.shuffle_quality import assess

    manifest = reader.manifest
    world_size = args.world_size or 1
    global_batch = args.global_batch_size or (args.batch_size or DEFAULT_BATCH) * world_size
    if not world_size <= global_batch <= manifest.num_samples:
        raise ConfigError(
            f"the global batch is {global_batch:,} on {world_size:,} ranks, and {reader.url} has"
            f" {manifest.num_samples:,} samples; expected from 1 sample a rank to all of them"
        )
    segments = manifest.segments.samples
    settings = resolve_settings(
        asked_shuffle(args),
        seed=args.seed or 0,
        segment_samples=segments,
        shuffled_when_written=manifest.shuffled,
        global_batch=global_batch,
    )
    quality = assess(
        Order(segments, settings),
        segments,
        global_batch=global_batch,
        world_size=world_size,
        epochs=args.epochs or 2,
        labels=_labels(reader),
    )
    segment_bytes = manifest.size_bytes / max(1, int(np.count_nonzero(segments)))
    if args.json:
        head = {
            "schema": SCHEMA,
            "dataset": reader.url,
            "digest": manifest.digest,
            "order": settings.to_json(),
            "global_batch": global_batch,
            "world_size": world_size,
            "judgement": judge(quality, settings),
        }
        print(json.dumps(head | _document(quality, segment_bytes)))
    else:
        _print_head(reader, quality, settings, global_batch, world_size)
        _print_quality(quality, world_size)
        _print_outlook(quality, world_size, segment_bytes)
    if args.plot is not None:
        from feeder.tools.plotting import write_charts

        write_charts(Path(args.plot), list(_charts(quality, world_size)))
        if not args.json:
            print(f"\n{args.plot}: the same as a drawing")


def _labels(reader: Reader) -> NDArray[Any] | None:
    """Return int32[N], −1 for samples without a label, or None if the dataset has none."""
    from feeder.shards.columns.cached_files import cache_folder
    from feeder.shards.columns.dataset_columns import DatasetColumns
    from feeder.shards.reading.folder import FolderReader
    from feeder.shards.storage import open_folder

    manifest = reader.manifest
    if "label" not in manifest.fields or manifest.fields["label"].type != "int64":
        return None
    if isinstance(reader, FolderReader):
        return np.asarray(reader.values(np.arange(manifest.num_samples), "label"), np.int32)
    columns = DatasetColumns(folder=open_folder(reader.url), manifest=manifest, cache=cache_folder())
    chunks = columns.open(["label"])["label"].chunks
    labels = np.empty(manifest.num_samples, np.int32)
    start = 0
    for chunk in chunks:
        labels[start : start + len(chunk)] = np.asarray(chunk.fill_null(-1) if chunk.null_count else chunk)
        start += len(chunk)
    return labels


# Judgement -----------------------------------------------------------------------------------------------------------


def judge(quality: "ShuffleQuality", settings: "OrderSettings") -> str:
    """Return one sentence: whether class balance is that of a full shuffle, and what to do if it is not."""
    whole, ranks, concordance = quality.global_batches.balance, quality.rank_batches.balance, quality.concordance
    if whole is None or ranks is None or concordance is None:
        return "there are no labels of several classes, so that class balance is left out"
    if not _uneven(whole):
        sentence = f"class balance of global batches: {_compared(whole)}"
        if quality.rank_batches.samples == quality.global_batches.samples:
            return sentence
        if not _uneven(ranks):
            return f"{sentence}; of ranks' batches: {_compared(ranks)}"
        return (
            f"{sentence}; those of ranks have {ranks.ratio:.2f} times its variance, since a rank's lanes hold few"
            " classes: write the shards with 'feeder convert --order shuffle' if that matters"
        )
    found = f"class counts of global batches with {whole.ratio:.2f} times the variance of a full shuffle"
    lift = concordance.same_segment / max(concordance.other_segments, 1e-9)
    if lift < _SORTED:
        return f"this order leaves {found}; use a larger --window-shards"
    seems = f"labels look sorted: two samples of one shard share their class {lift:,.1f} times as often as others"
    if settings.window is None:
        return f"{seems}, and window all leaves {found}; write the shards with 'feeder convert --order shuffle'"
    best = quality.outlook[-1].global_batches.balance
    return (
        f"{seems}, and a window of {settings.window:,} samples leaves {found}; use --window-shards all"
        f"{'' if best is None else f' ({best:.2f} times)'}"
    )


def _uneven(balance: "Balance") -> bool:
    return balance.z > 3 and balance.ratio > _UNEVEN


def _compared(balance: "Balance") -> str:
    if balance.z < -3:
        return "evener than a full shuffle, as lanes hold different classes"
    return "within 3σ of a full shuffle" if balance.z <= 3 else f"{balance.ratio - 1:.1%} off a full shuffle"


# What is printed -----------------------------------------------------------------------------------------------------


def _document(quality: "ShuffleQuality", segment_bytes: float) -> dict[str, Any]:
    document = dataclasses.asdict(quality)
    for record in (document, *document["outlook"]):
        record["buffered_bytes"] = round(record["buffered_segments"] * segment_bytes)
    for name in ("global_batches", "rank_batches"):
        balance = getattr(quality, name).balance
        if balance is not None:
            document[name]["balance"]["z"] = balance.z
    return document


def _print_head(
    reader: Reader, quality: "ShuffleQuality", settings: "OrderSettings", global_batch: int, world_size: int
) -> None:
    ranks = f" on {world_size:,} ranks" if world_size > 1 else ""
    console.print_figures(
        [
            ("dataset", f"{reader.url}, {console.format_count(reader.manifest.num_samples, 'sample')}"),
            ("order", str(settings)),
            ("batches", f"{global_batch:,} samples a step{ranks}"),
            ("looked at", f"{quality.steps:,} of {quality.of_steps:,} steps in each of {quality.epochs} epochs"),
        ]
    )
    print(f"\n{judge(quality, settings)}")


def _print_quality(quality: "ShuffleQuality", world_size: int) -> None:
    """Print what was measured beside what lanes and window predict and what a full shuffle has."""
    print()
    kinds = [("global batch", quality.global_batches)]
    if world_size > 1:
        kinds.append(("rank's batch", quality.rank_batches))
    console.print_table(("", "", "measured", "predicted", "full shuffle"), itertools.chain(*(_rows(*k) for k in kinds)))


def _rows(name: str, found: "BatchQuality") -> Iterator[tuple[str, ...]]:
    predicted, full = found.predicted, found.full
    if found.balance is not None:
        measured = f"{found.balance.ratio:.3f} ± {found.balance.standard_error:.3f}"
        yield name, "variance of class counts", measured, _number(predicted.balance), "1"
    pairs = (found.same_segment_pairs, predicted.same_segment_pairs, full.same_segment_pairs)
    yield name, "pairs of one shard", *map(_number, pairs)
    again = "not followed" if found.meet_again is None else f"{found.meet_again:.3%}"
    yield name, "pairs that meet again", again, f"{predicted.meet_again:.3%}", f"{full.meet_again:.3%}"


def _print_outlook(quality: "ShuffleQuality", world_size: int, segment_bytes: float) -> None:
    """Print what other windows would give, with bars for the pairs of one shard, on a logarithmic scale."""
    print("\nwith another window, by formula:")
    full = quality.rank_batches.full
    times = [one.rank_batches.same_segment_pairs / max(full.same_segment_pairs, 1e-9) for one in quality.outlook]
    unit = math.log(max(2.0, *times)) / _BAR
    rows = []
    for one, ratio in zip(quality.outlook, times, strict=True):
        balances = (one.global_batches.balance, one.rank_batches.balance)
        rows.append(
            (
                str(one.window_shards),
                console.format_bytes(one.buffered_segments * segment_bytes),
                *([] if quality.concordance is None else map(_number, balances[: 1 + (world_size > 1)])),
                f"{one.rank_batches.meet_again:.3%}",
                f"{ratio:,.1f} x",
                "#" * max(1, round(math.log(max(1.0, ratio)) / unit)),
            )
        )
    variances = ["class variance", "of ranks"][: 1 + (world_size > 1)] if quality.concordance is not None else []
    console.print_table(
        ("window", "in use", *variances, "meet again", "pairs of one shard, of a full shuffle's", ""), rows
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _charts(quality: "ShuffleQuality", world_size: int) -> Iterator["Chart"]:
    """Yield a chart for each figure: what every window gives, and what was measured, as a level line."""
    from feeder.tools.plotting import Chart, Line

    windows = [str(one.window_shards) for one in quality.outlook]
    kinds = {"global batch": ("global_batches", quality.global_batches)}
    if world_size > 1:
        kinds["rank's batch"] = ("rank_batches", quality.rank_batches)

    def lines(name: str, measured: Callable[["BatchQuality"], float | None]) -> Iterator[Line]:
        for title, (kind, found) in kinds.items():
            yield Line(name=title, values=[getattr(getattr(one, kind), name) for one in quality.outlook])
            if (value := measured(found)) is not None:
                yield Line(name=f"{title}, this order", values=[value] * len(windows), dashed=True)

    if quality.concordance is not None:
        yield Chart(
            title="Variance of class counts, of that of a full shuffle",
            x_name="window (shards)",
            x_labels=windows,
            lines=list(lines("balance", lambda found: None if found.balance is None else found.balance.ratio)),
            logarithmic=True,
        )
    yield Chart(
        title="Pairs of one shard in a batch",
        x_name="window (shards)",
        x_labels=windows,
        lines=list(lines("same_segment_pairs", lambda found: found.same_segment_pairs)),
        logarithmic=True,
    )
    yield Chart(
        title="Share of a batch's pairs that meet again in the next epoch",
        x_name="window (shards)",
        x_labels=windows,
        lines=list(lines("meet_again", lambda found: found.meet_again)),
        logarithmic=True,
    )
