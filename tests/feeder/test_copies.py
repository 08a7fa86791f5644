"""Tables of copies: what they refuse, how files hold them, and what travels to other processes."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feeder.copies import Copies, copies_of, encoded_copies, map_copies
from feeder.errors import ConfigError
from feeder.order import Order
from feeder.order_settings import OrderSettings


def kept(path: Path, copies: Copies, about: str = "a table") -> Path:
    path.write_bytes(b"".join(encoded_copies(copies, about)))
    return path


def order_of(copies: Copies) -> Order:
    settings = OrderSettings(seed=0, shuffle=True, lanes=1, window=None, sticky=True, copies_digest=copies.digest)
    return Order(np.array([len(copies.table)]), settings, copies)


def test_the_digest_is_of_values_and_unit() -> None:
    ones = copies_of(np.ones(6, np.uint8))
    assert ones.digest == copies_of(np.ones(6, np.uint32)).digest
    assert len({ones.digest, copies_of(np.ones(6, np.uint8), 2).digest, copies_of(np.ones(5, np.uint8)).digest}) == 3
    assert (ones.table.dtype, copies_of(np.array([300], np.uint64)).table.dtype) == (np.uint8, np.uint16)


@pytest.mark.parametrize(
    ("table", "unit", "sentence"),
    [
        (
            np.ones(3),
            1,
            "the table of copies is float64[3]; expected a one-dimensional array of unsigned integers",
        ),
        ([1, 2], 1, "the table of copies is list; expected a one-dimensional array of unsigned integers"),
        (
            np.array([3, 2], np.uint8),
            2,
            (
                "the table of copies sums to 5 in units of 1/2; the sum must be a multiple of the unit, so that every"
                " epoch has the same length"
            ),
        ),
        (
            np.array([1 << 32], np.uint64),
            1,
            (
                "the table of copies has entries up to 4294967296 for 1 samples; an entry must be below 2**32, and"
                " entries times samples below 2**62: take a smaller unit"
            ),
        ),
    ],
)
def test_tables_that_cannot_be_are_refused(table: Any, unit: int, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        copies_of(table, unit)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_a_file_gives_the_table_back(tmp_path: Path, kind: Any) -> None:
    copies = copies_of(np.array([4, 0, np.iinfo(kind).max - 2, 1, 2], kind), 2)
    path = kept(tmp_path / "table", copies)
    found = map_copies(path, about="a table")
    assert found is not None
    assert (found.unit, found.num_rows, found.digest) == (copies.unit, copies.num_rows, copies.digest)
    assert found.table.dtype == kind
    assert found.table.tolist() == copies.table.tolist()
    assert map_copies(path, about="another") is map_copies(path, digest="0" * 32) is map_copies(tmp_path / "no") is None


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = kept(tmp_path / "table", copies_of(np.arange(300, dtype=np.uint16) * 2, 2))
    good = path.read_bytes()
    line = good.index(b"}") + 1
    for place in [*range(line), *range(4096, len(good), 7)]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        found = map_copies(path, about="a table")
        assert found is None
    for end in (0, 1, line, 4096, len(good) - 1):
        path.write_bytes(good[:end])
        assert map_copies(path) is None


def test_a_mapped_table_travels_as_the_path_of_its_file(tmp_path: Path) -> None:
    table = np.random.default_rng(0).integers(0, 3, 100_000).astype(np.uint8)
    in_memory = copies_of(table)
    path = kept(tmp_path / "table", in_memory)
    mapped = map_copies(path)
    assert mapped is not None
    order = order_of(mapped)
    pickled = pickle.dumps(order)
    assert len(pickled) < 2000
    assert len(pickle.dumps(order_of(in_memory))) > 100_000
    expected = order.rank_batch(0, 0, 500, 0, 1).ids.tolist()
    for copies in (pickle.loads(pickled), pickle.loads(pickle.dumps(order_of(in_memory)))):
        assert copies.rank_batch(0, 0, 500, 0, 1).ids.tolist() == expected
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(ConfigError) as caught:
        pickle.loads(pickled)
    assert str(caught.value) == (
        f"the selection of samples in {path} is gone or was altered since the dataset was opened; open the dataset"
        " again"
    )


@pytest.mark.parametrize("at_once", [1, 3, 10, 1000])
def test_segments_are_summed_in_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeder.copies._AT_ONCE", at_once)
    table = np.random.default_rng(0).integers(0, 255, 40).astype(np.uint8)
    sizes = [0, 1, 20, 0, 3, 3, 0, 0, 13, 0]
    first_ids = np.concatenate(([0], np.cumsum(sizes)))
    expected = [int(table[a:b].sum()) for a, b in itertools.pairwise(first_ids)]
    assert copies_of(table).segment_quotas(first_ids).tolist() == expected
