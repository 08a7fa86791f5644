"""Which rank of how many this process is, and which part of the data that rank gets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feeder import tensors
from feeder.arguments import as_integer
from feeder.errors import RankError

# Launchers, most specific first: torchrun (and DeepSpeed, Accelerate, Lightning), Slurm's srun, Open MPI's mpirun.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)
Replicate = int | Sequence[Sequence[int]]  # see `data_placement`

_REMEDY = "pass rank= and world_size=, or start the job with torchrun, srun or mpirun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A rank among ``world_size`` ranks."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        for name in ("rank", "world_size"):
            value = as_integer(getattr(self, name))
            if value is None:
                raise RankError(f"{name} is {getattr(self, name)!r}; it must be an integer")
            object.__setattr__(self, name, value)
        if self.world_size < 1:
            raise RankError(f"world_size is {self.world_size}; it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise RankError(
                f"rank is {self.rank} and world_size is {self.world_size}; rank must be from 0 to {self.world_size - 1}"
            )


def resolve_placement(
    rank: int | None = None, world_size: int | None = None, *, environ: Mapping[str, str] | None = None
) -> Placement:
    """Return this process's placement: from the arguments, else the launcher's environment, else torch.distributed.

    torch.distributed is asked only if the process has initialised it; it is never imported or initialised here.

    Raises:
        RankError: only one of the two is given or visible; they are out of range; several tasks are visible but which
            of them this is, is not; or an initialised torch.distributed says otherwise.
    """
    if (rank is None) != (world_size is None):
        given, missing = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise RankError(f"{given} is given without {missing}; give both or neither")
    group = tensors.process_group()
    if rank is not None and world_size is not None:
        found, origin = Placement(rank=rank, world_size=world_size), "the arguments"
    else:
        try:
            resolved = _from_environment(os.environ if environ is None else environ)
        except RankError:
            if group is None:
                raise
            resolved = None  # torch.distributed knows what the launcher did not say
        if resolved is None:
            return Placement(rank=0, world_size=1) if group is None else Placement(**group)
        found, origin = resolved
    if group is not None and Placement(**group) != found:
        raise RankError(
            f"{origin} say rank {found.rank} of {found.world_size}, but torch.distributed is initialised as rank"
            f" {group['rank']} of {group['world_size']}; make them agree"
        )
    return found


def data_placement(placement: Placement, replicate: Replicate) -> Placement:
    """Return which part of the data a rank gets where groups of ranks receive the same batches.

    The ranks of one tensor-parallel or pipeline-parallel group work on one batch together: they are one rank among as
    many as there are groups.

    Args:
        placement: the rank among all ranks of the job.
        replicate: n, for groups of n consecutive ranks; or the groups themselves, such as ``[[0, 2], [1, 3]]``, in
            which every rank stands once, and which are of one size.

    Raises:
        RankError: the groups do not divide the ranks.
    """
    world_size = placement.world_size
    size = as_integer(replicate)
    if size is None:
        return _placement_in_groups(placement, replicate)
    if size < 1:
        raise RankError(
            f"replicate is {size}; it must be at least 1, the number of ranks that receive the same batches"
        )
    if world_size % size:
        raise RankError(
            f"replicate is {size} and world_size is {world_size}, so that the last group of ranks would be short; give"
            " a divisor of the world size, or start another number of ranks"
        )
    return Placement(rank=placement.rank // size, world_size=world_size // size)


def _placement_in_groups(placement: Placement, replicate: Any) -> Placement:
    """Return the number of the group that holds a rank, among the groups."""
    try:
        groups = [[as_integer(rank) for rank in group] for group in replicate]
    except TypeError:
        groups = []
    if not groups or any(rank is None for group in groups for rank in group):
        raise RankError(
            f"replicate is {replicate!r}; it must be a number of consecutive ranks, or groups of ranks such as"
            " [[0, 2], [1, 3]]"
        )
    if len({len(group) for group in groups}) > 1:
        raise RankError(f"replicate has groups of different sizes, {groups}; give each as many ranks")
    ranks = [rank for group in groups for rank in group]
    world_size = placement.world_size
    for rank in ranks:
        if rank not in range(world_size):
            raise RankError(
                f"replicate names rank {rank} and world_size is {world_size}; ranks are from 0 to {world_size - 1}"
            )
        if ranks.count(rank) > 1:
            raise RankError(f"replicate names rank {rank} more than once; each rank stands in one group")
    if len(ranks) < world_size:
        missing = next(rank for rank in range(world_size) if rank not in ranks)
        raise RankError(f"replicate does not name rank {missing} of {world_size}; each rank stands in one group")
    found = next(number for number, group in enumerate(groups) if placement.rank in group)
    return Placement(rank=found, world_size=len(groups))


def local_world_size(environ: Mapping[str, str] | None = None) -> int:
    """Return how many ranks the launcher put on this node, or 1 where it does not say."""
    environ = os.environ if environ is None else environ
    for _, _, name in _LAUNCHERS:
        # Slurm writes "8" for an even and "8,4" or "8(x2),4" for an uneven layout
        digits = environ.get(name, "").split(",")[0].split("(")[0]
        if digits.isdigit():
            return max(1, int(digits))
    return 1


def _from_environment(environ: Mapping[str, str]) -> tuple[Placement, str] | None:
    """Return the placement that a launcher left in the environment, and where it stands."""
    for rank_name, world_name, _ in _LAUNCHERS:
        rank, world_size = environ.get(rank_name), environ.get(world_name)
        if rank_name == "SLURM_PROCID" and environ.get("SLURM_STEP_ID") is None:
            # inside an allocation but not started by srun: every copy of this process would be rank 0
            if _integer(world_name, world_size or "1") > 1:
                raise RankError(
                    f"{world_name} is {world_size}, but this process was not started by srun, so its rank is unknown;"
                    f" {_REMEDY}"
                )
            continue
        if rank is None and world_size is None:
            continue
        if rank is None or world_size is None:
            if _integer(world_name, world_size or "2") == 1:
                continue
            seen, missing = (rank_name, world_name) if world_size is None else (world_name, rank_name)
            raise RankError(f"the environment has {seen}={environ[seen]} but no {missing}; {_REMEDY}")
        found = Placement(rank=_integer(rank_name, rank), world_size=_integer(world_name, world_size))
        return found, f"{rank_name} and {world_name}"
    return None


def _integer(name: str, value: str) -> int:
    """Read an integer from the environment."""
    try:
        return int(value)
    except ValueError:
        raise RankError(f"the environment variable {name} is {value!r}; expected an integer") from None
