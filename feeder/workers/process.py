"""One worker process, seen from the process that receives its batches: started, heard, watched, stopped.

A process that is forked from the receiving one, such as another loader's worker, closes what it got of connections and
memory, so that it keeps neither alive.
"""

import contextlib
import errno
import multiprocessing.connection
import os
import pickle
import signal
import time
import weakref
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from feeder.errors import ConfigError, StalledError, WorkerDiedError
from feeder.interrupts import workers_ignore_interrupts
from feeder.memory import SharedMemory
from feeder.resources import memory_bytes
from feeder.workers.protocol import Begin, FromWorker, Made, Release, Stop, map_new, receive, send
from feeder.workers.record import WorkRecord
from feeder.workers.serving import Assignment, Streams, serve
from feeder.workers.slots import SlotViews

# A batch takes seconds at most. Storage that hangs comes back within a minute, and a worker that was stopped for one
# shall go on; whoever waits for more than two pays for idle accelerators.
STALL_LIMIT_S = 120.0
TICK_S = 1.0  # between looks at a worker that is waited for
STOP_GRACE_S = (
    2.0  # a worker that hears ends in milliseconds; one that is stopped or stuck in native code does not hear
)
KILL_LIMIT_S = 5.0  # the kernel ends a killed process at once, unless it hangs in a system call
DUMP_LIMIT_S = 2.0  # for a stalled worker to write its stacks

_CAUSES = {
    signal.SIGBUS: "memory or a mapped file was cut away under it",
    signal.SIGTERM: "somebody, such as the scheduler, ended it",
}
_NATIVE_CRASH = "native code crashed: a library that a transform uses, or one that decodes"


class Worker:
    """A worker process.

    Args:
        dataset: what makes the batches; goes there by fork or pickle.
        assignment: its part of the work.
        context: how to start it.
        prepare: called with each new piece of memory that batches lie in.

    Raises:
        ConfigError: the dataset cannot be pickled, and this way of starting a process needs that.
    """

    def __init__(
        self,
        dataset: Streams,
        assignment: Assignment,
        context: BaseContext,
        prepare: Callable[[SharedMemory], None] | None,
    ) -> None:
        self.number = assignment.worker
        self.views = SlotViews(prepare)
        self._work = WorkRecord()
        self._connection, theirs = multiprocessing.connection.Pipe()
        _here.add(self)
        process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(dataset, theirs, self._work, assignment), name="feeder-worker", daemon=True
        )
        try:
            if multiprocessing.current_process().daemon:
                raise ConfigError(
                    "this process is a daemon of multiprocessing, which may start no others: pass workers=0, or start"
                    " it with daemon=False"
                )
            with workers_ignore_interrupts():
                process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self._connection.close()
            raise ConfigError(
                f"the dataset cannot be sent to a worker process: {error}; define what it uses at the top of a module,"
                " or pass start_method='fork'"
            ) from error
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._process = process

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid or 0

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return at once."""
        return self._connection.poll()

    def tell(self, message: Begin | Release) -> None:
        """Send a message; a worker that is gone is noticed when something is received from it."""
        with contextlib.suppress(OSError):
            send(self._connection, message)

    def receive(self) -> FromWorker:
        """Wait for the next message; slots that come with it are mapped.

        Raises:
            WorkerDiedError: the process has ended.
            StalledError: it has made no progress for `STALL_LIMIT_S`, while this process was waiting.
        """
        waited, progress = 0.0, self._work.progress
        while True:
            start = time.monotonic()
            if multiprocessing.connection.wait([self._connection, self._process.sentinel], TICK_S):
                return self._received()
            if self._process.exitcode is not None:  # a process that it started may hold what is waited for
                return self._received()
            # a tick counts for no more than it should have lasted: this process may have been stopped itself
            waited += min(time.monotonic() - start, 2 * TICK_S)
            if progress != (progress := self._work.progress):
                waited = 0.0
            if waited >= STALL_LIMIT_S:
                raise StalledError(self._stall())

    def _received(self) -> FromWorker:
        """Return a message that was sent, if there still is one."""
        try:
            if not self._connection.poll():
                raise WorkerDiedError(self._last_words())
            message: FromWorker = receive(self._connection)
            if isinstance(message, Made):
                map_new(self._connection, message, self.views)
            return message
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise ConfigError(
                    "this process has as many files open as it may, and the memory of a new batch comes over as one:"
                    " close some, or raise the limit (ulimit -n)"
                ) from None
            raise WorkerDiedError(self._last_words()) from None

    def _last_words(self) -> str:
        """Return the sentence for a process that has ended."""
        self._process.join(KILL_LIMIT_S)  # its socket closes a moment before
        code = self._process.exitcode
        name = f"worker {self.number} of the loader (process {self.pid})"
        if code is None and not _process_state(self.pid):
            how = "has ended, and its exit code went elsewhere: SIGCHLD is ignored, or something waits for all children"
        elif code is None:
            how = "closed its connection and still runs"
        elif code > 0 and self._work.is_starting:
            how = (
                f"ended with exit code {code} and a traceback: what the dataset uses must be defined at the top of a"
                " module that can be imported, and a script that starts workers by spawn or forkserver guarded by"
                " if __name__ == '__main__'"
            )
        elif code >= 0:
            how = f"ended by itself with exit code {code}: something in it calls exit"
        else:
            how = f"was killed by {_signal_name(-code)}: {_cause(-code)}"
        return f"{name} {how}; it was {self._work.describe()}{_stacks(self._work.dump())}"

    def _stall(self) -> str:
        """Return the sentence for a process that makes no progress, with where its threads stand."""
        state = _process_state(self.pid)
        stacks = ""
        if state == "T":
            hint = "it is stopped: send it SIGCONT, or find out who sent it SIGSTOP"
        else:
            hint = (
                "check the storage that holds the dataset, and the functions that the transform calls; where stacks end"
                " in a library that had threads before workers were forked, such as OpenCV, start_method='forkserver'"
                " helps"
            )
            stacks = _stacks(self._dump_now())
        return (
            f"worker {self.number} of the loader (process {self.pid}) made no progress for {STALL_LIMIT_S:.0f} s; it is"
            f" {self._work.describe()}; {hint}{stacks}"
        )

    def _dump_now(self) -> str:
        """Return where the threads of the process stand."""
        before = self._work.dumped_bytes()
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + DUMP_LIMIT_S
        size = before
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if size == (size := self._work.dumped_bytes()) and size > before:
                break
        return self._work.dump()

    def ask_to_stop(self) -> None:
        """Tell the process to end, by message and by closing the connection."""
        with contextlib.suppress(OSError):
            send(self._connection, Stop())
        self.disconnect()

    def disconnect(self) -> None:
        """Close this process's end of the connection and forget the slots."""
        self._connection.close()
        self.views.clear()

    def kill(self) -> None:
        """End the process at once, and do not wait for that."""
        with contextlib.suppress(ValueError):  # it was joined already
            self._process.kill()

    def join(self, deadline: float) -> None:
        """Wait until the process has ended; kill it if it has not by then (``time.monotonic``)."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(KILL_LIMIT_S)
        if self._process.exitcode is not None:
            self._process.close()


_here: weakref.WeakSet[Worker] = weakref.WeakSet()


def _disconnect_all() -> None:
    for worker in list(_here):
        with contextlib.suppress(OSError):
            worker.disconnect()
    _here.clear()


os.register_at_fork(after_in_child=_disconnect_all)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _cause(number: int) -> str:
    """Return what a signal that ended a worker most often means."""
    if number == signal.SIGKILL:
        return (
            "most often the kernel because memory ran out, or an operator; this process may use"
            f" {memory_bytes() / 1e9:.1f} GB with its workers: lower prefetch or the batch size, or raise the limit"
        )
    return _CAUSES.get(signal.Signals(number), _NATIVE_CRASH) if number in _SIGNALS else _NATIVE_CRASH


_SIGNALS = {member.value for member in signal.Signals}


def _process_state(pid: int) -> str:
    """Return the state letter of a process, such as T for stopped; "" where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _stacks(dump: str) -> str:
    return f"; its threads:\n{dump}" if dump else ""
