"""MixUp and CutMix, in torchvision v2's names and arguments: each image of a batch is mixed with the one before it in a
ring whose order is drawn.

Mixed are the valid rows with a label of a class, in a ring; padding and rows without a label (−1, −100) are left as
they are, and have a target of zeros, which adds nothing to a cross entropy. The share of a batch is drawn once from a
key, so that a mixed batch is a pure function, too.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import checked_integer, is_real, store
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, draw, uniform
from feeder.pixels.protocol import Params, Pixels
from feeder.windows import exact_exp, exact_log

_BETA_DRAW, _COLUMN_DRAW, _ROW_DRAW, _RING_DRAW = 0, 1, 2, 3
_GREATEST_EXPONENT = 700.0  # of exact_exp; e**700 is already all or nothing as a share


@dataclass(frozen=True, slots=True, kw_only=True)
class MixUp:
    """Blend each image, and its target, with the one before it (Zhang et al., "mixup", arXiv:1710.09412).

    Args:
        alpha: of the distribution Beta(alpha, alpha) of an image's own share; 1 is uniform.
        num_classes: the length of a target.

    Parameters: ``lam`` (1,) float64, the image's own share, and ``ring`` (1,) uint64, the key of the order of the ring.
    """

    alpha: float = 1.0
    num_classes: int

    def __post_init__(self) -> None:
        _check(self)

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        return {"lam": symmetric_beta(self.alpha, draw(keys, _BETA_DRAW)), "ring": draw(keys, _RING_DRAW)}

    def mix(
        self, images: Pixels, labels: NDArray[np.int64], valid: NDArray[np.bool_], params: Params
    ) -> NDArray[np.float32]:
        """Mix in place and return the targets; levels are rounded half up."""
        rows = mixed_rows(labels, valid, self.num_classes, params)
        lam = float(params["lam"][0])
        own, others = np.float32(lam), np.float32(1.0 - lam)
        for image, before in _with_the_one_before(images, rows):
            blended = before * others
            blended += image * own
            if images.dtype == np.uint8:
                blended += np.float32(0.5)
            np.copyto(image, blended, casting="unsafe")
        return targets(labels, rows, self.num_classes, lam)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMix:
    """Paste a random box of the image before into each image (Yun et al., "CutMix", arXiv:1905.04899).

    Args:
        alpha: of the distribution Beta(alpha, alpha) of the box's complement; 1 is uniform.
        num_classes: the length of a target.

    Parameters: ``box`` (1, 4) int32, left, top, right and bottom in pixels of the output image, by which masks can
    follow, ``lam`` (1,) float64, the part of the image outside the box, and ``ring`` (1,) uint64, as in `MixUp`.
    """

    alpha: float = 1.0
    num_classes: int

    def __post_init__(self) -> None:
        _check(self)

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        """Source: torchvision.transforms.v2.CutMix.make_params."""
        half = 0.5 * np.sqrt(1.0 - symmetric_beta(self.alpha, draw(keys, _BETA_DRAW)))
        half_width, half_height = np.floor(half * width), np.floor(half * height)
        x, y = np.floor(uniform(keys, _COLUMN_DRAW) * width), np.floor(uniform(keys, _ROW_DRAW) * height)
        box = np.stack(
            (
                np.maximum(x - half_width, 0),
                np.maximum(y - half_height, 0),
                np.minimum(x + half_width, width),
                np.minimum(y + half_height, height),
            ),
            axis=1,
        )
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        lam = 1.0 - area / (width * height)
        return {"box": box.astype(np.int32), "lam": lam, "ring": draw(keys, _RING_DRAW)}

    def mix(
        self, images: Pixels, labels: NDArray[np.int64], valid: NDArray[np.bool_], params: Params
    ) -> NDArray[np.float32]:
        """Mix in place and return the targets."""
        rows = mixed_rows(labels, valid, self.num_classes, params)
        left, top, right, bottom = (int(edge) for edge in params["box"][0])
        for image, before in _with_the_one_before(images[..., top:bottom, left:right, :], rows):
            image[...] = before
        return targets(labels, rows, self.num_classes, float(params["lam"][0]))


def _check(item: Any) -> None:
    name = type(item).__name__
    if not is_real(item.alpha) or item.alpha <= 0:
        raise ConfigError(f"{name} got alpha={item.alpha!r}; give a number above 0")
    store(item, alpha=float(item.alpha), num_classes=checked_integer(f"{name}: num_classes", item.num_classes, least=1))


def mixed_rows(
    labels: NDArray[np.int64], valid: NDArray[np.bool_], num_classes: int, params: Params
) -> NDArray[np.int64]:
    """Return the rows of a batch that are mixed, in the order of the ring.

    The order is drawn: in a batch, rows of the same shards stand side by side, and of the same dataset in a mixture.

    Raises:
        ConfigError: a label is of no class.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"MixUp and CutMix need one whole number a sample as label; got {labels.dtype} of shape {labels.shape}"
        )
    greatest = int(labels[valid].max(initial=-1))
    if greatest >= num_classes:
        raise ConfigError(
            f"a label is {greatest}, and MixUp or CutMix has num_classes={num_classes}; give at least {greatest + 1}"
        )
    rows = np.flatnonzero(valid & (labels >= 0))
    return rows[np.argsort(draw(params["ring"][0], np.arange(len(rows))), kind="stable")]


def targets(labels: NDArray[np.int64], rows: NDArray[np.int64], num_classes: int, lam: float) -> NDArray[np.float32]:
    """Return (B, num_classes) targets: ``lam`` of each row's own class, the rest of that of the row before it."""
    own = np.zeros((len(labels), num_classes), np.float32)
    own[rows, labels[rows]] = 1
    others = np.zeros_like(own)
    others[rows] = own[np.roll(rows, 1)]
    return own * np.float32(lam) + others * np.float32(1.0 - lam)


def _with_the_one_before(images: Any, rows: NDArray[np.int64]) -> Iterator[tuple[Any, Any]]:
    """Yield each image with the one before it, as it was: from the end, since images are then overwritten."""
    if rows.size == 0:
        return
    last = images[rows[-1]].copy()
    for row, before in zip(rows[:0:-1], rows[-2::-1], strict=True):
        yield images[row], images[before]
    yield images[rows[0]], last


def symmetric_beta(alpha: float, keys: UInt64Array) -> NDArray[np.float64]:
    """Return a draw of Beta(alpha, alpha) for each of (n,) keys, bit-identical on every machine.

    For alpha = 1 it is uniform. Else candidates, made of two uniform draws each, are rejected until one will do, with
    arithmetic of `feeder.windows` alone.
    """
    if alpha == 1:
        return uniform(keys, 0)
    method = _johnk if alpha < 1 else _cheng
    return np.array([method(alpha, key) for key in keys])


def _candidates(key: np.uint64) -> Iterator[tuple[float, float]]:
    """Yield pairs of uniform draws in (0, 1]."""
    for number in itertools.count():
        first, second = 1.0 - uniform(int(key), np.array([2 * number, 2 * number + 1]))
        yield float(first), float(second)


def _exp(exponent: float) -> float:
    return float(exact_exp(np.array([min(max(exponent, -_GREATEST_EXPONENT), _GREATEST_EXPONENT)]))[0])


def _johnk(alpha: float, key: np.uint64) -> float:
    """For alpha < 1: X = U^(1/alpha), Y likewise; X / (X + Y) if X + Y ≤ 1 (Jöhnk, Metrika 8, 1964)."""
    for u, v in _candidates(key):
        x, y = exact_log(u) / alpha, exact_log(v) / alpha
        if _exp(x) + _exp(y) <= 1:
            return 1.0 / (1.0 + _exp(y - x))  # in logarithms, as both may be too small for a double
    raise AssertionError


def _cheng(alpha: float, key: np.uint64) -> float:
    """For alpha > 1 (Cheng, "Generating beta variates with nonintegral shape parameters", CACM 21, 1978, BB)."""
    total = 2.0 * alpha
    beta = math.sqrt((total - 2.0) / (2.0 * alpha * alpha - total))
    gamma = alpha + 1.0 / beta
    for u, v in _candidates(key):
        if u == 1.0:
            continue
        exponent = beta * (exact_log(u) - exact_log(1.0 - u))
        w = alpha * _exp(exponent)
        if gamma * exponent - exact_log(4.0) + total * (exact_log(total) - exact_log(alpha + w)) >= exact_log(
            u * u * v
        ):
            return w / (alpha + w)
    raise AssertionError
