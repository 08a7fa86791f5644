"""Plain torch: DistributedDataParallel, evaluation, and checkpoints that go on at any number of ranks.

torchrun --nproc-per-node 2 examples/train_torch.py /data/in1k-shards --val /data/in1k-val --checkpoint run.pt
torchrun --nproc-per-node 3 examples/train_torch.py /data/in1k-shards --checkpoint run.pt --resume run.pt
"""

import argparse
import json
import os

import torch
from torch import distributed, nn

from feeder import ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop, presets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="shards or a folder of images; a path or URL")
    parser.add_argument("--val", help="a dataset to evaluate on after each epoch")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="of a step, over all ranks together")
    parser.add_argument("--size", type=int, default=224, help="of an image, in pixels")
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
        global_batch_size=args.batch_size,  # of all ranks, so that the steps stay the same at any number of them
        seed=7,
        transform=[RandomResizedCrop(args.size), RandomHorizontalFlip()],
    )
    train = Loader(train_set, device=device)
    torch.manual_seed(7)
    model = nn.parallel.DistributedDataParallel(small_network(len(train_set.classes)).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = 0
    if args.resume:
        saved = torch.load(args.resume, map_location=device, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        train.load_state_dict(saved["data"])  # a place in the global sequence: the same for every rank
        step = saved["step"]

    for epoch in range(train.epoch, args.epochs):
        model.train()
        loss_sum, steps = torch.zeros((), device=device), 0
        for batch in train:
            if args.log_ids:
                log_ids(args.log_ids, rank, batch)
            logits = model(batch["image"].float() / 255)
            losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
            # DDP averages over ranks. Where ranks hold unequal parts of a step (50 samples on 4 ranks), the padding
            # counts for nothing, and this is the mean over the samples of the step all the same.
            loss = (losses * batch["valid"]).sum() * world_size / args.batch_size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum, steps, step = loss_sum + loss.detach(), steps + 1, step + 1
            if args.checkpoint and step % args.checkpoint_every == 0 and rank == 0:
                save(args.checkpoint, model=model.module, optimizer=optimizer, data=train, step=step)
        distributed.all_reduce(loss_sum)
        if rank == 0:
            print(f"epoch {epoch}: loss {loss_sum.item() / world_size / max(1, steps):.4f}", flush=True)
        if args.val:
            accuracy, samples = evaluate(model.module, args.val, args.batch_size, args.size, device)
            if rank == 0:
                print(f"epoch {epoch}: accuracy {accuracy:.4f} over {samples} samples", flush=True)
    train.close()
    distributed.destroy_process_group()


def small_network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes)
    )


@torch.no_grad()
def evaluate(model: nn.Module, dataset: str, batch_size: int, size: int, device: torch.device) -> tuple[float, int]:
    """Return the accuracy over a dataset, of which every sample counts once at any number of ranks."""
    samples = ImageDataset(
        dataset, global_batch_size=batch_size, shuffle=False, transform=presets.imagenet_eval(size, resize=size)
    )
    model.eval()
    counts = torch.zeros(2, device=device)  # right ones, and all
    with Loader(samples, device=device) as loader:
        for batch in loader:
            valid = batch["valid"]  # ranks get equal shapes: the last batch is padded
            right = (model(batch["image"].float() / 255).argmax(1) == batch["label"]) & valid
            counts += torch.stack([right.sum(), valid.sum()])
    distributed.all_reduce(counts)
    return (counts[0] / counts[1]).item(), int(counts[1])


def save(path: str, *, model: nn.Module, optimizer: torch.optim.Optimizer, data: Loader, step: int) -> None:
    """Write a checkpoint; one that cannot be finished leaves the last one alone."""
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "data": data.state_dict(),
        "step": step,
    }
    torch.save(checkpoint, f"{path}.partial")
    os.replace(f"{path}.partial", path)


def log_ids(path: str, rank: int, batch: dict) -> None:
    ids = batch["id"][batch["valid"]].tolist()
    with open(path, "a") as file:
        file.write(json.dumps({"epoch": batch["epoch"], "rank": rank, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
