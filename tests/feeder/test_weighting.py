"""Quotas of copies: sums, whole weights kept, and rounding that stays between whole numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder import weighting
from feeder.weighting import balanced_copies, weighted_copies


def batches(values: Any, size: int = 7) -> Callable[[], Iterator[tuple[int, Any]]]:
    return lambda: ((start, values[start : start + size]) for start in range(0, len(values), size))


WEIGHTS = st.one_of(
    st.integers(0, 5).map(float), st.floats(0, 4, allow_subnormal=False), st.sampled_from([0.5, 1e-9, 300.25, 1e-3])
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(WEIGHTS, st.booleans()), min_size=1, max_size=60), st.integers(1, 30))
def test_weights_become_quotas(given_weights: list[tuple[float, bool]], at_once: int) -> None:
    weights = np.array([weight for weight, _ in given_weights])
    chosen = np.array([flag for _, flag in given_weights])
    wanted = np.where(chosen, weights, 0)
    if round(wanted.sum()) == 0 or abs(wanted.sum() % 1 - 0.5) < 1e-4:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighting, "_AT_ONCE", at_once)
        copies = weighted_copies(batches(weights), chosen)
    means = copies.table / copies.unit
    assert copies.num_rows == round(wanted.sum())
    assert not copies.table[~chosen].any()
    assert (means[wanted % 1 == 0] == wanted[wanted % 1 == 0]).all()
    slack = 1 / copies.unit
    assert (means >= np.floor(wanted) - slack).all()
    assert (means <= np.ceil(wanted) + slack).all()
    assert abs(means - wanted).sum() <= 0.5 + len(weights) * slack


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=200), st.integers(1, 60))
def test_classes_get_equal_shares(samples: list[tuple[int, bool]], at_once: int) -> None:
    labels = np.array([label for label, _ in samples])
    chosen = np.array([flag for _, flag in samples])
    if not chosen.any():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighting, "_AT_ONCE", at_once)
        copies = balanced_copies("label", batches(pa.array(labels)), chosen)
    means = copies.table / copies.unit
    present = sorted(set(labels[chosen].tolist()))
    assert copies.num_rows == chosen.sum()
    assert not copies.table[~chosen].any()
    for label in present:
        inside = chosen & (labels == label)
        assert abs(means[inside].sum() - chosen.sum() / len(present)) <= 1e-4
        assert np.ptp(means[inside]) <= 2 / copies.unit


def test_very_uneven_classes_take_a_coarser_unit() -> None:
    labels = np.zeros(200_000, np.int64)
    labels[5] = 1
    copies = balanced_copies("label", batches(pa.array(labels), 1 << 16), np.ones(len(labels), np.bool_))
    assert copies.unit < weighting.FINEST_UNIT
    assert copies.num_rows == 200_000
    assert copies.table[5] / copies.unit == pytest.approx(100_000, rel=1e-6)
