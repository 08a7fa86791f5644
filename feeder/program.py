"""From a user's ``transform=`` to what is done to each sample, and where.

A `Program` has one view group for each size of output. A group's crop, resize and flip are its `Geometry`, which the
engine executes in one resampling while it decodes; its operations run on the output afterwards, in the order in which
they were written.

Random numbers: the stream of an operation is ``draw(stream of the output image, derive_key(label))``, the label made of
the operation's name and which one of that name it is. So adding another operation changes none of its draws, nor those
of crops and flips.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import as_integer
from feeder.augment import Geometry, compile_transforms, sample_keys
from feeder.errors import ConfigError
from feeder.keyed import UInt64Array, derive_key, draw
from feeder.transforms import GEOMETRIC, Geometric, Normalize

IMAGE = "image"  # the name of the views of a program that has one group
_TAKEN = frozenset({"label", "id", "key", "valid", "crop", "flip", "size", "epoch", "position", "state", "source"})

Params = Mapping[str, NDArray[Any]]


@runtime_checkable
class PixelTransform(Protocol):
    """An operation on the pixels of output images; a frozen description, checked when it was made.

    Both methods are pure and safe from many threads.
    """

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        """Return what was drawn for n images, each array with a first axis of n; keys are (n,)."""

    def apply(self, images: NDArray[Any], params: Params) -> None:
        """Change images, (n, H, W, 3) uint8, or float32 once they are normalised, in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step on output images.

    Attributes:
        transform: what is done.
        name: its class, numbered from the second of that name on: the name of its stage.
    """

    transform: Any
    name: str

    def keys(self, keys: UInt64Array) -> UInt64Array:
        """Return the keys of its own streams, from those of output images."""
        return draw(keys, derive_key(f"operation.{self.name}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Output images of one size.

    Attributes:
        name: of the entry in a batch.
        geometry: what the engine cuts.
        first: number of the first of them, counted over all groups.
        operations: what is done to them afterwards, in order.
    """

    name: str
    geometry: Geometry
    first: int
    operations: tuple[Operation, ...]

    @property
    def function(self) -> Operation | None:
        """The user's own function, which comes last and may give anything; None without one."""
        last = self.operations[-1] if self.operations else None
        return last if last is not None and not isinstance(last.transform, Normalize | PixelTransform) else None

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """The type of the output pixels."""
        normalised = any(isinstance(operation.transform, Normalize) for operation in self.operations)
        return np.float32 if normalised else np.uint8

    def keys(self, seed: int, epoch: int, ids: NDArray[np.int64], copies: NDArray[np.int64]) -> UInt64Array:
        """Return the (n, V) keys of output images."""
        keys = sample_keys(seed, epoch, ids, copies)
        return draw(keys[:, None], self.first + np.arange(self.geometry.views))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is done to each sample; made by `compile_program`.

    Attributes:
        views: the groups; one called "image", or those of a `Views`.
    """

    views: tuple[View, ...]

    @property
    def operations(self) -> tuple[tuple[Operation, ...], ...]:
        """The operations of each group."""
        return tuple(view.operations for view in self.views)

    @property
    def deferrable(self) -> bool:
        """Whether all operations may as well run on a device, on whole batches: no user's function is among them."""
        return all(view.function is None for view in self.views)


class Views:
    """Several crops of each sample, of several sizes, from one read and one decoding.

    Args:
        groups: by the name of the batch's entry: (transforms, how many), as in
            ``{"global": ([RandomResizedCrop(224)], 2), "local": ([RandomResizedCrop(96)], 8)}``.

    Raises:
        ConfigError: no group, a name that batches use already, or no count.
    """

    def __init__(self, groups: Mapping[str, tuple[Any, int]]) -> None:
        if not isinstance(groups, Mapping) or not groups:
            raise ConfigError(
                f"Views got {groups!r}; give a dictionary such as {{'global': ([RandomResizedCrop(224)], 2)}}"
            )
        for name, group in groups.items():
            if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN:
                raise ConfigError(f"Views got a group called {name!r}; give a name that batches do not use already")
            if not isinstance(group, Sequence) or len(group) != 2 or (as_integer(group[1]) or 0) < 1:
                raise ConfigError(f"Views got {group!r} for {name!r}; give (transforms, how many), such as ([…], 2)")
        self.groups = dict(groups)

    def __repr__(self) -> str:
        return f"Views({self.groups!r})"


def compile_program(transform: Any, *, views: int = 1) -> Program:
    """Work out what a user's transforms ask for.

    Args:
        transform: a list of transforms, one alone, or `Views`.
        views: output images of each sample.

    Raises:
        ConfigError: what was asked for cannot be; the sentence says what to write instead.
    """
    if not isinstance(transform, Views):
        return Program(views=(_compile_view(IMAGE, transform, views, 0),))
    if views != 1:
        raise ConfigError(f"got views={views!r} and Views, which say how many themselves; give one of the two")
    compiled: list[View] = []
    for name, (transforms, count) in transform.groups.items():
        compiled.append(_compile_view(name, transforms, count, sum(view.geometry.views for view in compiled)))
    return Program(views=tuple(compiled))


def _compile_view(name: str, transforms: Any, count: int, first: int) -> View:
    """Part transforms into what engines execute and the operations that follow."""
    geometric: list[Geometric] = []
    operations: list[Operation] = []
    seen: Counter[str] = Counter()
    for item in _to_list(transforms):
        if isinstance(item, GEOMETRIC):
            if operations:
                raise ConfigError(
                    f"{type(item).__name__} stands behind {operations[-1].name}; boxes are cut from stored pixels, "
                    f"and what changes pixels comes afterwards: put {type(item).__name__} before"
                )
            geometric.append(item)
            continue
        _check_operation(item, operations)
        kind = type(item).__name__
        seen[kind] += 1
        operations.append(Operation(transform=item, name=kind if seen[kind] == 1 else f"{kind} {seen[kind]}"))
    geometry = compile_transforms(geometric, views=count)
    return View(name=name, geometry=geometry, first=first, operations=tuple(operations))


def _check_operation(item: Any, before: Sequence[Operation]) -> None:
    """Raise unless an item is an operation that may stand behind others."""
    if isinstance(item, type) or not isinstance(item, Normalize | PixelTransform):
        raise ConfigError(_not_ours(item))
    normalised = any(isinstance(operation.transform, Normalize) for operation in before)
    if normalised and isinstance(item, Normalize):
        raise ConfigError("Normalize stands twice in the transforms; keep one")
    if normalised and not getattr(item, "takes_normalized", False):
        raise ConfigError(f"{type(item).__name__} stands behind Normalize and works on uint8 pixels: put it before")


def _to_list(transforms: Any) -> list[Any]:
    if isinstance(transforms, (*GEOMETRIC, Normalize)):
        return [transforms]
    try:
        return list(transforms)
    except TypeError:
        raise ConfigError(
            f"got {type(transforms).__name__} as transforms; give a list, such as "
            "[feeder.RandomResizedCrop(224), feeder.RandomHorizontalFlip()]"
        ) from None


def _not_ours(item: object) -> str:
    """Return the sentence for an item that is not one of our transforms."""
    name = (item if isinstance(item, type) else type(item)).__name__
    if isinstance(item, type):
        return f"{name} was given as a class: write {name}(…) with its arguments"
    return f"transform {name} is not known; it is neither one of shardfeed's nor a function of pixels"
