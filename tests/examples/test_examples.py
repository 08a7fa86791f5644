"""The examples, each on two ranks: two epochs of which every sample is seen once, and a resume in the middle of one."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from feeder import ImageDataset
from tests.images import write_image_folder
from tests.peers import peer

EXAMPLES = Path(__file__).parents[2] / "examples"
LAUNCHER = Path(__file__).with_name("on_ranks.py")
RANKS, BATCH, STEPS = 2, 8, 5  # 40 samples
SAVED_AT = 7  # steps: in the second of the two epochs

# what each needs, and its own arguments
PROGRAMS = {
    "train_torch": ("torch", []),
    "train_stateful_dataloader": ("torchdata", ["--workers", "1"]),
    "train_lightning": ("lightning", ["--devices", str(RANKS)]),
    "train_fabric": ("lightning", ["--devices", str(RANKS)]),
    "train_accelerate": ("accelerate", []),
    "train_jax": ("jax", []),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("examples") / "images", classes=("a", "b"), per_class=20)


def run_on_ranks(name: str, arguments: Sequence[str], tmp_path: Path, ranks: int = RANKS) -> str:
    """Run an example on some ranks; return what rank 0 printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"PYTHONPATH": os.pathsep.join(_path_for(name, tmp_path)), "MASTER_PORT": str(port)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, LAUNCHER, str(ranks), PROGRAMS[name][0], EXAMPLES / f"{name}.py", *arguments],
        env=environment,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as job:
        try:
            output, errors = job.communicate(timeout=180)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, errors
    return output


def _path_for(name: str, tmp_path: Path) -> Iterator[str]:
    """Yield where an example's process looks for modules: in our tree, and behind one that hides torch from JAX's."""
    if name == "train_jax":
        (tmp_path / "torch.py").write_text("raise ImportError('there is no torch in this test')")
        yield str(tmp_path)
    yield str(EXAMPLES.parent)


def logged(file: Path) -> dict[tuple[int, int], list[list[int]]]:
    """Return the ids of each step by epoch and rank."""
    steps: dict[tuple[int, int], list[list[int]]] = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        steps.setdefault((entry["epoch"], entry["rank"]), []).append(entry["ids"])
    return steps


def expected(folder: Path, epochs: Sequence[int], first_step: int = 0, ranks: int = RANKS) -> dict[Any, Any]:
    """Return what ranks ought to see: the pure function, of which the first epoch may lack some steps."""
    dataset = ImageDataset(folder, global_batch_size=BATCH, seed=7, arrays="numpy", decode=False)
    return {
        (epoch, rank): [
            [
                sample
                for sample in dataset.batch(epoch=epoch, step=step, rank=rank, world_size=ranks)["id"]
                if sample >= 0
            ]
            for step in range(first_step if epoch == epochs[0] else 0, STEPS)
        ]
        for epoch in epochs
        for rank in range(ranks)
    }


def losses_in(said: str) -> list[str]:
    """Return the epochs of which a program printed the loss."""
    return re.findall(r"^epoch (\d+): loss \d\.\d{4}$", said, re.MULTILINE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_two_ranks_two_epochs_and_a_resume(name: str, folder: Path, tmp_path: Path) -> None:
    needed, own = PROGRAMS[name]
    if importlib.util.find_spec(needed) is None:
        peer(needed)  # skips or fails; importing it here would cost seconds
    checkpoint = str(tmp_path / "run.ckpt")
    common = [str(folder), "--epochs", "2", "--batch-size", str(BATCH), "--size", "16", *own]

    saving = ["--checkpoint", checkpoint, "--checkpoint-every", str(SAVED_AT)]
    said = run_on_ranks(name, [*common, *saving, "--log-ids", str(tmp_path / "whole")], tmp_path)
    assert losses_in(said) == ["0", "1"]
    whole = logged(tmp_path / "whole")
    assert whole == expected(folder, [0, 1])
    for epoch in (0, 1):
        seen = Counter(sample for rank in range(RANKS) for ids in whole[epoch, rank] for sample in ids)
        assert seen == dict.fromkeys(range(STEPS * BATCH), 1)

    ranks = RANKS
    if name == "train_torch":  # at any number of ranks, and with an evaluation of each sample once
        ranks = 3
        common += ["--val", str(folder)]
    said = run_on_ranks(name, [*common, "--resume", checkpoint, "--log-ids", str(tmp_path / "rest")], tmp_path, ranks)
    assert losses_in(said) == ["1"]
    assert logged(tmp_path / "rest") == expected(folder, [1], SAVED_AT - STEPS, ranks)
    assert (name == "train_torch") == bool(
        re.search(r"^epoch 1: accuracy \d\.\d{4} over 40 samples$", said, re.MULTILINE)
    )
