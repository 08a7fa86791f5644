"""torchdata's StatefulDataLoader over the bare dataset: it goes on behind every step, with as many workers."""

import json

import pytest

from feeder import ImageDataset, RandomResizedCrop
from feeder.errors import StateError
from tests.images import write_image_folder
from tests.peers import peer

stateful_dataloader = peer("torchdata.stateful_dataloader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("stateful") / "images", classes=("a", "b"), per_class=11)


def loader_of(folder, workers, *, batch_size=4, persistent=False, **changes):
    """Open the folder's 22 samples, which are 5 steps of 4."""
    chosen = {"batch_size": batch_size, "transform": [RandomResizedCrop(8)], "seed": 3, "threads": 1} | changes
    return stateful_dataloader.StatefulDataLoader(
        ImageDataset(folder, **chosen), batch_size=None, num_workers=workers, persistent_workers=persistent
    )


def epochs_of(loader, epochs):
    return [[(batch["epoch"], batch["id"].tolist()) for batch in loader] for _ in range(epochs)]


def states_of(loader, epochs):
    """Return the state at the start, behind each step, and behind the end of each epoch."""
    states = [[] for _ in range(epochs)]
    first = loader.state_dict()
    for of_epoch in states:
        for _ in loader:
            of_epoch.append(loader.state_dict())
        of_epoch.append(loader.state_dict())  # the loop has seen the end
    return first, states


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, True), (3, False)])
def test_it_goes_on_behind_every_step(folder, workers, persistent):
    undisturbed = epochs_of(loader_of(folder, workers, persistent=persistent), 3)
    first, states = states_of(loader_of(folder, workers, persistent=persistent), 2)
    assert [[epoch for epoch, _ in steps] for steps in undisturbed] == [[epoch] * 5 for epoch in range(3)]

    def resumed(state, epochs):
        loader = loader_of(folder, workers, persistent=persistent)
        loader.load_state_dict(json.loads(json.dumps(state)))
        return epochs_of(loader, epochs)

    assert resumed(first, 2) == undisturbed[:2]
    for epoch, steps in ((0, (0, 1, 3)), (1, (0, 2))):
        for step in steps:
            rest = undisturbed[epoch][step + 1 :]
            assert resumed(states[epoch][step], 2) == [rest, undisturbed[epoch + 1]]
    assert resumed(states[0][5], 2) == undisturbed[1:]
    if workers:  # a state behind the last step, before the loop saw the end: nothing is left of that epoch
        assert resumed(states[0][4], 3) == [[], *undisturbed[1:]]
    else:
        assert resumed(states[0][4], 2) == undisturbed[1:]


def test_another_global_batch_is_refused(folder):
    loader = loader_of(folder, 2)
    next(iter(loader))
    state = loader.state_dict()
    loader = loader_of(folder, 2, batch_size=8)
    loader.load_state_dict(state)
    with pytest.raises(
        StateError,
        match=r"the state of a DataLoader worker's share has global_batch 4 in the state and 8 here; keep num_workers"
        r" and the global batch, or use feeder\.Loader, whose state goes on with any",
    ):
        iter(loader)


def test_another_number_of_workers_is_refused(folder):
    loader = loader_of(folder, 2)
    next(iter(loader))
    state = loader.state_dict()
    loader = loader_of(folder, 3)
    loader.load_state_dict(state)
    with pytest.raises(StateError, match="the state of a DataLoader worker's share has workers 2 in the state and 3"):
        iter(loader)


def test_another_seed_is_refused(folder):
    loader = loader_of(folder, 1)
    next(iter(loader))
    state = loader.state_dict()
    for seed, message in (
        (4, "the state belongs to another order"),
        (None, "the state has another order than the arg"),
    ):
        loader = loader_of(folder, 1, seed=seed)
        loader.load_state_dict(state)
        with pytest.raises(StateError, match=message):
            iter(loader)


def test_one_state_goes_on_at_another_world_size(folder):
    """What is handed over is a place in the global sequence, so any rank's state serves all."""
    changes = {"batch_size": None, "global_batch_size": 4, "workers": 2}

    def steps(rank, world_size, state=None):
        loader = loader_of(folder, **changes, rank=rank, world_size=world_size)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    loader = steps(1, 2)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    rest = [batch["id"].tolist() for batch in steps(0, 1, state)]
    assert rest == [batch["id"].tolist() for batch in steps(0, 1)][3:]
