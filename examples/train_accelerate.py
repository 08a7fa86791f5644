"""Accelerate: prepare the model and the optimizer, not the data; register the Loader for checkpoints.

accelerate launch --num-processes 2 examples/train_accelerate.py /data/in1k-shards --checkpoint run
"""

import argparse
import json

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from feeder import ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="shards or a folder of images; a path or URL")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="of a step, over all ranks together")
    parser.add_argument("--size", type=int, default=224, help="of an image, in pixels")
    parser.add_argument("--checkpoint", help="a folder to write checkpoints into")
    parser.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--log-ids", metavar="FILE", help="append a line for each batch: which samples it held")
    args = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(7)
    train_set = ImageDataset(
        args.dataset,
        global_batch_size=args.batch_size,
        seed=7,
        transform=[RandomResizedCrop(args.size), RandomHorizontalFlip()],
    )
    train = Loader(train_set, device=accelerator.device)
    network = small_network(len(train_set.classes))
    # Not the loader: prepare() divides what a DataLoader gives among the ranks, and here that is done already.
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    accelerator.register_for_checkpointing(train)
    step = 0  # of this run
    if args.resume:
        accelerator.load_state(args.resume)

    for epoch in range(train.epoch, args.epochs):
        loss_sum, steps = torch.zeros((), device=accelerator.device), 0
        for batch in train:
            if args.log_ids:
                log_ids(args.log_ids, accelerator.process_index, batch)
            logits = model(batch["image"].float() / 255)
            losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
            # the mean over the step's samples, also where ranks hold unequal parts of it
            loss = (losses * batch["valid"]).sum() * accelerator.num_processes / args.batch_size
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            loss_sum, steps, step = loss_sum + loss.detach(), steps + 1, step + 1
            if args.checkpoint and step % args.checkpoint_every == 0:
                accelerator.save_state(args.checkpoint)
        loss = accelerator.reduce(loss_sum, reduction="mean") / max(1, steps)
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}", flush=True)
    train.close()
    accelerator.end_training()


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
