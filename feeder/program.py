"""From a user's ``transform=`` to what is done to each sample, and where.

A `Program` has one view group for each size of output. A group's crop, resize and flip are its `Geometry`, which the
engine executes in one resampling while it decodes; its operations run on the output afterwards, in the order in which
they were written.

Random numbers: the stream of an operation starts from that of the output image and is named by its class and which one
of that class it is (`feeder.pixels.operation_stream`). So adding another operation changes none of its draws, nor those
of crops and flips.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeder.arguments import as_integer
from feeder.augment import Geometry, compile_transforms, sample_keys
from feeder.errors import ConfigError
from feeder.foreign import PerSample, Placement, describe, split
from feeder.keyed import UInt64Array, draw
from feeder.pixels import (
    Mixer,
    Params,
    PixelTransform,
    is_mixer,
    is_pixel_transform,
    numbered_name,
    operation_stream,
)
from feeder.transforms import GEOMETRIC, Normalize

IMAGE = "image"  # the name of the views of a program that has one group
TAKEN = frozenset({"label", "id", "key", "valid", "crop", "flip", "size", "epoch", "position", "state", "source"})
OURS = frozenset({"_images", "_params"})  # in batches on their way to the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step on output images.

    Attributes:
        transform: what is done.
        occurrence: how many of its class stand before it.
    """

    transform: PixelTransform | Normalize | PerSample
    occurrence: int

    @property
    def name(self) -> str:
        """What it is called: the name of its stage."""
        if isinstance(self.transform, PerSample):
            return ", ".join(self.transform.names)
        return numbered_name(self.transform, self.occurrence)

    def keys(self, keys: UInt64Array) -> UInt64Array:
        """Return the keys of its own streams, from those of output images."""
        return operation_stream(self.transform, self.occurrence, keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Output images of one size.

    Attributes:
        name: of the entry in a batch.
        geometry: what the engine cuts; None for the whole image, of which ``function`` makes something.
        count: V, how many of each sample.
        first: number of the first of them, counted over all groups.
        operations: what is done to them afterwards, in order.
        mixer: what mixes the images of a whole batch at the end, or None.
        placements: of each transform as it was written, where it runs, and why.
    """

    name: str
    geometry: Geometry | None
    count: int
    first: int
    operations: tuple[Operation, ...]
    mixer: Mixer | None
    placements: tuple[Placement, ...]

    @property
    def function(self) -> PerSample | None:
        """What is not ours, which comes last and may give anything; None without it."""
        last = self.operations[-1].transform if self.operations else None
        return last if isinstance(last, PerSample) else None

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """The type of the output pixels, without a function."""
        normalised = any(isinstance(operation.transform, Normalize) for operation in self.operations)
        return np.float32 if normalised else np.uint8

    def mixing(self, seed: int, epoch: int, sample_id: int, copy: int) -> Params:
        """Return what is drawn for mixing a batch, by the first of its samples."""
        assert self.mixer is not None
        assert self.geometry is not None
        keys = self.keys(seed, epoch, np.array([sample_id]), np.array([copy]))[:, 0]
        return self.mixer.draw(operation_stream(self.mixer, 0, keys), *self.geometry.size)

    def keys(self, seed: int, epoch: int, ids: NDArray[np.int64], copies: NDArray[np.int64]) -> UInt64Array:
        """Return the (n, V) keys of output images."""
        keys = sample_keys(seed, epoch, ids, copies)
        return draw(keys[:, None], self.first + np.arange(self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is done to each sample; made by `compile_program`.

    Attributes:
        views: the groups; one called "image", or those of a `Views`.
    """

    views: tuple[View, ...]

    @property
    def operations(self) -> tuple[tuple[tuple[Operation, ...], Mixer | None], ...]:
        """What is done to the outputs of each group."""
        return tuple((view.operations, view.mixer) for view in self.views)

    @property
    def deferrable(self) -> bool:
        """Whether all operations may as well run on a device, on whole batches: none is a user's own."""
        transforms = [operation.transform for view in self.views for operation in view.operations]
        mixers = [view.mixer for view in self.views if view.mixer is not None]
        return all(_is_ours(item) for item in (*transforms, *mixers))


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
            if not isinstance(name, str) or not name.isidentifier() or name in TAKEN | OURS:
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
        compiled.append(_compile_view(name, transforms, count, sum(view.count for view in compiled)))
    return Program(views=tuple(compiled))


def _is_ours(item: Any) -> bool:
    """Whether an operation, and all that it applies, is none of a user's own."""
    inner = getattr(item, "transforms", ())
    return type(item).__module__.startswith(("feeder.pixels.", "feeder.transforms")) and all(map(_is_ours, inner))


def _compile_view(name: str, transforms: Any, count: Any, first: int) -> View:
    """Part transforms into what engines execute and the operations that follow."""
    views = as_integer(count)
    if views is None or views < 1:
        raise ConfigError(f"got views={count!r}; give the number of output images of each sample, at least 1")
    transforms = list(transforms) if isinstance(transforms, Iterator) else transforms
    geometric, following = split(transforms)
    seen: Counter[str] = Counter()
    operations: list[Operation] = []
    mixer = _taken_mixer(name, following)
    for item in following:
        _check_operation(item, operations)
        operations.append(Operation(transform=item, occurrence=seen[type(item).__name__]))
        seen[type(item).__name__] += 1
    whole = not geometric and any(isinstance(item, PerSample) for item in following)
    if whole and len(following) > 1:
        ours = next(item for item in following if not isinstance(item, PerSample))
        raise ConfigError(
            f"{type(ours).__name__} works on images of one size, and nothing before it gives them one: begin with"
            " RandomResizedCrop(224), or Resize(256) and CenterCrop(224), of feeder"
        )
    return View(
        name=name,
        geometry=None if whole else compile_transforms(geometric, views=views),
        count=views,
        first=first,
        operations=tuple(operations),
        mixer=mixer,
        placements=describe(transforms),
    )


def _taken_mixer(name: str, following: list[Any]) -> Mixer | None:
    """Return the mixer at the end of operations, taken out of them; raise where it cannot stand."""
    mixers = [item for item in following if is_mixer(item)]
    if not mixers:
        return None
    kind = type(mixers[0]).__name__
    if name != IMAGE:
        raise ConfigError(f"{kind} mixes images with labels, and Views have several batches of images; leave it out")
    if following[-1] is not mixers[0]:
        after = type(following[following.index(mixers[0]) + 1]).__name__
        raise ConfigError(
            f"{kind} mixes whole batches, and {after} stands behind it: put {kind} last; RandomChoice([MixUp(…),"
            " CutMix(…)]) takes turns"
        )
    following.pop()
    if any(isinstance(item, PerSample) for item in following):
        raise ConfigError(f"{kind} stands behind a function, which may give back anything; mix its batches in the loop")
    return mixers[0]  # type: ignore[no-any-return]


def _check_operation(item: Any, before: Sequence[Operation]) -> None:
    """Raise unless an item is an operation that may stand behind others."""
    name = type(item).__name__
    if before and isinstance(before[-1].transform, PerSample):
        raise ConfigError(f"{name} stands behind {before[-1].name}, which may give back anything; put {name} before it")
    if isinstance(item, GEOMETRIC):
        raise ConfigError(
            f"{name} stands behind {before[-1].name if before else 'others'}; boxes are cut from stored pixels, and"
            f" what changes pixels comes afterwards: put {name} before"
        )
    if not isinstance(item, Normalize | PerSample) and not is_pixel_transform(item):
        raise ConfigError(
            f"{name} stands among the transforms, and is none; give operations of feeder, torchvision or"
            " albumentations, or functions of pixels"
        )
    normalised = any(isinstance(operation.transform, Normalize) for operation in before)
    if normalised and isinstance(item, Normalize):
        raise ConfigError("Normalize stands twice in the transforms; keep one")
    if normalised and not isinstance(item, PerSample) and not getattr(item, "takes_normalized", False):
        raise ConfigError(f"{name} stands behind Normalize and works on uint8 pixels: put it before")
