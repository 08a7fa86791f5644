"""Lightning: the Trainer takes a Loader as it is, saves its state in its checkpoints, and goes on from there.

python examples/train_lightning.py /data/in1k-shards --devices 2 --checkpoint run.ckpt
"""

import argparse
import json
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from feeder import ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop


class Classifier(lightning.LightningModule):
    def __init__(self, classes: int, batch_size: int, log_ids_to: str | None) -> None:
        super().__init__()
        self.network = small_network(classes)
        self.batch_size, self.log_ids_to = batch_size, log_ids_to
        self.losses: list[torch.Tensor] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.log_ids_to:
            log_ids(self.log_ids_to, self.global_rank, batch)
        logits = self.network(batch["image"].float() / 255)
        losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
        # the mean over the step's samples, also where ranks hold unequal parts of it
        loss = (losses * batch["valid"]).sum() * self.trainer.world_size / self.batch_size
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.strategy.reduce(torch.stack(self.losses).mean(), reduce_op="mean")
        self.losses.clear()
        if self.trainer.is_global_zero:
            print(f"epoch {self.current_epoch}: loss {loss.item():.4f}", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="shards or a folder of images; a path or URL")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--devices", type=int, default=1, help="ranks of this node")
    parser.add_argument("--batch-size", type=int, default=256, help="of a step, over all ranks together")
    parser.add_argument("--size", type=int, default=224, help="of an image, in pixels")
    parser.add_argument("--checkpoint", help="where to write checkpoints: a file that ends with .ckpt")
    parser.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--log-ids", metavar="FILE", help="append a line for each batch: which samples it held")
    args = parser.parse_args()

    lightning.seed_everything(7, verbose=False)
    train_set = ImageDataset(
        args.dataset,
        global_batch_size=args.batch_size,
        seed=7,
        transform=[RandomResizedCrop(args.size), RandomHorizontalFlip()],
    )
    callbacks = []
    if args.checkpoint:
        path = Path(args.checkpoint)
        callbacks.append(
            ModelCheckpoint(
                dirpath=path.parent,
                filename=path.stem,
                every_n_train_steps=args.checkpoint_every,
                enable_version_counter=False,
            )
        )
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        logger=False,
        enable_progress_bar=False,
    )
    # Nothing else to do: a Loader is no DataLoader, so no sampler is put into it; it has state_dict and
    # load_state_dict, so checkpoints hold its state; and each iteration is the next epoch, so none has to be set.
    model = Classifier(len(train_set.classes), args.batch_size, args.log_ids)
    with Loader(train_set) as train:
        trainer.fit(model, train, ckpt_path=args.resume)


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
