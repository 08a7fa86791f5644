"""JAX: NumPy batches, without torch.

One process for each host, or for each device; outside clusters that JAX knows by itself, such as Slurm, say which:

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=1234 python examples/train_jax.py /data/in1k-shards
"""

import argparse
import json
import os
import pickle

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feeder import ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="shards or a folder of images; a path or URL")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="of a step, over all processes together")
    parser.add_argument("--size", type=int, default=224, help="of an image, in pixels")
    parser.add_argument("--checkpoint", help="where to write checkpoints")
    parser.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--log-ids", metavar="FILE", help="append a line for each batch: which samples it held")
    args = parser.parse_args()

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        jax.distributed.initialize(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            num_processes=int(os.environ["WORLD_SIZE"]),
            process_id=int(os.environ["RANK"]),
        )
    # the first axis of a batch lies over all devices of all processes; parameters are on each
    mesh = Mesh(jax.devices(), ("data",))
    over_devices, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    train_set = ImageDataset(
        args.dataset,
        global_batch_size=args.batch_size,
        seed=7,
        transform=[RandomResizedCrop(args.size), RandomHorizontalFlip()],
        arrays="numpy",
        rank=jax.process_index(),
        world_size=jax.process_count(),
    )
    train = Loader(train_set, start_method="forkserver")  # JAX has threads, which a forked worker would lack
    params = small_network(len(train_set.classes))
    step = 0
    if args.resume:
        with open(args.resume, "rb") as file:
            saved = pickle.load(file)
        params, step = saved["params"], saved["step"]
        train.load_state_dict(saved["data"])
    params = jax.device_put(params, everywhere)

    for epoch in range(train.epoch, args.epochs):
        losses = []
        for batch in train:
            if args.log_ids:
                log_ids(args.log_ids, jax.process_index(), batch)
            images, labels = (
                jax.make_array_from_process_local_data(over_devices, batch[name]) for name in ("image", "label")
            )
            params, loss = update(params, images, labels)
            losses.append(loss)
            step += 1
            if args.checkpoint and step % args.checkpoint_every == 0 and jax.process_index() == 0:
                checkpoint = {"params": jax.tree.map(np.asarray, params), "data": train.state_dict(), "step": step}
                with open(f"{args.checkpoint}.partial", "wb") as file:
                    pickle.dump(checkpoint, file)
                os.replace(f"{args.checkpoint}.partial", args.checkpoint)
        if jax.process_index() == 0:
            print(f"epoch {epoch}: loss {np.mean([float(loss) for loss in losses]):.4f}", flush=True)
    train.close()


def small_network(classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "kernel": rng.normal(0, 0.2, (3, 3, 3, 16)).astype(np.float32),
        "weight": rng.normal(0, 0.2, (16, classes)).astype(np.float32),
        "bias": np.zeros(classes, np.float32),
    }


def loss_of(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross entropy over the whole step, images being (G, H, W, 3) uint8."""
    features = jax.lax.conv_general_dilated(
        images / 255.0, params["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    logits = jax.nn.relu(features).mean((1, 2)) @ params["weight"] + params["bias"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


@jax.jit
def update(params: dict, images: jax.Array, labels: jax.Array) -> tuple[dict, jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
    return jax.tree.map(lambda value, gradient: value - 0.1 * gradient, params, gradients), loss


def log_ids(path: str, rank: int, batch: dict) -> None:
    ids = batch["id"][batch["valid"]].tolist()
    with open(path, "a") as file:
        file.write(json.dumps({"epoch": batch["epoch"], "rank": rank, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
