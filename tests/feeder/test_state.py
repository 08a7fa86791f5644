"""States are plain JSON, and what is not one is refused with a sentence."""

import json

import pytest

from feeder.errors import StateError
from feeder.order import OrderSettings
from feeder.state import State

ORDER = OrderSettings(seed=7, shuffle=True, lanes=4, window=None, sticky=True)
STATE = State(dataset="ab" * 16, order=ORDER, epoch=3, position=512, engine="pillow", pixels=1)


def changed(**changes):
    """Return a state as JSON with some values replaced; None removes one; order__x names a value of the order."""
    state = json.loads(json.dumps(STATE.to_json()))
    for path, value in changes.items():
        place = state["order"] if path.startswith("order__") else state
        name = path.removeprefix("order__")
        if value is None:
            del place[name]
        else:
            place[name] = value
    return state


def test_a_state_survives_json():
    assert State.from_json(json.loads(json.dumps(STATE.to_json()))) == STATE


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (17, "a state is a dictionary; got int: pass what state_dict() returned"),
        ({}, "the state has no value at version: pass what state_dict() returned, whole"),
        (changed(version=2), "the state has version 2; this release reads version 1: use the release that wrote it"),
        (changed(epoch=None), "the state has no value at epoch: pass what state_dict() returned, whole"),
        (changed(epoch=-1), "the state has -1 at epoch; it must be from 0 to 2**62 - 1"),
        (changed(position=2**62), f"the state has {2**62} at position; it must be from 0 to 2**62 - 1"),
        (changed(position="x"), "the state has 'x' at position: pass what state_dict() returned, unchanged"),
        (changed(position=True), "the state has True at position: pass what state_dict() returned, unchanged"),
        (changed(order__seed=None), "the state has no value at order.seed: pass what state_dict() returned, whole"),
        (changed(order__shuffle=1), "the state has 1 at order.shuffle: pass what state_dict() returned, unchanged"),
        (
            changed(order__algorithm=9),
            (
                "the state was made with version 9 of the order; this release has version 1, which orders samples"
                " otherwise: finish the epoch with the release that wrote it"
            ),
        ),
    ],
)
def test_what_is_no_state_is_refused(state, sentence):
    with pytest.raises(StateError) as caught:
        State.from_json(state)
    assert str(caught.value) == sentence
