"""Transforms of torchvision, v1 and v2: which of them the engine can do in their place, and how the rest runs.

Nothing here imports torchvision: an operation is known by the module and the name of its class. A subclass of a user's
own is therefore not taken for what it derives from.

An operation of torchvision does one thing to a PIL image and another to a tensor, and a pipeline is applied to what the
dataset gives. So what a sample is at each place is followed from the front. It starts as a PIL image, as ImageFolder
gives it, if a conversion from PIL images comes (``ToImage``, ``PILToTensor``, ``ToTensor``) or the transforms are v1's,
and as a ``tv_tensors.Image`` if they are v2's and convert nothing, or begin with what works on tensors alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feeder.errors import ConfigError
from feeder.foreign.functions import Kind, guarded, in_threads, name_of, one_at_a_time, shown_as
from feeder.foreign.placing import Lifted, Skipped, Stays, Verdict
from feeder.foreign.seeding import ALL, NONE, TORCH, Generators, alone, seed
from feeder.transforms import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize

_FROM_PIL = frozenset({"ToImage", "PILToTensor", "ToTensor"})
_OF_TENSORS = frozenset(
    {"ConvertImageDtype", "GaussianNoise", "LinearTransformation", "Normalize", "RandomErasing", "ToDtype"}
    | {"ToPILImage", "ToPureTensor"}
)
_DRAW_NOTHING = frozenset(
    {"CenterCrop", "ConvertImageDtype", "Grayscale", "Identity", "LinearTransformation", "Normalize", "PILToTensor"}
    | {"Pad", "RGB", "Resize", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor"}
)
_SHUFFLERS = frozenset({"RandomChoice", "RandomOrder"})  # v1's draw from `random`; all else draws from torch
_CHOOSERS = _SHUFFLERS | {"Compose", "RandomApply"}  # hold other transforms
_PIL_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's integers, which torchvision takes, too
_UINT8 = "torch.uint8"


def is_torchvision(value: Any) -> bool:
    """Whether a value is an operation of torchvision's own."""
    return type(value).__module__.startswith("torchvision.transforms.")


def contents(value: Any) -> Sequence[Any] | None:
    """Return the operations of a ``Compose`` or ``nn.Sequential``, None for anything else."""
    if is_torchvision(value) and type(value).__name__ == "Compose":
        return list(value.transforms)
    if type(value).__module__ == "torch.nn.modules.container" and type(value).__name__ == "Sequential":
        return list(value)
    return None


def starting_kind(operations: Iterable[Any]) -> Kind:
    """Return what a pipeline starts with; see the module."""
    operations = list(operations)
    for operation in filter(is_torchvision, operations):
        if type(operation).__name__ in _FROM_PIL:
            return "pil"
        if type(operation).__name__ in _OF_TENSORS:
            return "image" if _is_v2(operation) else "tensor"
    first = next(filter(is_torchvision, operations), None)
    return "image" if first is not None and _is_v2(first) else "pil"


def place(operation: Any, kind: Kind) -> Verdict:
    """Say what becomes of an operation that stands in front, where a sample is of this kind."""
    name = type(operation).__name__ if is_torchvision(operation) else ""
    if name in ("RandomResizedCrop", "Resize"):
        refusal = _cannot_resample(operation, kind)
        if refusal:
            return Stays(refusal)
    try:
        match name:
            case "RandomResizedCrop":
                size, scale, ratio = tuple(operation.size), tuple(operation.scale), tuple(operation.ratio)
                return Lifted(RandomResizedCrop(size, scale, ratio, _filter_of(operation)))
            case "Resize":
                return Lifted(Resize(operation.size, _filter_of(operation)))
            case "CenterCrop":
                return Lifted(CenterCrop(tuple(operation.size)))
            case "RandomHorizontalFlip":
                return Lifted(RandomHorizontalFlip(operation.p))
    except ConfigError as error:
        return Stays(str(error))
    converted = _converted(operation, name, kind)
    return Stays("not a crop, resize or flip") if converted is None else Skipped(converted)


def _filter_of(operation: Any) -> Any:
    """Return the name of an operation's filter: an enumeration's value, Pillow's integer, or the name itself."""
    value = getattr(operation.interpolation, "value", operation.interpolation)
    name = _PIL_FILTERS.get(value, value) if isinstance(value, int) else value
    return "nearest" if name == "nearest-exact" else name


def _cannot_resample(operation: Any, kind: Kind) -> str:
    """Return why the engine cannot resample as an operation does to samples of this kind; empty if it can.

    PIL images are always antialiased. In tensors, "nearest" takes the pixel at the upper left, and "nearest-exact",
    which takes the one in the middle as PIL images do, rounds otherwise where that lies between two.
    """
    name = type(operation).__name__
    interpolation = getattr(operation.interpolation, "value", operation.interpolation)
    if getattr(operation, "max_size", None) is not None:
        return f"max_size={operation.max_size} makes images of sizes that differ"
    if kind == "pil":
        return ""
    if interpolation in ("nearest", "nearest-exact", 0):
        return f"{interpolation!r} takes other pixels of tensors than of PIL images, which engines follow"
    if operation.antialias is not True:
        return (
            f"antialias={operation.antialias} leaves out pixels of tensors, which no engine does; {name} with"
            " antialias=True would run in the engine"
        )
    return ""


def _converted(operation: Any, name: str, kind: Kind) -> Kind | None:
    """Return what an operation that only converts makes of uint8 RGB samples of a kind; None for any other."""
    v2 = name != "" and _is_v2(operation)
    match name:
        case "ToImage":
            return "image"
        case "PILToTensor" if kind == "pil":
            return "tensor"
        case "ToPureTensor":
            return "tensor" if kind == "image" else kind
        case "ToPILImage" if kind != "pil" and operation.mode in (None, "RGB"):
            return "pil"
        case "ToDtype" if str(operation.dtype) == _UINT8:
            return kind
        case "ConvertImageDtype" if str(operation.dtype) == _UINT8 and kind != "pil":
            return kind
        case "RGB" | "Identity":
            return kind
        case "PILToTensor" | "ToPILImage" if v2 and getattr(operation, "mode", None) in (None, "RGB"):
            return kind  # passes through what it does not convert, where v1 would raise
    return None


def _is_v2(operation: Any) -> bool:
    return type(operation).__module__.startswith("torchvision.transforms.v2.")


def generators_of(operation: Any) -> Generators:
    """Return which generators of the process an operation may draw from."""
    if not is_torchvision(operation):
        return ALL
    name = type(operation).__name__
    if name in _DRAW_NOTHING:
        return NONE
    if name == "Lambda":
        return ALL
    own = TORCH | {"random"} if name in _SHUFFLERS and not _is_v2(operation) else TORCH
    return own.union(*(generators_of(inner) for inner in operation.transforms)) if name in _CHOOSERS else own


@dataclass(frozen=True, slots=True)
class TorchvisionStage:
    """Operations of torchvision in a row, and functions that stand among them in a ``Compose``.

    Attributes:
        operations: in their order.
        takes: what an array is given to them as.
        generators: what they may draw from; none, and they run in all threads.
    """

    operations: tuple[Any, ...]
    takes: Kind
    generators: Generators

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name_of(operation) for operation in self.operations)

    @property
    def manner(self) -> str:
        return one_at_a_time(self.generators) if self.generators else in_threads("draws nothing")

    def run(self, value: Any, key: int) -> Any:
        if isinstance(value, np.ndarray):
            # What is not uint8 no PIL image can hold; operations of v2 would let an array pass as it is.
            value = shown_as(self.takes if value.dtype == np.uint8 else "image", value)
        with alone(self.generators):
            seed(self.generators, key)
            for operation in self.operations:
                value = guarded(operation, value)
        return value


def stage_of(operations: Sequence[Any], takes: Kind) -> TorchvisionStage:
    """Return the stage that runs some operations in a row."""
    return TorchvisionStage(tuple(operations), takes, NONE.union(*map(generators_of, operations)))
