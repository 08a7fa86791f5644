"""Transforms of albumentations: which of them the engine can do in their place, and how the rest runs.

Nothing here imports albumentations: an operation is known by the module and the name of its class.

Its pipelines draw from generators of their own, `random.Random` and `numpy.random.Generator`, so they need not run one
at a time. AlbumentationsX takes a seed with each call; where a pipeline does not, each thread has a copy, whose
generators are set for each sample. Measured on five operations: 1 µs and 80 µs.

Its resampling is cv2's, which skips pixels when it shrinks an image, and has another bicubic kernel. In the engine it
is antialiased. That is said of each operation, and logged. Who wants cv2's pixels writes
``feeder.per_sample(pipeline)``.
"""

import copy
import inspect
import random
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from feeder.errors import ConfigError, TransformError
from feeder.foreign.functions import as_pixels, guarded, in_threads, name_of, one_at_a_time
from feeder.foreign.placing import Lifted, Stays, Verdict
from feeder.foreign.seeding import ALL, NONE, Generators, alone, generator, seed
from feeder.transforms import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from feeder.windows import Interpolation

_NEAREST, _LINEAR, _CUBIC, _NEAREST_EXACT = 0, 1, 2, 6  # cv2.INTER_…
_FILTERS: dict[int, Interpolation] = {
    _NEAREST: "nearest", _LINEAR: "bilinear", _CUBIC: "bicubic", _NEAREST_EXACT: "nearest",
}  # fmt: skip
_DIFFERENCES = {
    _NEAREST: "takes the nearest pixel where cv2 takes the one at the upper left",
    _LINEAR: "antialiased where cv2 skips pixels",
    _CUBIC: "antialiased where cv2 skips pixels, and with the kernel a = -0.5 in place of -0.75",
    _NEAREST_EXACT: "",
}
_ROUNDING = "sides and offsets are rounded as torchvision rounds them, which may be another pixel"
_COPIES = threading.local()  # .of: each thread's copies of pipelines, by stage


def is_albumentations(value: Any) -> bool:
    """Whether a value is an operation of albumentations' own, or a pipeline of them."""
    return type(value).__module__.startswith("albumentations.")


def contents(value: Any) -> Sequence[Any] | None:
    """Return the operations of a ``Compose`` that only runs them in order, None for anything else."""
    plain = is_albumentations(value) and type(value).__name__ == "Compose" and value.p == 1
    return list(value.transforms) if plain and not getattr(value, "processors", None) else None


def place(operation: Any) -> Verdict:
    """Say what becomes of an operation that stands in front."""
    name = type(operation).__name__
    if name == "HorizontalFlip":
        return Lifted(RandomHorizontalFlip(operation.p))
    if name not in ("RandomResizedCrop", "Resize", "SmallestMaxSize", "CenterCrop"):
        return Stays("not a crop, resize or flip")
    if operation.p != 1:
        return Stays(f"p={operation.p} makes images of sizes that differ")
    try:
        if name == "CenterCrop":
            return Lifted(CenterCrop((operation.height, operation.width)), _ROUNDING)
        return _resampled(operation, name)
    except ConfigError as error:
        return Stays(str(error))


def _resampled(operation: Any, name: str) -> Verdict:
    """Say what becomes of an operation that resizes."""
    interpolation = operation.interpolation
    if getattr(operation, "area_for_downscale", None) is not None:
        return Stays(f"area_for_downscale={operation.area_for_downscale!r} asks for a filter that no engine has")
    if interpolation not in _FILTERS:
        return Stays(f"interpolation={interpolation} of cv2 is a filter that no engine has")
    difference = _DIFFERENCES[interpolation]
    match name:
        case "RandomResizedCrop":
            if getattr(operation, "sampling_method", "standard") != "standard":
                return Stays(f"sampling_method={operation.sampling_method!r} draws boxes otherwise")
            size = getattr(operation, "size", None) or (operation.height, operation.width)
            scale, ratio = tuple(operation.scale), tuple(operation.ratio)
            return Lifted(RandomResizedCrop(tuple(size), scale, ratio, _FILTERS[interpolation]), difference)
        case "Resize":
            return Lifted(Resize((operation.height, operation.width), _FILTERS[interpolation]), difference)
    if not isinstance(operation.max_size, int):
        return Stays("the length of the shorter side is not one number")
    both = "; ".join(filter(None, (difference, _ROUNDING)))
    return Lifted(Resize(operation.max_size, _FILTERS[interpolation]), both)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AlbumentationsStage:
    """A pipeline of albumentations.

    Attributes:
        pipeline: a ``Compose``, or what else of albumentations can be called.
        generators: of the process, which functions of a user's own in the pipeline may draw from.
        seeds_calls: whether the pipeline takes a seed with each call.
    """

    pipeline: Any
    generators: Generators
    seeds_calls: bool

    @property
    def names(self) -> tuple[str, ...]:
        inner = contents(self.pipeline)
        return tuple(map(name_of, [self.pipeline] if inner is None else inner))

    @property
    def manner(self) -> str:
        return one_at_a_time(self.generators) if self.generators else in_threads("has generators of its own")

    def run(self, value: Any, key: int) -> Any:
        image = np.ascontiguousarray(as_pixels(value))
        with alone(self.generators):
            seed(self.generators, key)
            if self.seeds_calls:
                result = guarded(self.pipeline, image=image, invocation_seed=key)
            else:
                own = self._own_copy()
                own.set_random_state(generator(key), random.Random(key))
                result = guarded(own, image=image)
        try:
            return result["image"]
        except (KeyError, TypeError):
            raise TransformError(f"transform {name_of(self.pipeline)} returned no 'image'") from None

    def _own_copy(self) -> Any:
        """Return this thread's copy of the pipeline."""
        copies: WeakKeyDictionary[AlbumentationsStage, Any] | None = getattr(_COPIES, "of", None)
        if copies is None:
            copies = _COPIES.of = WeakKeyDictionary()
        if self not in copies:
            copies[self] = copy.deepcopy(self.pipeline)
        return copies[self]


def stage_of(operations: Sequence[Any]) -> AlbumentationsStage:
    """Return the stage that runs some operations, or one pipeline, in a row."""
    compose = sys.modules["albumentations"].Compose
    whole = operations[0]
    if len(operations) > 1 or not isinstance(whole, compose):
        quiet = {"telemetry": False} if "telemetry" in inspect.signature(compose).parameters else {}
        whole = compose(copy.deepcopy(list(operations)), **quiet)
    seeds_calls = "invocation_seed" in inspect.signature(type(whole).__call__).parameters
    if not seeds_calls and not hasattr(whole, "set_random_state"):
        raise ConfigError(
            f"{name_of(whole)} of this albumentations has no generators of its own, which can be set for each sample;"
            " install albumentations 2.0 or AlbumentationsX"
        )
    return AlbumentationsStage(whole, _generators_of(whole), seeds_calls)


def _generators_of(operation: Any) -> Generators:
    """Return the process's generators, if a function of a user's own may draw from them."""
    if not is_albumentations(operation) or type(operation).__name__ == "Lambda":
        return ALL
    return NONE.union(*(_generators_of(inner) for inner in getattr(operation, "transforms", ())))
