"""What becomes of each operation of a pipeline, and why."""

from dataclasses import dataclass
from typing import Literal

from feeder.foreign.functions import Kind
from feeder.transforms import Geometric

Where = Literal["engine", "batch", "per sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one operation of a user's ``transform=`` runs.

    Attributes:
        name: of the operation.
        where: "engine": planned from the index, and done while the image is decoded; "batch": one of shardfeed's own
            operations on pixels; "per sample": called for each sample by itself.
        why: the reason, how it runs, and whatever comes out differently from what the operation would do itself.
    """

    name: str
    where: Where
    why: str


@dataclass(frozen=True, slots=True)
class Lifted:
    """Done by the engine.

    Attributes:
        description: in our terms.
        difference: what comes out otherwise than from the operation itself; empty where nothing does.
    """

    description: Geometric
    difference: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Left out, since it only changes the type of a sample to this kind, which is given in that type instead."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Stays:
    """Run per sample."""

    why: str


Verdict = Lifted | Skipped | Stays
