"""Samples one by one, for who makes batches elsewhere: a collate function, another framework's loader."""

from collections.abc import Iterator
from typing import Any

from feeder import tensors
from feeder.batches import Batch, BatchDataset

_OF_THE_BATCH = ("epoch", "position", "state")


class Samples(tensors.IterableDataset[dict[str, Any]]):
    """The valid samples of a dataset's batches, in their order.

    In ``DataLoader(dataset.samples(), batch_size=B, num_workers=W)`` with the B of the dataset, batches hold what the
    dataset's own hold, in the same order. Each iteration is the dataset's next epoch.

    Args:
        dataset: whose batches are taken apart.
    """

    def __init__(self, dataset: BatchDataset[Any]) -> None:
        super().__init__()
        self._dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples that this rank gets in a whole epoch."""
        return self._dataset.samples_per_epoch()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._dataset:
            for number in range(len(batch["id"])):
                if batch["valid"][number]:
                    yield row(batch, number)


def row(batch: Batch, number: int) -> dict[str, Any]:
    """Return the entries of one row of a batch, without those of the whole batch."""
    return {name: value[number] for name, value in batch.items() if name not in _OF_THE_BATCH}
