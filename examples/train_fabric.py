"""Lightning Fabric: model and optimizer are set up by Fabric; the Loader needs no set-up.

python examples/train_fabric.py /data/in1k-shards --devices 2 --checkpoint run.ckpt
"""

import argparse
import json

import torch
from lightning.fabric import Fabric
from torch import nn

from feeder import ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="shards or a folder of images; a path or URL")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--devices", type=int, default=1, help="ranks of this node")
    parser.add_argument("--batch-size", type=int, default=256, help="of a step, over all ranks together")
    parser.add_argument("--size", type=int, default=224, help="of an image, in pixels")
    parser.add_argument("--checkpoint", help="where to write checkpoints")
    parser.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--log-ids", metavar="FILE", help="append a line for each batch: which samples it held")
    args = parser.parse_args()

    fabric = Fabric(devices=args.devices, strategy="ddp" if args.devices > 1 else "auto")
    fabric.launch()
    fabric.seed_everything(7, verbose=False)

    train_set = ImageDataset(
        args.dataset,
        global_batch_size=args.batch_size,
        seed=7,
        transform=[RandomResizedCrop(args.size), RandomHorizontalFlip()],
    )
    # Not through fabric.setup_dataloaders, which takes torch's DataLoader alone, to put a sampler into it and to move
    # batches to the device. A Loader has divided the samples among the ranks, and copies by itself.
    train = Loader(train_set, device=fabric.device)
    network = small_network(len(train_set.classes))
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    step = 0
    if args.resume:
        remainder = fabric.load(args.resume, {"model": model, "optimizer": optimizer})
        train.load_state_dict(remainder["data"])
        step = remainder["step"]

    for epoch in range(train.epoch, args.epochs):
        loss_sum, steps = torch.zeros((), device=fabric.device), 0
        for batch in train:
            if args.log_ids:
                log_ids(args.log_ids, fabric.global_rank, batch)
            logits = model(batch["image"].float() / 255)
            losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
            # the mean over the step's samples, also where ranks hold unequal parts of it
            loss = (losses * batch["valid"]).sum() * fabric.world_size / args.batch_size
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            loss_sum, steps, step = loss_sum + loss.detach(), steps + 1, step + 1
            if args.checkpoint and step % args.checkpoint_every == 0:
                state = {"model": model, "optimizer": optimizer, "data": train.state_dict(), "step": step}
                fabric.save(args.checkpoint, state)
        loss = fabric.all_reduce(loss_sum, reduce_op="mean") / max(1, steps)
        fabric.print(f"epoch {epoch}: loss {loss.item():.4f}", flush=True)
    train.close()


def small_network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes)
    )


def log_ids(path: str, rank: int, batch: dict) -> None:
    ids = batch["id"][batch["valid"]].tolist()
    with open(path, "a") as file:
        file.write(json.dumps({"epoch": batch["epoch"], "rank": rank, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
