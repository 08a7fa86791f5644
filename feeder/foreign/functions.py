"""What runs on one sample at a time: the rest of a foreign pipeline, and a user's own functions.

What a function receives:

==============================  =======================================================================================
an operation of torchvision     what it would get behind an ImageFolder: a PIL image, or, in a pipeline of v2 that never
                                converts, ``tv_tensors.Image`` (3, H, W) uint8; see `feeder.foreign.torchvision`
an operation of albumentations  ``image=``, (H, W, 3) uint8; of what it returns, ``["image"]`` goes on
any other function              first in line, the pixels, an (H, W, 3) uint8 array of its own; else what the one before
                                returned
==============================  =======================================================================================

A function that has a parameter called ``rng`` gets a `numpy.random.Generator` there, seeded for this sample and this
place in line; it runs in many threads at once. Any other may draw from `random`, `numpy.random` and torch; it runs
alone, see `feeder.foreign.seeding`.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from feeder.errors import ConfigError, FeederError, TransformError
from feeder.foreign.seeding import ALL, Generators, alone, generator, seed
from feeder.keyed import draw
from feeder.tensors.samples import array_of, held, is_tensor, pixels_of, plain, tensor_of, tv_image_of

Kind = Literal[
    "array", "pil", "image", "tensor"
]  # (H, W, 3) array, PIL image, tv_tensors.Image, plain tensor (3, H, W)


_LONGEST = 300  # characters that are quoted of an error's message


class Stage(Protocol):
    """Some operations in a row that are run in the same way; sent to worker processes, used by many threads."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the operations are called."""

    @property
    def manner(self) -> str:
        """How they run, for people."""

    def run(self, value: Any, key: int) -> Any:
        """Return what the operations make of a value; a pure function of the two."""


@dataclass(frozen=True, slots=True)
class FunctionStage:
    """One function of a user's own; see the module."""

    function: Callable[..., Any]

    @property
    def names(self) -> tuple[str, ...]:
        return (name_of(self.function),)

    @property
    def manner(self) -> str:
        return in_threads("draws from its rng") if takes_rng(self.function) else one_at_a_time(ALL)

    def run(self, value: Any, key: int) -> Any:
        (result,) = call_each(self.function, [value], [key])
        return result


@dataclass(frozen=True, slots=True)
class PerSample:
    """Stages that make of a sample's pixels what goes into the batch.

    Attributes:
        stages: in their order.
        receives: what the first of them gets.
    """

    stages: tuple[Stage, ...]
    receives: Kind

    def __call__(self, pixels: NDArray[np.uint8], key: int) -> Any:
        """Return an array, or a tensor where the last operation made one, of any shape.

        Args:
            pixels: (H, W, 3) uint8, which operations may change, and of which the result may be a view.
            key: 64 bits; the result depends on pixels and key alone.

        Raises:
            TransformError: an operation raised, or the last one returned neither array, tensor nor PIL image.
        """
        value: Any = shown_as(self.receives, pixels)
        for stage, own in zip(self.stages, draw(key, np.arange(len(self.stages))).tolist(), strict=True):
            value = stage.run(value, own)
        if is_tensor(value):
            if array_of(value) is None:
                lacking = value.dtype if str(value.layout) == "torch.strided" else value.layout
                raise TransformError(
                    f"transform {self.names[-1]} returned {str(lacking).removeprefix('torch.')}, which arrays lack;"
                    " give back float32"
                )
            return plain(value)
        if isinstance(value, np.ndarray):
            array = held(value)
            if array is None:
                raise TransformError(
                    f"transform {self.names[-1]} returned an array of {value.dtype}, which no batch holds; give back"
                    " numbers, such as float32"
                )
            return array
        if _is_pil(value):
            return np.asarray(value)
        raise TransformError(
            f"transform {self.names[-1]} returned {type(value).__name__}; give back an array, a tensor or a PIL image"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What the operations are called, in order."""
        return tuple(name for stage in self.stages for name in stage.names)

    def __repr__(self) -> str:
        return f"PerSample({', '.join(self.names)})"

    def __reduce__(self) -> tuple[Any, ...]:
        check_sendable(self.stages, "transform")
        return PerSample, (self.stages, self.receives)


def shown_as(kind: Kind, pixels: NDArray[Any]) -> Any:
    """Return (H, W, 3) pixels as the type that an operation expects; only PIL images are copies."""
    match kind:
        case "array":
            return pixels
        case "pil":
            if pixels.dtype != np.uint8:
                raise ConfigError("an operation that takes PIL images stands behind Normalize; put Normalize last")
            from PIL import Image

            return Image.fromarray(np.ascontiguousarray(pixels))
        case "image":
            return tv_image_of(pixels)
        case "tensor":
            return tensor_of(pixels)


def as_pixels(value: Any) -> Any:
    """Return a PIL image or a (C, H, W) tensor as an array (H, W, C), anything else as it is."""
    if _is_pil(value):
        return np.asarray(value)
    return pixels_of(value) if is_tensor(value) else value


def _is_pil(value: Any) -> bool:
    """Whether a value is a PIL image; where Pillow was never imported, none is."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def in_threads(reason: str) -> str:
    """Return how operations run that need not wait for each other."""
    return f"in all threads: {reason}"


def one_at_a_time(generators: Generators) -> str:
    """Return how operations run that draw from generators of the process."""
    known = {"random": "random", "numpy": "numpy.random", "torch": "torch"}
    names = [known[name] for name in known if name in generators]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"one at a time: {listed} {'is' if len(names) == 1 else 'are'} seeded for each sample"


def name_of(function: Any) -> str:
    """Return how a user recognises a function or an operation."""
    function = function.func if isinstance(function, functools.partial) else function
    code = getattr(function, "__code__", None)
    if code is not None:
        return f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    inner = getattr(function, "transforms", None)  # of a container, in torchvision and albumentations
    if isinstance(inner, list | tuple):
        return f"{type(function).__name__}({', '.join(map(name_of, inner))})"
    return str(getattr(function, "__qualname__", type(function).__name__))


def guarded(operation: Callable[..., Any], *arguments: Any, what: str = "transform", **named: Any) -> Any:
    """Call an operation; what it raises becomes the cause of a TransformError that names it."""
    try:
        return operation(*arguments, **named)
    except FeederError:
        raise  # a dataset within the function has already said what is wrong
    except Exception as error:
        message = _shortened(str(error))
        raise TransformError(f"{what} {name_of(operation)} raised {type(error).__name__}: {message}") from error


def _shortened(message: str) -> str:
    """Return a message as a clause; the whole of it remains in the cause, which may print tensors."""
    line = " ".join(message.split()) or "no message"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


@functools.lru_cache(maxsize=1024)
def _has_rng(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C, and says nothing
        return False
    return "rng" in parameters and parameters["rng"].kind is not inspect.Parameter.POSITIONAL_ONLY


def takes_rng(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter called ``rng``, which a `functools.partial` has not filled already."""
    if isinstance(function, functools.partial) and "rng" in function.keywords:
        return False
    try:
        return _has_rng(function)
    except TypeError:  # a callable that cannot be hashed
        return _has_rng.__wrapped__(function)


def call_each(
    function: Callable[..., Any], values: Sequence[Any], keys: Sequence[int], what: str = "transform"
) -> list[Any]:
    """Return the function's result for each value, drawn with the key beside it."""
    if takes_rng(function):
        return [
            guarded(function, value, rng=generator(key), what=what) for value, key in zip(values, keys, strict=True)
        ]
    results = []
    with alone(ALL):
        for value, key in zip(values, keys, strict=True):
            seed(ALL, key)
            results.append(guarded(function, value, what=what))
    return results


def check_sendable(functions: Any, argument: str) -> None:
    """Raise ConfigError if functions are on their way to a process that is spawned, and cannot get there.

    Any other pickling is left alone: some picklers, as Ray's, manage what the standard one does not.
    """
    from multiprocessing.context import get_spawning_popen
    from multiprocessing.reduction import ForkingPickler

    if get_spawning_popen() is None:
        return
    try:
        ForkingPickler.dumps(functions)
    except Exception as error:
        raise ConfigError(
            f"{argument} holds a function that cannot be sent to a worker process ({error}); write it with def at the"
            " top of a module, in place of a lambda or a function within a function, or start workers with 'fork'"
        ) from error
