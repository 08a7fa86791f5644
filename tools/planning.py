"""``feeder plan``: lanes, window and stickiness for a cluster, with what they cost."""

import argparse
import json

from feeder.errors import ConfigError
from feeder.tools.building import size_bytes
from feeder.tools.dataset_options import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feeder plan``."""
    parser.add_argument("dataset", metavar="DATASET", nargs="?", help="a dataset or folder; or --samples and --shards")
    parser.add_argument("--nodes", type=count, required=True, metavar="N", help="of the cluster")
    parser.add_argument("--gpus-per-node", type=count, default=8, metavar="N", help="ranks of a node (8)")
    parser.add_argument("--batch-size", type=count, metavar="N", help="of a rank")
    parser.add_argument("--global-batch-size", type=count, metavar="N", help="of all ranks, instead of --batch-size")
    parser.add_argument("--cache", type=size_bytes, metavar="SIZE", help="that a node has for shards, such as 200GB")
    unbuilt = parser.add_argument_group("a dataset that is not there yet")
    unbuilt.add_argument("--samples", type=count, metavar="N")
    unbuilt.add_argument("--shards", type=count, metavar="N")
    unbuilt.add_argument("--shard-size", type=size_bytes, default=1 << 26, metavar="SIZE", help="(64MiB)")
    unbuilt.add_argument("--sorted", action="store_true", help="samples are not in random order over the shards")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the advice."""
    from feeder.shuffle_advice import suggest_shuffle

    if (args.batch_size is None) == (args.global_batch_size is None):
        given = "neither" if args.batch_size is None else "both"
        raise ConfigError(f"{given} of --batch-size and --global-batch-size is given; give exactly one")
    described = args.samples is not None or args.shards is not None or args.sorted
    if (args.dataset is None) != described:
        raise ConfigError("give either a dataset, or --samples and --shards of one that is not there yet")
    advice = suggest_shuffle(
        args.dataset,
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        global_batch=args.global_batch_size
        if args.batch_size is None
        else args.batch_size * args.nodes * args.gpus_per_node,
        cache_bytes=args.cache,
        samples=args.samples,
        shards=args.shards,
        shard_bytes=args.shard_size,
        shuffled_when_written=not args.sorted,
    )
    print(json.dumps(advice.to_json()) if args.json else advice)
    return 0
