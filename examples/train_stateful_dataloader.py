"""torchdata's StatefulDataLoader over the bare dataset: where a program has one already.

Its state goes on with the same number of workers and the same global batch; `feeder.Loader`, in train_torch.py, takes
any.

    torchrun --nproc-per-node 2 examples/train_stateful_dataloader.py /data/in1k-shards --checkpoint run.pt
"""

import argparse
import json
import os

import torch
from torch import distributed, nn
from torchdata.stateful_dataloader import StatefulDataLoader

from feeder import ImageDataset, RandomHorizontalFlip, RandomResizedCrop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="shards or a folder of images; a path or URL")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="of a step, over all ranks together")
    parser.add_argument("--size", type=int, default=224, help="of an image, in pixels")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each rank")
    parser.add_argument("--checkpoint", help="where to write checkpoints")
    parser.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--log-ids", metavar="FILE", help="append a line for each batch: which samples it held")
    args = parser.parse_args()

    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    train_set = ImageDataset(
        args.dataset,
        global_batch_size=args.batch_size,
        seed=7,
        transform=[RandomResizedCrop(args.size), RandomHorizontalFlip()],
    )
    # batch_size=None: the dataset's batches are whole. It divides them among ranks and workers, so no sampler does.
    train = StatefulDataLoader(train_set, batch_size=None, num_workers=args.workers, persistent_workers=True)
    torch.manual_seed(7)
    model = nn.parallel.DistributedDataParallel(small_network(len(train_set.classes)).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first_epoch, step = 0, 0
    if args.resume:
        saved = torch.load(args.resume, map_location=device, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        train.load_state_dict(saved["data"])
        first_epoch, step = saved["epoch"], saved["step"]

    # No set_epoch: each iteration is the next epoch, and the first one after load_state_dict is the rest of its own.
    for epoch in range(first_epoch, args.epochs):
        loss_sum, steps = torch.zeros((), device=device), 0
        for batch in train:
            if args.log_ids:
                log_ids(args.log_ids, rank, batch)
            logits = model(batch["image"].to(device).float() / 255)
            losses = nn.functional.cross_entropy(logits, batch["label"].to(device), reduction="none")
            # the mean over the step's samples, also where ranks hold unequal parts of it
            loss = (losses * batch["valid"].to(device)).sum() * world_size / args.batch_size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum, steps, step = loss_sum + loss.detach(), steps + 1, step + 1
            if args.checkpoint and step % args.checkpoint_every == 0 and rank == 0:
                checkpoint = {
                    "model": model.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "data": train.state_dict(),  # the same for every rank
                    "epoch": epoch,
                    "step": step,
                }
                torch.save(checkpoint, f"{args.checkpoint}.partial")
                os.replace(f"{args.checkpoint}.partial", args.checkpoint)
        distributed.all_reduce(loss_sum)
        if rank == 0:
            print(f"epoch {epoch}: loss {loss_sum.item() / world_size / max(1, steps):.4f}", flush=True)
    distributed.destroy_process_group()


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
