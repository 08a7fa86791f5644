"""What a worker and the process that receives its batches say to each other, over one pair of connected sockets.

Whoever receives batches gives a generation number to each `Begin`; a worker drops what it is at and starts there, and
what it made before carries an older number, by which it is known and dropped. A batch is a pickle whose arrays stay
where they are, in slots; so messages are small, and a worker that is ahead never waits for its socket.
"""

import multiprocessing.reduction
import os
import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from feeder.stages import Counts
from feeder.workers.slots import SMALLEST_BYTES, Place, SlotMaker, SlotViews

Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # a method, its arguments by place and by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Make batches from a state on, epoch after epoch.

    Attributes:
        generation: counts these messages.
        state: of the dataset; all workers get the same.
        calls: methods of the dataset to be called before.
    """

    generation: int
    state: dict[str, Any]
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Batches of a generation were taken, and slots are not used any more."""

    generation: int
    taken: int
    slots: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The process runs, and has imported what it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A batch.

    Attributes:
        generation: of the `Begin` that it follows.
        epoch: of the batch.
        body: the pickle of the batch, or where it lies.
        buffers: where the arrays lie that are not in the pickle, in its order.
        new: number and size of slots that come with this message; their descriptors follow.
        dropped: numbers of slots that are gone.
        counts: what the worker's stages have done so far.
    """

    generation: int
    epoch: int
    body: bytes | Place
    buffers: list[Place]
    new: list[tuple[int, int]]
    dropped: list[int]
    counts: Counts

    @property
    def slots(self) -> set[int]:
        """The slots that the batch lies in."""
        places = [*self.buffers, self.body] if isinstance(self.body, Place) else self.buffers
        return {place.slot for place in places}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnd:
    """There are no more batches of an epoch from this worker."""

    generation: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Making batches of a generation ended with an exception; see `feeder.workers.failures`."""

    generation: int
    error: bytes


FromWorker = Started | Made | EpochEnd | Failed
ToWorker = Begin | Release | Stop


def send(connection: Connection, message: FromWorker | ToWorker) -> None:
    """Send a message that has no descriptors."""
    connection.send_bytes(pickle.dumps(message, protocol=5))


def receive(connection: Connection) -> Any:
    """Return the next message; EOFError or OSError where the other end is gone."""
    return pickle.loads(connection.recv_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A batch ready to be sent, with the descriptors of its new slots; ``size`` is what it takes of slots, in bytes."""

    message: Made
    descriptors: list[int]
    size: int


def pack_batch(batch: dict[str, Any], slots: SlotMaker, *, generation: int, epoch: int, counts: Counts) -> Packed:
    """Pack a batch, which is to be sent: its slots are held for the receiver from now on.

    Args:
        batch: its arrays from `SlotMaker.allocate` stay where they are, other large ones are copied into a slot.
        slots: of this worker.
        generation, epoch: of the batch.
        counts: what the worker's stages have done so far.
    """
    places: list[Place] = []
    kept: list[Any] = []  # arrays in slots, until `sent` gave these another holder

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        flat = np.frombuffer(buffer.raw(), np.uint8)
        if flat.nbytes == 0 or ((place := slots.place(flat)) is None and flat.nbytes < SMALLEST_BYTES):
            return True
        if place is None:
            place = _stored(flat, slots, kept)
        places.append(place)
        return False

    pickled = pickle.dumps(batch, protocol=5, buffer_callback=in_band)
    body: bytes | Place = pickled
    if len(pickled) >= SMALLEST_BYTES:
        body = _stored(np.frombuffer(pickled, np.uint8), slots, kept)
    new, dropped = slots.news()
    message = Made(
        generation=generation,
        epoch=epoch,
        body=body,
        buffers=places,
        new=[(number, size) for number, size, _ in new],
        dropped=dropped,
        counts=counts,
    )
    slots.sent(message.slots)
    descriptors = [descriptor for _, _, descriptor in new]
    return Packed(message=message, descriptors=descriptors, size=sum(place.length for place in places))


def send_packed(connection: Connection, packed: Packed, receiver: int) -> None:
    """Send a batch to the process ``receiver``."""
    send(connection, packed.message)
    for descriptor in packed.descriptors:
        multiprocessing.reduction.send_handle(connection, descriptor, receiver)
        os.close(descriptor)


def _stored(flat: Any, slots: SlotMaker, kept: list[Any]) -> Place:
    """Copy bytes into a slot."""
    copy = slots.allocate(flat.shape, np.uint8)
    copy[:] = flat
    kept.append(copy)
    place = slots.place(copy)
    assert place is not None
    return place


def map_new(connection: Connection, message: Made, views: SlotViews) -> None:
    """Map the slots that come with a message, and forget those that are gone; to be done at once, wanted or not."""
    for number, size in message.new:
        descriptor = multiprocessing.reduction.recv_handle(connection)
        try:
            views.add(number, size, descriptor)
        finally:
            os.close(descriptor)
    for number in message.dropped:
        views.drop(number)


def batch_of(message: Made, views: SlotViews) -> dict[str, Any]:
    """Return the batch of a message, its arrays in their slots."""
    held = {number: memoryview(views.hold(number)) for number in message.slots}  # type: ignore[arg-type]
    cut = [held[place.slot][place.offset : place.offset + place.length] for place in message.buffers]
    body = message.body
    if isinstance(body, Place):
        return dict(pickle.loads(held[body.slot][body.offset : body.offset + body.length], buffers=cut))
    return dict(pickle.loads(body, buffers=cut))
