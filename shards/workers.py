"""Worker processes of a build: shards written in parallel, none outliving the build.

Workers are spawned, not forked, so that they inherit no threads (those of fsspec's event loop among them) and no
descriptors. Each holds the claim on the destination with its parent and dies with it, so nobody writes into a
destination that another build has claimed.

When a build is interrupted, workers finish the shards that they are writing, since those are kept. When it is
interrupted again meanwhile, they end at once.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from feeder.interrupts import workers_ignore_interrupts
from feeder.shards.destinations.protocol import Destination
from feeder.shards.errors import DestinationError
from feeder.shards.packing import Advance, ShardTask, WrittenShard, write_shard

Task = TypeVar("Task")
Result = TypeVar("Result")

_QUEUED_PER_WORKER = 2  # one being written and one waiting: tasks hold paths, and there may be millions


def write_shards(
    tasks: Iterable[ShardTask], workers: int, folder: Destination, advance: Advance
) -> Generator[tuple[ShardTask, WrittenShard], None, None]:
    """Yield each task with its shard, in any order, as they get ready; closing it stops the workers.

    Args:
        tasks: one a shard.
        workers: processes; with 1 the shards are written in this process.
        folder: the claimed destination.
        advance: called with what is done.

    Raises:
        DestinationError: a shard cannot be written, or a worker died.
        SourceError: what `feeder.shards.packing.write_shard` raises for its source.
    """
    if workers == 1:
        for task in tasks:
            yield task, write_shard(task, advance)
        return
    with contextlib.closing(run_tasks(write_shard, tasks, workers, folder.hold)) as finished:
        for task, shard in finished:
            advance(len(task.table), size_bytes=task.table.size_bytes)
            yield task, shard


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, hold: Callable[[], None]
) -> Generator[tuple[Task, Result], None, None]:
    """Yield (task, function(task)) in any order as they get ready; closing it stops the workers.

    Args:
        function: one of a module, so that it can be sent to processes.
        tasks: its arguments.
        workers: processes; with 1 all is done in this process.
        hold: called first in each process: holds the claim on the destination for its life, or raises
            `DestinationError`; it is sent to processes, too.

    Raises:
        DestinationError: a worker died.
    """
    if workers == 1:
        for task in tasks:
            yield task, function(task)
        return
    context = multiprocessing.get_context("spawn")
    life, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(hold, life))
    try:
        try:
            yield from _finished(pool, function, tasks, workers * _QUEUED_PER_WORKER)
        finally:
            pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise DestinationError(
            "a worker process died; if the machine ran out of memory, run it again with fewer --workers"
        ) from error
    finally:
        # A second interrupt ends the orderly shutdown half-way; workers that nobody tells to stop would be waited for
        # for ever at the interpreter's end.
        ours.close()
        life.close()


def _finished(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Iterable[Task], in_flight: int
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) as they get ready, with at most `in_flight` tasks submitted at a time."""
    pending: dict[Future[Result], Task] = {}
    remaining = iter(tasks)
    while True:
        while len(pending) < in_flight and (task := next(remaining, None)) is not None:
            with workers_ignore_interrupts():  # submitting starts them
                pending[pool.submit(function, task)] = task
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()


def _start_worker(hold: Callable[[], None], life: Connection) -> None:
    """Prepare a worker process: hold the claim for its lifetime, and die with the parent or when that closes `life`.

    If the parent has died or given the destination up meanwhile, there is nothing to do and nobody to tell.
    """
    parent = multiprocessing.parent_process()
    try:
        hold()
    except DestinationError:
        os._exit(1)
    if parent is None or not parent.is_alive():  # asked with the claim held: no other build can claim it any more
        os._exit(1)
    threading.Thread(target=_die_with, args=(life,), daemon=True).start()


def _die_with(life: Connection) -> None:
    with contextlib.suppress(Exception):
        life.poll(None)  # nothing is ever sent: readable is the end
    os._exit(1)
