"""What pixel transforms and mixers owe to the code that runs them, and where their random numbers come from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from feeder.keyed import UInt64Array, derive_key, draw

Params: TypeAlias = dict[str, NDArray[Any]]  # every array has the first axis n, one entry an image
Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]


@runtime_checkable
class PixelTransform(Protocol):
    """A frozen description of a change of pixels that keeps the size of the image.

    Duties: `draw` is pure NumPy and bit-identical on every machine. `apply` changes ``images`` in place, image by
    image, so that the result for one does not depend on the others; many threads call it at once on different images;
    it neither keeps state nor touches any global random generator. Descriptions can be pickled, and compare equal when
    their arguments do. One that may stand after Normalize, where images are float32, says so by a true attribute
    ``takes_normalized``.
    """

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        """Return the parameters of n images of a size, from (n,) keys of this transform alone."""
        ...

    def apply(self, images: Pixels, params: Params) -> None:
        """Change (n, H, W, 3) images in place."""
        ...


@runtime_checkable
class Mixer(Protocol):
    """A frozen description of how the images of a batch are mixed with one another; it stands after all else.

    Duties as those of `PixelTransform`, but for the batch: `draw` gets one key, `mix` the whole batch of a rank.
    """

    @property
    def num_classes(self) -> int:
        """The length of a target."""
        ...

    def draw(self, keys: UInt64Array, height: int, width: int) -> Params:
        """Return the parameters of a batch from its (1,) key."""
        ...

    def mix(
        self, images: Pixels, labels: NDArray[np.int64], valid: NDArray[np.bool_], params: Params
    ) -> NDArray[np.float32]:
        """Mix (B, …, H, W, 3) images in place, and return (B, num_classes) targets for their (B,) labels."""
        ...


def operation_keys(transforms: Iterable[PixelTransform | Mixer], keys: UInt64Array) -> list[UInt64Array]:
    """Return, for each transform of a list, the (n,) keys that its `draw` is given.

    The stream of a transform is ``draw(keys, derive_key("operation." + name))``, with the name of `numbered_name`: what
    it draws does not depend on which others stand in the list.

    Args:
        transforms: the list.
        keys: (n,) keys of the output images, or of the transform whose list it is.
    """
    seen: Counter[str] = Counter()
    streams = []
    for item in transforms:
        kind = type(item).__name__
        streams.append(operation_stream(item, seen[kind], keys))
        seen[kind] += 1
    return streams


def operation_stream(item: object, occurrence: int, keys: UInt64Array) -> UInt64Array:
    """Return the keys of one operation; ``occurrence`` says how many of its class stand before it."""
    return draw(keys, derive_key(f"operation.{numbered_name(item, occurrence)}"))


def numbered_name(item: object, occurrence: int) -> str:
    """Return the name of an operation's class, numbered from the second one on."""
    name = type(item).__name__
    return f"{name} {occurrence + 1}" if occurrence else name


def rows_of(params: Params, rows: slice | NDArray[np.int64]) -> Params:
    """Return the parameters of some of the images."""
    return {name: values[rows] for name, values in params.items()}


def nested(parts: Sequence[Params]) -> Params:
    """Return the parameters of several transforms as one dictionary: those of the i-th are named ``"i.name"``."""
    return {f"{index}.{name}": values for index, part in enumerate(parts) for name, values in part.items()}


def part_of(params: Params, index: int) -> Params:
    """Return the parameters of the ``index``-th transform, as `nested` named them."""
    prefix = f"{index}."
    return {name.removeprefix(prefix): values for name, values in params.items() if name.startswith(prefix)}
