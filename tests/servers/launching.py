"""Starting real servers for tests: find the programs, pick a port, wait until it answers, stop by handle."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

START_TIMEOUT_S = 60.0  # a second when idle; a loaded machine with two cores may need many
ATTEMPTS = 3  # another process may take a free port first
_POLL_S = 0.01

Server = TypeVar("Server")


class ProgramMissingError(Exception):
    """A server's programs are not installed; the sentence names the Debian packages."""


class ServerFailedError(Exception):
    """A server ended, or did not answer in time; its log is in the sentence."""


def require_programs(server: str, programs: Sequence[str], packages: str) -> None:
    """Raise ProgramMissingError unless all programs are found."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise ProgramMissingError(f"{server} needs {', '.join(missing)}; on Debian: apt-get install {packages}")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now; a server started on it may still lose the race."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the foreground until the block ends, its output in ``log``; it dies with this process too."""
    # setpriv (util-linux) lets the kernel end the server when a killed test run cannot.
    prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            yield process
        finally:
            process.kill()  # nothing it keeps is wanted, and an orderly end takes seconds
            process.wait()


@contextlib.contextmanager
def first_that_starts(start: Callable[[], contextlib.AbstractContextManager[Server]]) -> Iterator[Server]:
    """Enter what ``start`` returns until the block ends; try anew if the server fails, `ATTEMPTS` times in all."""
    with contextlib.ExitStack() as stack:
        for attempt in range(ATTEMPTS):
            try:
                server = stack.enter_context(start())
                break
            except ServerFailedError:
                if attempt == ATTEMPTS - 1:
                    raise
        yield server


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``ready`` says so; raise ServerFailedError when the process ends first, or after START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            what = f"ended with {process.returncode}" if ended else f"did not answer in {START_TIMEOUT_S:.0f} s"
            words = log.read_text(errors="replace")[-2000:]
            raise ServerFailedError(f"{process.args!r} {what}; its log ends:\n{words}")
        time.sleep(_POLL_S)


def accepts(port: int) -> bool:
    """Return whether somebody listens on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def run(command: Sequence[str | Path]) -> None:
    """Run a program to its end; raise ServerFailedError with what it said when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=START_TIMEOUT_S, check=False)
    if done.returncode != 0:
        words = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
        raise ServerFailedError(f"{command!r} ended with {done.returncode}:\n{words}")
