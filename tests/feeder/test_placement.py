"""Rank and world size come from one place, or the job stops with a sentence."""

import pytest

from feeder import tensors
from feeder.errors import RankError
from feeder.placement import Placement, data_placement, local_world_size, resolve_placement


@pytest.fixture
def process_group(monkeypatch):
    """Let torch.distributed look initialised as the given rank."""

    def initialise(rank, world_size):
        monkeypatch.setattr(tensors, "process_group", lambda: {"rank": rank, "world_size": world_size})

    return initialise


def test_nothing_visible_is_one_rank():
    assert resolve_placement(environ={}) == Placement(rank=0, world_size=1)


def test_arguments_win_over_the_environment():
    environ = {"RANK": "1", "WORLD_SIZE": "2"}
    assert resolve_placement(3, 4, environ=environ) == Placement(rank=3, world_size=4)


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "3", "WORLD_SIZE": "8"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"},
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
        {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
    ],
)
def test_launchers_are_understood(environ):
    assert resolve_placement(environ=environ) == Placement(rank=3, world_size=8)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"RANK": "3"},
            "the environment has RANK=3 but no WORLD_SIZE; pass rank= and world_size=, or start the job with",
        ),
        ({"WORLD_SIZE": "8"}, "the environment has WORLD_SIZE=8 but no RANK; pass rank= and world_size="),
        ({"RANK": "x", "WORLD_SIZE": "8"}, "the environment variable RANK is 'x'; expected an integer"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "rank is 8 and world_size is 8; rank must be from 0 to 7"),
        (
            {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
            "SLURM_NTASKS is 8, but this process was not started by srun, so its rank is unknown; pass rank=",
        ),
    ],
)
def test_ranks_that_are_visible_but_unresolved_are_refused(environ, sentence):
    with pytest.raises(RankError) as caught:
        resolve_placement(environ=environ)
    assert str(caught.value).startswith(sentence)


def test_one_task_of_slurm_or_of_one_world_is_one_rank():
    assert resolve_placement(environ={"SLURM_NTASKS": "1"}) == Placement(rank=0, world_size=1)
    assert resolve_placement(environ={"WORLD_SIZE": "1"}) == Placement(rank=0, world_size=1)


def test_rank_and_world_size_come_together():
    with pytest.raises(RankError, match="rank is given without world_size; give both or neither"):
        resolve_placement(rank=0, environ={})
    with pytest.raises(RankError, match="world_size is given without rank; give both or neither"):
        resolve_placement(world_size=2, environ={})


@pytest.mark.parametrize(
    ("rank", "world_size", "sentence"),
    [
        (-1, 2, "rank is -1 and world_size is 2; rank must be from 0 to 1"),
        (2, 2, "rank is 2 and world_size is 2; rank must be from 0 to 1"),
        (0, 0, "world_size is 0; it must be at least 1"),
        (0.0, 2, "rank is 0.0; it must be an integer"),
        ("0", "2", "rank is '0'; it must be an integer"),
    ],
)
def test_ranks_out_of_range_are_refused(rank, world_size, sentence):
    with pytest.raises(RankError) as caught:
        resolve_placement(rank, world_size)
    assert str(caught.value) == sentence


def test_an_initialised_process_group_is_believed(process_group):
    process_group(1, 4)
    assert resolve_placement(environ={}) == Placement(rank=1, world_size=4)
    assert resolve_placement(environ={"SLURM_NTASKS": "8"}) == Placement(rank=1, world_size=4)


def test_a_rank_that_differs_from_the_process_group_is_refused(process_group):
    process_group(1, 4)
    with pytest.raises(RankError) as caught:
        resolve_placement(environ={"RANK": "0", "WORLD_SIZE": "4"})
    assert str(caught.value) == (
        "RANK and WORLD_SIZE say rank 0 of 4, but torch.distributed is initialised as rank 1 of 4; make them agree"
    )
    with pytest.raises(RankError, match="^the arguments say rank 2 of 4"):
        resolve_placement(2, 4, environ={})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
    ],
)
def test_local_ranks_share_the_cores(environ, expected):
    assert local_world_size(environ) == expected


def data_ranks(world_size, replicate):
    """Return (data rank, data world size) of every rank."""
    found = [data_placement(Placement(rank=rank, world_size=world_size), replicate) for rank in range(world_size)]
    return [(placement.rank, placement.world_size) for placement in found]


def test_consecutive_ranks_share_batches():
    assert data_ranks(4, 1) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert data_ranks(4, 2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert data_ranks(3, 3) == [(0, 1)] * 3


def test_groups_of_ranks_share_batches():
    assert data_ranks(4, [[0, 2], [1, 3]]) == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert data_ranks(4, ((3, 2), (0, 1))) == [(1, 2), (1, 2), (0, 2), (0, 2)]
    assert data_ranks(2, [[1], [0]]) == [(1, 2), (0, 2)]


@pytest.mark.parametrize(
    ("replicate", "sentence"),
    [
        (0, "replicate is 0; it must be at least 1, the number of ranks that receive the same batches"),
        (
            3,
            (
                "replicate is 3 and world_size is 4, so that the last group of ranks would be short; give a divisor of"
                " the world size, or start another number of ranks"
            ),
        ),
        (8, "replicate is 8 and world_size is 4, so that the last group of ranks would be short; give a divisor"),
        (True, "replicate is True; it must be a number of consecutive ranks, or groups of ranks such as"),
        (2.0, "replicate is 2.0; it must be a number of consecutive ranks, or groups of ranks such as"),
        ("01", "replicate is '01'; it must be a number of consecutive ranks, or groups of ranks such as"),
        ([], "replicate is []; it must be a number of consecutive ranks, or groups of ranks such as"),
        ([0, 1], "replicate is [0, 1]; it must be a number of consecutive ranks, or groups of ranks such as"),
        ([[0, 1], [2, "3"]], "replicate is [[0, 1], [2, '3']]; it must be a number of consecutive ranks, or groups"),
        (
            [[0, 1], [2]],
            "replicate has groups of different sizes, [[0, 1], [2]]; give each as many ranks",
        ),
        ([[0, 1], [2, 4]], "replicate names rank 4 and world_size is 4; ranks are from 0 to 3"),
        ([[0, 1], [1, 2]], "replicate names rank 1 more than once; each rank stands in one group"),
        ([[0, 1]], "replicate does not name rank 2 of 4; each rank stands in one group"),
        ([[]], "replicate does not name rank 0 of 4; each rank stands in one group"),
    ],
)
def test_groups_that_do_not_divide_the_ranks_are_refused(replicate, sentence):
    with pytest.raises(RankError) as caught:
        data_placement(Placement(rank=0, world_size=4), replicate)
    assert str(caught.value).startswith(sentence)
