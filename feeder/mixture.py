"""How several datasets are mixed: which sample of which dataset stands at which position, as a pure function.

A `Mixture` deals positions out to K sources, each with an `Order` and an integer weight w. T is the sum of the weights.

1. Positions are counted over all epochs of the mixture: position g of epoch e is P = e · length + g. They are cut into
   blocks of T. Block b holds source k exactly w[k] times, in an order that is a permutation with key (seed, b).
2. So the samples of source k before P are b · w[k] and those in a prefix of one block: no table is kept.
3. Sample c of a source, counted over all epochs of the mixture, is position c mod N of that source's own epoch c // N,
   N its positions an epoch. Each source runs through its own epochs, whatever the weights: none is cut short.
4. A step takes positions [g, g + G): of each source, a range of its own positions. They are sorted by lane, own epoch
   after own epoch, and each rank takes its share of every source: as many as divide evenly; of the rest, one each to
   consecutive ranks, going on from source to source. So a rank has floor(G / R) or ceil(G / R) samples, and of every
   source as many as any other rank, or one more or less.

The state is one integer, g, beside the epoch. Which samples a step holds depends on seed, epoch, g and G, never on the
world size.
"""

import hashlib
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from feeder.arguments import as_integer
from feeder.errors import ConfigError
from feeder.keyed import derive_key, permute
from feeder.order import COUNT_LIMIT, Int64Array, Order, RankBatch
from feeder.order_settings import OrderSettings

ALGORITHM = 1  # changes when the same settings would give another mixture; part of every state

MAX_TOTAL_WEIGHT = 1 << 16  # the size of a block: its permutation takes 10 ms, and shares are exact to 1.6e-5

_CACHED_BLOCKS = 8  # of 128 KiB at most; a step needs the two at its ends


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One source of a mixture, as a state names it.

    Attributes:
        name: what the user calls it.
        dataset: digest of its dataset.
        weight: positions that it has in each block.
        order: settings of its order.
    """

    name: str
    dataset: str
    weight: int
    order: OrderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """What determines a mixture; kept in every state.

    Attributes:
        seed: any integer.
        length: positions of an epoch of the mixture.
        sources: the datasets, in order of their numbers.
    """

    seed: int
    length: int
    sources: tuple[SourceSettings, ...]

    @property
    def shuffle(self) -> bool:
        """Whether any source is shuffled: then it is training, and only whole steps count."""
        return any(source.order.shuffle for source in self.sources)

    def __str__(self) -> str:
        """Return which datasets are mixed, in words."""
        parts = [f"{source.weight} {source.name} ({source.dataset[:12]})" for source in self.sources]
        return f"a mixture of {' : '.join(parts)}"

    @property
    def mixed(self) -> tuple[tuple[str, int], ...]:
        """Dataset and weight of each source: what decides whether a state belongs here, whatever they are called."""
        return tuple((source.dataset, source.weight) for source in self.sources)

    @property
    def digest(self) -> str:
        """The hexadecimal digest of the digests of the datasets."""
        digests = "\n".join(source.dataset for source in self.sources)
        return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the settings and the algorithm's version as JSON values; equal ones give equal mixtures."""
        return {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "length": self.length,
            "sources": [
                {
                    "name": source.name,
                    "dataset": source.dataset,
                    "weight": source.weight,
                    "order": source.order.to_json(),
                }
                for source in self.sources
            ],
        }


class Mixture:
    """The order of the samples of several datasets in every epoch of their mixture.

    Methods are pure, safe from many threads, and the object pickles.

    Args:
        orders: the order of each source, at least one.
        weights: integers of at least 1, one for each order, of 2**16 together at most.
        seed: of the permutations of blocks; any integer.
        length: positions of an epoch; None for as many as the sources have together.

    Raises:
        ConfigError: a source without samples, or numbers out of range.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[int], seed: int, length: int | None = None) -> None:
        self._orders = tuple(orders)
        self._weights = _checked_weights(weights, len(self._orders))
        self._seed = seed
        for number, order in enumerate(self._orders):
            if order.num_positions == 0:
                raise ConfigError(f"source {number} of the mixture has no samples; leave it out")
        self.num_positions = sum(order.num_positions for order in self._orders)
        if length is not None:
            given = as_integer(length)
            if given is None or not 1 <= given < COUNT_LIMIT:
                raise ConfigError(f"the length of the mixture is {length!r}; it must be an integer from 1 to 2**62 - 1")
            self.num_positions = given
        self._total = sum(self._weights)
        self._bounds = np.cumsum(self._weights)
        self._block = lru_cache(maxsize=_CACHED_BLOCKS)(self._compute_block)

    def __reduce__(self) -> tuple[Any, ...]:
        return Mixture, (self._orders, self._weights, self._seed, self.num_positions)

    def steps(self, global_batch: int, position: int = 0) -> int:
        """Return how many steps of G samples follow a position; only whole ones, unless no source is shuffled."""
        left = max(0, self.num_positions - position)
        shuffled = any(order.settings.shuffle for order in self._orders)
        return left // global_batch if shuffled else -(-left // global_batch)

    def counts(self, epoch: int, position: int) -> tuple[int, ...]:
        """Return how many samples of each source stand before a position, since epoch 0 of the mixture."""
        block, offset = divmod(epoch * self.num_positions + min(position, self.num_positions), self._total)
        within = np.bincount(self._block(block)[:offset], minlength=len(self._orders)) if offset else 0
        return tuple(
            block * weight + int(count)
            for weight, count in zip(self._weights, np.broadcast_to(within, len(self._orders)), strict=True)
        )

    def rank_batch(self, epoch: int, position: int, global_batch: int, rank: int, world_size: int) -> RankBatch:
        """Return rank's part of the step that starts at a position: source after source.

        Args:
            epoch: of the mixture, from 0, below `COUNT_LIMIT`.
            position: g, the first position of the step, from 0, below `COUNT_LIMIT`.
            global_batch: G, positions in the step; the epoch's end cuts it.
            rank, world_size: r and R; ranks get floor(G / R) or ceil(G / R) samples, padded to ceil(G / R).

        Raises:
            ConfigError: a source would be in an epoch of its own that is too high a number.
        """
        begins, ends = self.counts(epoch, position), self.counts(epoch, position + global_batch)
        found: list[tuple[int, int, Int64Array, Int64Array]] = []
        dealt = 0  # samples that went to single ranks, of the sources so far
        for source, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            first, count = _share(end - begin, dealt, rank, world_size)
            found += ((source, *rows) for rows in self._rows(source, begin, end, first, count))
            dealt += (end - begin) % world_size
        length = -(-global_batch // world_size)
        batch = RankBatch(
            ids=np.full(length, -1, np.int64),
            copies=np.zeros(length, np.int64),
            valid=np.zeros(length, np.bool_),
            sources=np.zeros(length, np.int64),
            epochs=np.full(length, epoch, np.int64),
        )
        at = 0
        for source, own_epoch, ids, copies in found:
            rows = slice(at, at + len(ids))
            batch.ids[rows], batch.copies[rows], batch.valid[rows] = ids, copies, True
            batch.sources[rows], batch.epochs[rows] = source, own_epoch
            at += len(ids)
        return batch

    def stand_in(self, source: int, sample_id: int, number: int) -> int:
        """Return the id of the sample of the same segment of a source that a 64-bit number picks."""
        return self._orders[source].stand_in(0, sample_id, number)

    def _rows(
        self, source: int, begin: int, end: int, first: int, count: int
    ) -> Iterator[tuple[int, Int64Array, Int64Array]]:
        """Yield (own epoch, ids, copies) of ``count`` rows from the ``first`` of a source's samples [begin, end)."""
        order = self._orders[source]
        while count > 0:
            epoch, position = divmod(begin, order.num_positions)
            if epoch >= COUNT_LIMIT:
                raise ConfigError(
                    f"source {source} of the mixture would be in epoch {epoch} of its own; epochs count to 2**62 - 1"
                )
            taken = min(order.num_positions - position, end - begin)
            inside = min(count, taken - first)
            if inside > 0:
                yield epoch, *order.part(epoch, position, taken, first, inside)
                count -= inside
            first, begin = max(0, first - taken), begin + taken

    def _compute_block(self, block: int) -> Int64Array:
        """Return the source at each of the T positions of a block."""
        places = permute(derive_key("mixture.block", self._seed, block), self._total, np.arange(self._total))
        return np.searchsorted(self._bounds, places, side="right")


def _share(samples: int, dealt: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return (first, count) of the samples of a source that a rank takes.

    Each rank takes floor(samples / R); one more go to the ranks from ``dealt`` mod R on, which go on where those of the
    sources before ended.
    """
    share, longer = divmod(samples, world_size)
    start = dealt % world_size
    # the longer ranks are [start, start + longer), and what reaches over the last rank comes round to the first ones
    around = max(0, start + longer - world_size)
    before = min(rank, around) + min(max(0, rank - start), longer - around)
    is_longer = rank < around or start <= rank < start + longer
    return rank * share + before, share + is_longer


def _checked_weights(weights: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the weights as Python's own integers."""
    numbers = tuple(as_integer(weight) for weight in weights)
    if count < 1 or len(numbers) != count:
        raise ConfigError(f"the mixture has {count} sources and {len(numbers)} weights; give each source one")
    checked = tuple(number for number in numbers if number is not None and number >= 1)
    if len(checked) < count or sum(checked) > MAX_TOTAL_WEIGHT:
        raise ConfigError(
            f"the weights of the mixture are {list(weights)}; they must be integers of at least 1, and of"
            f" {MAX_TOTAL_WEIGHT} together at most"
        )
    return checked


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Turn weights into integers in lowest terms, of `MAX_TOTAL_WEIGHT` together at most.

    Integers and fractions such as 0.3 or 1 / 3 keep their proportions exactly where these have so small a common
    denominator. Else each share of the whole is met within 1 / `MAX_TOTAL_WEIGHT` (largest remainders).

    Raises:
        ConfigError: a weight is not a positive number, or too small beside the others.
    """
    fractions = [_as_fraction(weight) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * denominator) for fraction in fractions]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    total = sum(whole)
    if total <= MAX_TOTAL_WEIGHT:
        return tuple(whole)
    for number, weight in zip(whole, weights, strict=True):
        if number * MAX_TOTAL_WEIGHT < total:
            raise ConfigError(
                f"the weight {weight!r} is less than 1 / {MAX_TOTAL_WEIGHT} of all weights, {list(weights)}; raise it,"
                " or leave that dataset out"
            )
    rounded = [number * MAX_TOTAL_WEIGHT // total for number in whole]
    remainders = [number * MAX_TOTAL_WEIGHT % total for number in whole]
    largest = sorted(range(len(whole)), key=lambda source: (-remainders[source], source))
    for source in largest[: MAX_TOTAL_WEIGHT - sum(rounded)]:
        rounded[source] += 1
    return tuple(rounded)


def _as_fraction(weight: Any) -> Fraction:
    """Return a weight as the simplest fraction that is the same number to Python."""
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real | np.number) or not 0 < float(weight) < math.inf:
        raise ConfigError(
            f"the weight {weight!r} is not a positive number; give integers or fractions, such as 3 or 0.7"
        )
    exact = Fraction(int(weight)) if isinstance(weight, numbers.Integral) else Fraction(float(weight))
    simple = exact.limit_denominator(MAX_TOTAL_WEIGHT)
    return simple if simple > 0 and float(simple) == float(weight) else exact
