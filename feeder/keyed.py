"""Counter-based random numbers: every draw is a pure function of a key and a counter.

A key is 64 bits, the blake2b digest of a domain label and integers, so that no two uses share a stream and
``(seed 42, epoch 1)`` has nothing in common with ``(seed 43, epoch 0)``. A draw is the splitmix64 output function
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) applied to the key and the
counter. All arithmetic is on unsigned 64-bit integers modulo 2**64: the same numbers on every machine and NumPy
version.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

INCREMENT = 0x9E3779B97F4A7C15  # of splitmix64: 2**64 / golden ratio
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)

_GOLDEN = np.uint64(INCREMENT)
_MIX_1, _MIX_2 = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_SHIFTS = tuple(np.uint64(shift) for shift in SHIFTS)
_ONE = np.uint64(1)
_TO_FLOAT = np.uint64(11)  # keeps 53 bits, the precision of a double


def derive_key(label: str, *parts: int) -> int:
    """Return the 64-bit key of a use of random numbers.

    The digested bytes are the label in UTF-8, a zero byte, then each part as a signed 128-bit little-endian integer;
    the key is the 8-byte blake2b digest, read as a little-endian integer.

    Args:
        label: the domain, such as ``"order.segments"``; distinct uses have distinct labels.
        parts: integers in [-2**127, 2**127), such as seed and epoch.
    """
    encoded = b"".join(int(part).to_bytes(16, "little", signed=True) for part in parts)
    digest = hashlib.blake2b(label.encode() + b"\0" + encoded, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw(keys: int | UInt64Array, counters: Any) -> UInt64Array:
    """Return the uint64 draw number ``counter`` of the stream ``key``; keys and counters broadcast against each other.

    A draw may serve as the key of further draws: ``draw(draw(key, ids)[:, None], numbers)``.
    """
    counters = np.asarray(counters).astype(np.uint64)
    state = np.atleast_1d(counters + _ONE)  # arrays wrap silently where NumPy's scalars warn of overflow
    state *= _GOLDEN
    state = state + np.asarray(keys, dtype=np.uint64)
    state ^= state >> _SHIFTS[0]
    state *= _MIX_1
    state ^= state >> _SHIFTS[1]
    state *= _MIX_2
    state ^= state >> _SHIFTS[2]
    return state if np.ndim(keys) or counters.ndim else state[0]


def uniform(keys: int | UInt64Array, counters: Any) -> NDArray[np.float64]:
    """Return float64 draws in [0, 1), multiples of 2**-53; arguments as in `draw`."""
    return (draw(keys, counters) >> _TO_FLOAT).astype(np.float64) * 2.0**-53


_SORTED_SIZE = 4096  # up to here a table is cheap, and exact where a network of few bits is visibly uneven
_ROUNDS = 8  # twice what Luby and Rackoff need for a random-looking permutation; four on each half


def permute(key: int, size: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images of positions under a keyed bijection of [0, size).

    Up to 4096 elements it is the stable argsort of their draws. Beyond, it takes no table: a Feistel network over the
    smallest number of bits that holds ``size``, each half in turn masked by a draw keyed with the other, with cycle
    walking: values outside are encrypted again (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA
    2002). Less than half the domain lies outside, so two walks are the mean at most.

    Args:
        key: 64 bits, from `derive_key`.
        size: the number of elements, 1 … 2**62.
        positions: int64, each in [0, size).
    """
    if size <= _SORTED_SIZE:
        return np.argsort(draw(key, np.arange(size)), kind="stable")[positions]
    bits = (size - 1).bit_length()
    right_bits = np.uint64(bits // 2)
    left_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    right_mask = np.uint64((1 << (bits // 2)) - 1)
    round_keys = draw(key, np.arange(_ROUNDS))
    values = np.asarray(positions).astype(np.uint64)
    outside = np.arange(values.size)
    while outside.size:
        walking = values[outside]
        left, right = walking >> right_bits, walking & right_mask
        for number in range(0, _ROUNDS, 2):
            left ^= draw(round_keys[number], right) & left_mask
            right ^= draw(round_keys[number + 1], left) & right_mask
        walking = (left << right_bits) | right
        values[outside] = walking
        outside = outside[walking >= np.uint64(size)]
    return values.astype(np.int64)
