"""Fixtures for all tests: images, and real servers that skip with a reason where their programs are not installed.

With FEEDER_REQUIRE_SERVERS=1 in the environment a missing server fails the test. Servers are started on first use, once
in each xdist worker, on ports of their own, and stopped by their handle.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.images import write_image_folder
from tests.servers.launching import ProgramMissingError
from tests.servers.redis_server import RedisServer, running_redis
from tests.servers.s3_server import S3Bucket, S3Server, running_s3

# A shell without job control starts background commands with Ctrl-C ignored, which is inherited: not by these tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of class folders with real photographs, to be read only; skips where it is absent."""
    if not PHOTOS.is_dir():
        pytest.skip(f"there are no photographs at {PHOTOS}")
    return PHOTOS


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that are started within a job of many ranks are no rank of it."""
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") or name.startswith(("SLURM_", "OMPI_COMM_WORLD_")):
            monkeypatch.delenv(name)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three class folders with twelve small JPEGs each, for this test alone."""
    return write_image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis server, on a TCP port and a unix socket."""
    try:
        with running_redis() as server:
            yield server
    except ProgramMissingError as error:
        _skip_or_fail(error)


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[Any]:
    """A client of the real server, which is emptied after the test."""
    client = pytest.importorskip("redis").Redis.from_url(redis_server.url)
    with client:
        yield client
        client.flushall()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server: Ceph's gateway over one storage daemon in memory."""
    try:
        with running_s3() as server:
            yield server
    except ProgramMissingError as error:
        _skip_or_fail(error)


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """A new bucket of the real server; ``s3://`` URLs reach the server in this process and in those it starts."""
    pytest.importorskip("s3fs")
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.make_bucket()


def _skip_or_fail(error: ProgramMissingError) -> NoReturn:
    if os.environ.get("FEEDER_REQUIRE_SERVERS") == "1":
        pytest.fail(f"FEEDER_REQUIRE_SERVERS=1, and {error}")
    pytest.skip(str(error))
