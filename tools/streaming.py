"""``feeder stream``: streams a dataset as a training loop would, and says how fast and exactly what came.

Two digests identify what came, each blake2b over the batches of an epoch in order: ``ids`` over the sample ids as
little-endian int64 (padding is -1), ``pixels`` batch by batch over these ids, then the images, (B[, V], H, W, 3). Any
number of workers and threads gives the same; rank, world size and batch size belong to what is asked for. With
``--json`` one object goes to standard output:

- ``schema``: ``"feeder.stream/1"``; a change of meaning changes the number
- ``dataset``: source, digest, images, classes; ``order``: its settings, as in a state
- ``engine``, ``transform``, ``views``, ``workers``, ``start_method``, ``threads`` (null is automatic), ``rank``,
  ``world_size``, ``global_batch``
- ``epochs``: of each its number, first position, steps, images (valid ones), seconds, first_batch_s, images_per_s and
  digests
- ``images``, ``seconds``, ``images_per_s``, ``cpu_ms_per_image``: over all epochs; CPU time is that of this process and
  its workers, their start included
- ``state``: the state behind the last batch, null if there was none
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeder.errors import ConfigError
from feeder.placement import Placement, resolve_placement
from feeder.shards.storage import staged_file
from feeder.tools import console
from feeder.tools.dataset_options import add_dataset_options, check_output, count, open_stream
from feeder.tools.measuring import EpochReport, stream_epoch

if TYPE_CHECKING:
    from feeder.dataset import ImageDataset

SCHEMA = "feeder.stream/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_dataset_options(parser, transform="imagenet-train:224")
    stream = parser.add_argument_group("stream")
    stream.add_argument("--epochs", type=count, default=1, metavar="N", help="epochs, the first one included (1)")
    stream.add_argument("--epoch", type=count, metavar="N", help="first epoch (0, or that of the state)")
    stream.add_argument("--position", type=count, metavar="N", help="samples of the first epoch to leave out (0)")
    stream.add_argument("--steps", type=count, metavar="N", help="stop after so many steps in all")
    stream.add_argument("--workers", type=count, default=0, metavar="N", help="worker processes (0: this one)")
    stream.add_argument("--start-method", choices=multiprocessing.get_all_start_methods(), help="of workers")
    report = parser.add_argument_group("report")
    report.add_argument("--digest", choices=("ids", "pixels"), default="ids", help="pixels: of ids, and of both (ids)")
    report.add_argument("--json", action="store_true", help="print one JSON object")
    report.add_argument("--save-state", metavar="FILE", help="write the state behind the last batch, as JSON")


def run(args: argparse.Namespace) -> int:
    """Stream, and print what came."""
    _check_arguments(args)
    from feeder.loader import Loader

    dataset = open_stream(args)
    position = _seek(dataset, args)
    placement = resolve_placement(args.rank, args.world_size)
    steps_per_epoch = len(dataset)  # refuses an epoch without steps, before anything is printed
    if not args.json:
        _print_head(dataset, args, steps_per_epoch)
    cpu_start_s, start = _cpu_seconds(), time.perf_counter()
    reports: list[EpochReport] = []
    loader = Loader(dataset, workers=args.workers, start_method=args.start_method)
    state, steps_left = None, args.steps
    for _ in range(args.epochs):
        expected = _expected_images(dataset, placement, position, steps_left)
        report, behind = stream_epoch(loader, expected=expected, steps=steps_left, pixels=args.digest == "pixels")
        if report is None:
            break
        reports.append(report)
        state, position = behind, 0
        if not args.json:
            _print_epoch(report)
        if steps_left is not None:
            steps_left -= report.steps
    loader.close()  # ends the workers: their CPU time counts from then on
    seconds, cpu_s = time.perf_counter() - start, _cpu_seconds() - cpu_start_s
    if args.save_state is not None and state is not None:
        with staged_file(Path(args.save_state)) as file:
            file.write((json.dumps(state) + "\n").encode())
    images = sum(report.images for report in reports)
    cpu_ms = 1000 * cpu_s / images if images else 0.0
    if args.json:
        totals = {
            "epochs": [report.to_json() for report in reports],
            "images": images,
            "seconds": seconds,
            "images_per_s": images / seconds,
            "cpu_ms_per_image": cpu_ms,
            "state": state,
        }
        print(json.dumps(_settings(dataset, args) | totals))
    else:
        rate = f"{console.format_duration(seconds)}, {console.format_rate(images, seconds)}"
        print(f"in all   {images:,} images in {rate}, {cpu_ms:.2f} ms CPU an image")
    dataset.close()
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse what the library cannot see: options of this command that contradict each other."""
    if args.start_method is not None and args.workers == 0:
        method = f"--start-method {args.start_method}"
        raise ConfigError(f"{method} is for worker processes, and there are none; add --workers")
    if args.state is not None and (args.epoch is not None or args.position is not None):
        raise ConfigError("--state says where to start, and so do --epoch and --position; give one or the other")
    if args.save_state is not None:
        check_output("--save-state", args.save_state)


def _seek(dataset: "ImageDataset", args: argparse.Namespace) -> int:
    """Set the dataset to its first epoch and position; return the position."""
    if args.epoch is not None or args.position is not None:
        epoch, position = args.epoch or 0, args.position or 0
        dataset.load_state_dict({**dataset.state_dict(), "epoch": epoch, "position": position})
        if dataset.epoch != epoch:
            raise ConfigError(
                f"--position {position} leaves no step of epoch {epoch}: there are {dataset.num_positions} samples, and"
                f" the global batch is {dataset.global_batch()}"
            )
    return int(dataset.state_dict()["position"])


def _expected_images(dataset: "ImageDataset", placement: Placement, position: int, steps: int | None) -> int:
    """Return about how many images of this rank are still to come in the epoch."""
    global_batch = dataset.global_batch(placement.world_size)
    samples = dataset.num_positions - position
    if dataset.order_settings.shuffle:
        samples -= samples % global_batch  # training drops the last part of a step
    if steps is not None:
        samples = min(samples, steps * global_batch)
    return max(0, samples // placement.world_size)


def _settings(dataset: "ImageDataset", args: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, as the first part of the JSON object."""
    placement = resolve_placement(args.rank, args.world_size)
    method = args.start_method or multiprocessing.get_start_method()
    return {
        "schema": SCHEMA,
        "dataset": {
            "source": args.dataset,
            "digest": dataset.manifest.digest,
            "images": dataset.num_samples,
            "classes": len(dataset.classes),
        },
        "order": dataset.order_settings.to_json(),
        "engine": dataset.engine,
        "transform": args.transform,
        "views": args.views,
        "workers": args.workers,
        "start_method": method if args.workers else None,
        "threads": args.threads,
        "rank": placement.rank,
        "world_size": placement.world_size,
        "global_batch": dataset.global_batch(placement.world_size),
    }


def _print_head(dataset: "ImageDataset", args: argparse.Namespace, steps_per_epoch: int) -> None:
    settings = _settings(dataset, args)
    workers = console.format_count(args.workers, "worker")
    threads = console.format_count(args.threads, "thread") if args.threads else "threads as cores allow"
    console.print_figures(
        [
            ("dataset", f"{args.dataset}, {dataset.num_samples:,} images, digest {dataset.manifest.digest[:16]}"),
            ("order", str(dataset.order_settings)),
            ("rank", f"{settings['rank']} of {settings['world_size']}"),
            ("batches", f"global batch {settings['global_batch']:,}, {steps_per_epoch:,} steps an epoch"),
            ("pixels", f"{args.transform}, engine {dataset.engine}, {workers}, {threads}"),
        ]
    )


def _print_epoch(report: EpochReport) -> None:
    rate = f"{console.format_duration(report.seconds)}, {console.format_rate(report.images, report.seconds)}"
    first = f"first batch after {console.format_duration(report.first_batch_s)}"
    print(f"epoch {report.epoch}  {report.images:,} images in {rate}, {first}")
    print(f"  ids     {report.ids}")
    if report.pixels is not None:
        print(f"  pixels  {report.pixels}")
    sys.stdout.flush()  # into a pipe, too, as it happens


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of those of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
