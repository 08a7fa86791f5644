"""A job that trains a small model on several ranks, and writes down what each step of each rank saw.

Started by the tests as ``python -m tests.feeder.training_job DATASET DIRECTORY RANKS EPOCHS HELD [CHECKPOINT]``. Ranks
are forked once torch is imported, and find each other by a file. Behind step HELD rank 0 says so on standard output and
waits to be killed, and the others wait for it.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from feeder import ColorJitter, ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop

BATCH = 10  # samples of a step of all ranks: 2 ranks get 5 each, 3 and 4 ranks unequal parts
SAVED_EVERY = 2  # steps, so that a job that is killed has to do some again


def main(dataset: str, directory: str, ranks: str, epochs: str, held: str, checkpoint: str | None = None) -> int:
    children = []
    for rank in range(int(ranks)):
        if (child := os.fork()) == 0:
            os.environ.update(RANK=str(rank), WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
            train(dataset, Path(directory), int(epochs), int(held), checkpoint)
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def train(dataset: str, directory: Path, epochs: int, held: int, checkpoint: str | None) -> None:
    """Train as one rank of the job."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size
    )
    transform = [RandomResizedCrop(12), RandomHorizontalFlip(), ColorJitter(0.4)]
    loader = Loader(ImageDataset(dataset, global_batch_size=BATCH, seed=11, transform=transform, threads=1))
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh(), nn.Linear(8, len(loader.dataset.classes)))
    model = nn.parallel.DistributedDataParallel(layers.double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = 0
    if checkpoint:
        saved = torch.load(checkpoint, weights_only=True)
        layers.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["data"])
        step = saved["step"]
    with (directory / f"rank-{rank}.jsonl").open("w") as log:
        for _ in range(loader.epoch, epochs):
            for batch in loader:
                losses = nn.functional.cross_entropy(
                    model(batch["image"].double() / 255), batch["label"], reduction="none"
                )
                own = (losses * batch["valid"]).sum() / BATCH
                optimizer.zero_grad()
                (own * world_size).backward()  # of which DDP takes the mean over the ranks
                optimizer.step()
                loss = own.detach().clone()
                distributed.all_reduce(loss)
                log.write(json.dumps({"step": step, "loss": loss.item(), **rows(batch)}) + "\n")
                log.flush()
                step += 1
                if rank == 0 and step % SAVED_EVERY == 0:
                    kept = {"model": layers.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**kept, "data": loader.state_dict(), "step": step}, directory / "checkpoint.partial")
                    os.replace(directory / "checkpoint.partial", directory / "checkpoint")
                if rank == 0 and step == held:
                    print(f"{step} steps are done", flush=True)
                    sys.stdin.readline()
    loader.close()
    distributed.destroy_process_group()


def rows(batch: dict) -> dict[str, list]:
    """Return the ids and the digests of the pixels of the rows that are no padding."""
    valid = batch["valid"]
    images = batch["image"][valid].contiguous().numpy()
    return {
        "epoch": batch["epoch"],
        "ids": batch["id"][valid].tolist(),
        "pixels": [hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() for image in images],
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
