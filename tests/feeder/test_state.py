"""States are plain JSON, and what is not one is refused with a sentence."""

import dataclasses
import json

import pytest

from feeder.errors import StateError
from feeder.mixture import MixtureSettings, SourceSettings
from feeder.order_settings import OrderSettings
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


NETS = SourceSettings(name="nets", dataset="ab" * 16, weight=3, order=ORDER)
FOOD = SourceSettings(
    name="food", dataset="cd" * 16, weight=1, order=dataclasses.replace(ORDER, lanes=1, copies_digest="ef")
)
MIXED = MixtureSettings(seed=7, length=4000, sources=(NETS, FOOD))
STATE_OF_MIX = State(dataset=MIXED.digest, order=MIXED, epoch=3, position=512, engine="pillow", pixels=1)
NOTHING = ((), ())


def test_a_state_of_a_mixture_survives_json():
    assert State.from_json(json.loads(json.dumps(STATE_OF_MIX.to_json()))) == STATE_OF_MIX


def test_a_state_of_one_dataset_reads_as_it_always_did():
    assert STATE.to_json() == {
        "version": 1,
        "dataset": "ab" * 16,
        "order": {
            "algorithm": 1,
            "seed": 7,
            "shuffle": True,
            "lanes": 4,
            "window": None,
            "sticky": True,
            "copies": None,
        },
        "epoch": 3,
        "position": 512,
        "engine": "pillow",
        "pixels": 1,
    }


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("algorithm",), 9, "the state was made with version 9 of mixtures; this release has version 1, which orders"),
        (("length",), None, "the state has None at order.length: pass what state_dict() returned, unchanged"),
        (("sources",), 3, "the state has 3 at order.sources: pass what state_dict() returned, unchanged"),
        (("sources", 1), 3, "the state has 3 at order.sources[1]: pass what state_dict() returned, unchanged"),
        (("sources", 1, "weight"), "1", "the state has '1' at order.sources[1].weight: pass what state_dict()"),
        (("sources", 0, "order", "seed"), 0.5, "the state has 0.5 at order.sources[0].order.seed: pass what"),
    ],
)
def test_what_is_no_state_of_a_mixture_is_refused(path, value, sentence):
    state = json.loads(json.dumps(STATE_OF_MIX.to_json()))
    place = state["order"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(StateError) as caught:
        State.from_json(state)
    assert str(caught.value).startswith(sentence)


def test_what_was_left_unset_comes_from_the_state_of_a_mixture():
    asked = dataclasses.replace(MIXED, seed=0, sources=(dataclasses.replace(NETS, order=FOOD.order), FOOD))
    assert STATE_OF_MIX.mixture_for(asked, {"seed"}, ({"lanes", "copies_digest"}, ())) == MIXED
    assert STATE_OF_MIX.mixture_for(MIXED, (), NOTHING) == MIXED
    renamed = dataclasses.replace(MIXED, sources=(NETS, dataclasses.replace(FOOD, name="meals")))
    assert STATE_OF_MIX.mixture_for(renamed, (), NOTHING) == MIXED


def test_another_mixture_is_refused():
    heavier = dataclasses.replace(MIXED, sources=(NETS, dataclasses.replace(FOOD, weight=2)))
    with pytest.raises(StateError) as caught:
        STATE_OF_MIX.mixture_for(heavier, (), NOTHING)
    assert str(caught.value) == (
        "the state belongs to a mixture of 3 nets (abababababab) : 1 food (cdcdcdcdcdcd), and this is a mixture of 3"
        " nets (abababababab) : 2 food (cdcdcdcdcdcd); mix the same datasets, with the same weights, in the same order"
    )
    with pytest.raises(StateError, match="and this is a mixture of 1 food .* : 3 nets"):
        STATE_OF_MIX.mixture_for(dataclasses.replace(MIXED, sources=(FOOD, NETS)), (), NOTHING)


def test_another_order_of_a_mixture_is_refused():
    asked = dataclasses.replace(
        MIXED, length=9, sources=(dataclasses.replace(NETS, order=dataclasses.replace(ORDER, lanes=2)), FOOD)
    )
    with pytest.raises(StateError) as caught:
        STATE_OF_MIX.mixture_for(asked, (), NOTHING)
    assert str(caught.value) == (
        "the state belongs to another order than the arguments ask for: length 4000 in the state and 9 here; nets:"
        " lanes 4 in the state and 2 here; give what the state was made with"
    )


def test_differences_are_said_in_words_of_the_arguments():
    asked = ORDER
    state = dataclasses.replace(STATE, order=dataclasses.replace(asked, sticky=not ORDER.sticky))
    with pytest.raises(StateError) as caught:
        state.order_for(dataclasses.replace(asked, window=7), ())
    assert str(caught.value) == (
        "the state belongs to another order than the arguments ask for: window all in the state and of 7 samples here;"
        f" sticky_shards {not ORDER.sticky} in the state and {ORDER.sticky} here; leave them unset to take them from"
        " the state"
    )
    with pytest.raises(StateError) as caught:
        state.order_for(dataclasses.replace(asked, shuffle=False, lanes=1, window=0), ())
    assert str(caught.value) == (
        "the state belongs to another order than the arguments ask for: shuffle True in the state and False here; give"
        " what the state was made with"
    )


def test_a_mixture_and_a_dataset_do_not_take_each_others_state():
    with pytest.raises(StateError) as caught:
        STATE_OF_MIX.order_for(ORDER, ())
    assert str(caught.value) == (
        "the state belongs to a mixture of 3 nets (abababababab) : 1 food (cdcdcdcdcdcd), and this is one dataset; load"
        " it into a feeder.mix of these"
    )
    with pytest.raises(StateError) as caught:
        STATE.mixture_for(MIXED, (), NOTHING)
    assert str(caught.value) == (
        f"the state belongs to one dataset, with digest {'ab' * 16}, and this is a mixture of 3 nets (abababababab) :"
        " 1 food (cdcdcdcdcdcd); load it into that dataset alone"
    )
