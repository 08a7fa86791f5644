"""A real Redis server for tests."""

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.launching import first_that_starts, free_port, require_programs, running, wait_until

PACKAGES = "redis-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """Where a running server listens."""

    port: int
    socket_path: Path

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket_path}?db=0"


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """Run a Redis server that keeps nothing on disk until the block ends.

    Args:
        options: further words of its command line, such as ``"--maxmemory", "1mb"``.
    """
    require_programs("Redis", ["redis-server"], PACKAGES)
    with first_that_starts(lambda: _one_try(options)) as server:
        yield server


@contextlib.contextmanager
def _one_try(options: tuple[str, ...]) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="redis-") as name:
        directory = Path(name)
        server = RedisServer(port=free_port(), socket_path=directory / "redis.sock")
        log = directory / "log"
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(server.port), "--dir", name]
        command += ["--unixsocket", str(server.socket_path), "--save", "", "--appendonly", "no", *options]
        with running(command, log=log) as process:
            # The socket is a file of this server alone; the port might be answered by somebody else.
            wait_until(lambda: _listens(server.socket_path), process, log)
            yield server


def _listens(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(16) == b"+PONG\r\n"
    return False
