"""Transforms that are not ours: pipelines of torchvision and albumentations, and any function.

`split` parts a pipeline. Its leading crop, resize and flip become our descriptions, with exactly their arguments: the
engine executes them while it decodes, from boxes drawn before a byte was read. Conversions of type among them are left
out. What follows runs per sample, as it is and in its own order, seeded; see `feeder.foreign.functions` for how.

1. Nothing is moved past an operation that is not one of these.
2. An operation that the engine cannot execute as it stands (a filter that it does not have, sizes that differ) is left
   per sample, with all behind it.
3. What the engine executes must give all images one size. So ``Resize(256)`` that a random crop follows is left, too.
4. What comes out otherwise than from the operation itself, which only albumentations' resampling does, is logged.
5. If nothing is taken over, the whole image goes through the pipeline.

`describe` says of each operation where it runs, and why. If the code disagrees with these lines, the code is wrong.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any, Literal

from feeder.augment import compile_transforms
from feeder.errors import ConfigError
from feeder.foreign import albumentations, torchvision
from feeder.foreign.field_functions import FieldFunction, apply_field, batched
from feeder.foreign.functions import FunctionStage, Kind, PerSample, Stage, name_of
from feeder.foreign.placing import Lifted, Placement, Skipped, Stays, Verdict
from feeder.transforms import GEOMETRIC, Geometric

__all__ = [
    "FieldFunction",
    "PerSample",
    "Placement",
    "apply_field",
    "batched",
    "describe",
    "per_sample",
    "split",
]

Family = Literal["ours", "torchvision", "albumentations", "function", "per sample"]

_log = logging.getLogger("feeder")


@dataclass(frozen=True, slots=True)
class _Item:
    """One operation, and whose it is; a function within torchvision's ``Compose`` counts as torchvision's."""

    operation: Any
    family: Family


@dataclass(frozen=True, slots=True)
class _Plan:
    """How items are parted.

    Attributes:
        items: all operations, in order.
        verdicts: of the first of them, as far as was looked.
        taken: how many the engine does, or need not be done.
        receives: what the first operation after these gets.
    """

    items: Sequence[_Item]
    verdicts: Sequence[Verdict]
    taken: int
    receives: Kind


def split(transform: Any) -> tuple[list[Geometric], list[Any]]:
    """Part a user's ``transform=`` into what the engine does and what follows.

    Args:
        transform: one operation, a ``Compose`` of torchvision (v1 or v2) or albumentations, an ``nn.Sequential``, or a
            list of these, of functions, and of our own descriptions.

    Returns:
        Our geometric descriptions, none of which may be foreign any more; and the operations that follow, in order: our
        own, and between them `PerSample` for each run of others. The first list is empty if the whole image is to go
        through the second. Our own descriptions are not checked here, nor is their order.

    Raises:
        ConfigError: something in it is no operation.
    """
    plan = _plan(_items(transform))
    geometry: list[Geometric] = []
    for item, verdict in zip(plan.items[: plan.taken], plan.verdicts, strict=False):
        if isinstance(verdict, Lifted):
            geometry.append(verdict.description)
            if verdict.difference:
                _log.warning(
                    "%s of albumentations runs in the engine: %s; feeder.per_sample(transform) would leave it as it is",
                    name_of(item.operation),
                    verdict.difference,
                )
    return geometry, _following(plan)


def per_sample(transform: Any) -> PerSample:
    """Return a transform that runs as it is, on the whole stored image of each sample; nothing goes to the engine.

    Args:
        transform: as for `split`, without our own descriptions.
    """
    items = _items(transform)
    if any(item.family in ("ours", "per sample") for item in items):
        raise ConfigError("per_sample got an operation of shardfeed's own; give it those of others, or a function")
    return _per_sample(items, _receives(items))


def describe(transform: Any) -> tuple[Placement, ...]:
    """Say of each operation of a user's ``transform=`` where it runs, and why; arguments as for `split`."""
    plan = _plan(_items(transform))
    manners = _manners(plan)
    placements = []
    stopped_by = ""
    for number, item in enumerate(plan.items):
        name = name_of(item.operation)
        verdict = plan.verdicts[number] if number < len(plan.verdicts) else None
        if number < plan.taken:
            placements.append(Placement(name=name, where="engine", why=_why_taken(verdict)))
            continue
        if item.family == "ours":
            placements.append(Placement(name=name, where="batch", why="one of shardfeed's own"))
            continue
        why = f"stands behind {stopped_by}"
        if isinstance(verdict, Stays):
            why = verdict.why
        elif verdict is not None:
            why = "up to here, images would be of sizes that differ"
        stopped_by = stopped_by or name
        placements.append(Placement(name=name, where="per sample", why=f"{why}; {manners[number]}"))
    return tuple(placements)


def _why_taken(verdict: Verdict | None) -> str:
    match verdict:
        case Lifted(description=description, difference=difference):
            return f"as {description}{'; ' if difference else ''}{difference}"
        case _:
            return "only converts; samples are RGB uint8 already"


def _items(transform: Any) -> list[_Item]:
    """Return the operations of a pipeline, of what is nested in it, too."""
    items = list(_flattened(transform, "function"))
    if not items:
        raise ConfigError("got no transform; give one, such as feeder.RandomResizedCrop(224), or a list of them")
    return items


def _flattened(value: Any, family_of_functions: Family) -> Iterator[_Item]:
    inner = list(value) if isinstance(value, list | tuple) else None
    if inner is None and (inner := torchvision.contents(value)) is not None:  # type: ignore[assignment]
        family_of_functions = "torchvision"
    if inner is None:
        inner = albumentations.contents(value)  # type: ignore[assignment]
    if inner is None:
        yield _Item(value, _family(value, family_of_functions))
        return
    for item in inner:
        yield from _flattened(item, family_of_functions)


def _family(value: Any, family_of_functions: Family) -> Family:
    """Return what a value is an operation of."""
    if isinstance(value, type):
        raise ConfigError(f"{value.__name__} was given as a class: write {value.__name__}(…) with its arguments")
    if inspect.isfunction(value) and str(value.__module__).startswith("feeder."):  # None where it was made by exec
        raise ConfigError(f"{value.__name__} of {value.__module__} was given itself: write {value.__name__}(…)")
    if isinstance(value, PerSample):
        return "per sample"
    if type(value).__module__.startswith("feeder.") or (
        not callable(value) and callable(getattr(value, "draw", None)) and callable(getattr(value, "apply", None))
    ):
        return "ours"
    if torchvision.is_torchvision(value):
        return "torchvision"
    if albumentations.is_albumentations(value):
        return "albumentations"
    if not callable(value):
        raise ConfigError(
            f"{value!r} is no transform; give operations of feeder, torchvision or albumentations, or functions of"
            " pixels"
        )
    return family_of_functions


def _plan(items: Sequence[_Item]) -> _Plan:
    """Decide how many of the items the engine does."""
    first = kind = _receives(items)
    verdicts: list[Verdict] = []
    for item in items:
        verdicts.append(_verdict(item, kind))
        match verdicts[-1]:
            case Skipped(kind=kind):
                pass
            case Stays():
                break
    taken = _longest(items, verdicts)
    conversions = [verdict.kind for verdict in verdicts[:taken] if isinstance(verdict, Skipped)]
    if conversions:
        receives = conversions[-1]
    elif first != "array" and _leading(items[taken:]):
        receives = first  # the same pipeline of torchvision goes on
    else:
        receives = _receives(items[taken:])
    return _Plan(items, verdicts, taken, receives)


def _verdict(item: _Item, kind: Kind) -> Verdict:
    match item.family:
        case "torchvision":
            return torchvision.place(item.operation, kind)
        case "albumentations":
            return albumentations.place(item.operation)
        case "ours" if isinstance(item.operation, GEOMETRIC):
            return Lifted(item.operation)
        case "function":
            return Stays("a function, of which nothing is known")
        case _:
            return Stays("is to run as it is")


def _longest(items: Sequence[_Item], verdicts: Sequence[Verdict]) -> int:
    """Return how many of the first items the engine does: the most that give all images one size, and all of ours."""
    lifted = [number for number, verdict in enumerate(verdicts) if isinstance(verdict, Lifted)]
    ours = max((number + 1 for number in lifted if items[number].family == "ours"), default=0)
    taken = ours
    for last in reversed(lifted):
        if last >= ours and _compiles(
            [verdict.description for verdict in verdicts[: last + 1] if isinstance(verdict, Lifted)]
        ):
            taken = last + 1
            break
    while 0 < taken < len(verdicts) and isinstance(verdicts[taken], Skipped):
        taken += 1
    return taken


def _compiles(geometry: Sequence[Geometric]) -> bool:
    try:
        compile_transforms(geometry)
    except ConfigError:
        return False
    return True


def _receives(items: Sequence[_Item]) -> Kind:
    """Return what the first of some operations gets that is not one of ours, where none has converted it."""
    leading = _leading(items)
    return torchvision.starting_kind(leading) if leading else "array"


def _leading(items: Sequence[_Item]) -> list[Any]:
    """Return the operations of torchvision that come first, but for our own."""
    foreign = (item for item in items if item.family != "ours")
    return [item.operation for item in takewhile(lambda item: item.family == "torchvision", foreign)]


def _following(plan: _Plan) -> list[Any]:
    """Return the operations behind those of the engine, each run of foreign ones as one `PerSample`."""
    operations: list[Any] = []
    receives: Kind | None = plan.receives
    for foreign, group in groupby(plan.items[plan.taken :], key=lambda item: item.family not in ("ours", "per sample")):
        items = list(group)
        if foreign:
            operations.append(_per_sample(items, receives or _receives(items)))
        else:
            operations += [item.operation for item in items]
        receives = None
    return operations


def _per_sample(items: Sequence[_Item], receives: Kind) -> PerSample:
    """Return what runs foreign operations one after the other."""
    stages: list[Stage] = []
    for family, group in groupby(items, key=lambda item: item.family):
        operations = [item.operation for item in group]
        if family == "torchvision":
            stages.append(torchvision.stage_of(operations, torchvision.starting_kind(operations)))
        elif family == "albumentations":
            stages.append(albumentations.stage_of(operations))
        else:
            stages += [FunctionStage(operation) for operation in operations]
    return PerSample(tuple(stages), receives)


def _manners(plan: _Plan) -> dict[int, str]:
    """Return how the operations run that run per sample, by number."""
    manners = [""] * plan.taken
    for operation in _following(plan):
        if isinstance(operation, PerSample):
            manners += [stage.manner for stage in operation.stages for _ in stage.names]
        else:
            manners.append("")
    return dict(enumerate(manners))
