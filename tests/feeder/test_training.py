"""Training with torch.distributed: jobs that are killed go on with any number of ranks, as if nothing had happened.

FEEDER_NIGHTLY=1 kills more jobs, at other steps each time.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.images import write_image_folder
from tests.peers import peer

ROOT = Path(__file__).parents[2]
NIGHTLY = os.environ.get("FEEDER_NIGHTLY") == "1"
EPOCHS, SAMPLES, STEPS = 3, 52, 5  # steps of 10, of which an epoch drops 2 samples
LAST = EPOCHS * STEPS

# numbers of ranks, one after the other; each job but the last of a row is killed
ROWS = [(2, 2), (2, 4), (4, 2), (4, 3, 1)] + [(4, 4), (1, 3), (3, 2, 4, 1)] * NIGHTLY


@dataclass(frozen=True, slots=True)
class Step:
    """What all ranks of a job together saw in one step."""

    epoch: int
    ids: list[int]
    pixels: list[str]
    loss: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    peer("torch")
    return write_image_folder(
        tmp_path_factory.mktemp("training") / "images", classes=("a", "b", "c", "d"), per_class=13
    )


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Step]:
    """The steps of two ranks that nobody kills."""
    return run_job(folder, tmp_path_factory.mktemp("undisturbed"), 2)


def run_job(
    folder: Path, directory: Path, ranks: int, checkpoint: Path | None = None, kill_behind: int = 0
) -> dict[int, Step]:
    """Run a job to its end, or kill all its processes when so many steps are done; return the steps of all ranks."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    arguments = [folder, directory, ranks, EPOCHS, kill_behind, *([] if checkpoint is None else [checkpoint])]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.feeder.training_job", *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        try:
            if kill_behind:
                assert job.stdout.readline() == f"{kill_behind} steps are done\n", job.stderr.read()
            else:
                assert job.wait(120) == 0, job.stderr.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    return steps_of([directory / f"rank-{rank}.jsonl" for rank in range(ranks)])


def steps_of(logs: Sequence[Path]) -> dict[int, Step]:
    """Put the parts of the ranks together, in their order."""
    lines = [log.read_text().rpartition("\n")[0].splitlines() for log in logs]  # what was cut off by a kill is left out
    steps = {}
    for parts in zip(*([json.loads(line) for line in of_rank] for of_rank in lines), strict=False):
        first: dict[str, Any] = parts[0]
        assert all(
            (part["step"], part["epoch"], part["loss"]) == (first["step"], first["epoch"], first["loss"])
            for part in parts
        )
        sizes = {len(part["ids"]) for part in parts}
        assert max(sizes) - min(sizes) <= 1
        steps[first["step"]] = Step(
            first["epoch"],
            [sample for part in parts for sample in part["ids"]],
            [digest for part in parts for digest in part["pixels"]],
            first["loss"],
        )
    return steps


def test_every_epoch_has_its_samples_once(undisturbed: dict[int, Step]) -> None:
    assert list(undisturbed) == list(range(LAST))
    for epoch in range(EPOCHS):
        steps = [step for step in undisturbed.values() if step.epoch == epoch]
        seen = Counter(sample for step in steps for sample in step.ids)
        assert (len(steps), len(seen), set(seen.values())) == (STEPS, 50, {1})
    assert undisturbed[LAST - 1].loss < undisturbed[0].loss


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
def test_a_killed_job_goes_on(row: tuple[int, ...], undisturbed: dict[int, Step], folder: Path, tmp_path: Path) -> None:
    seed = secrets.randbits(32) if NIGHTLY else sum(row)
    kills = np.sort(np.random.default_rng(seed).choice(range(3, LAST), len(row) - 1, replace=False)).tolist()
    story = f"ranks {row}, killed behind steps {kills}"
    checkpoint, first = None, 0
    for number, ranks in enumerate(row):
        directory = tmp_path / str(number)
        directory.mkdir()
        kill = kills[number] if number < len(kills) else 0
        steps = run_job(folder, directory, ranks, checkpoint, kill)
        assert list(steps) == list(range(first, first + len(steps))), story
        # the others may be killed in the step that rank 0 has done
        assert len(steps) in ([kill - first, kill - first - 1] if kill else [LAST - first]), story
        for at, step in steps.items():
            reference = undisturbed[at]
            assert (step.epoch, step.ids, step.pixels) == (reference.epoch, reference.ids, reference.pixels), story
            if set(row[: number + 1]) == {2}:
                assert step.loss == reference.loss, story
            assert step.loss == pytest.approx(reference.loss, rel=1e-4), story
        if (directory / "checkpoint").exists():  # else it was killed before it wrote one: the one before serves again
            checkpoint = directory / "checkpoint"
            first = peer("torch").load(checkpoint, weights_only=True)["step"]
