"""The servers that other tests rely on: they are real, answer, and stand alone."""

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.servers.launching import ProgramMissingError, require_programs
from tests.servers.redis_server import RedisServer, running_redis
from tests.servers.s3_server import S3Bucket


def test_redis_keeps_what_it_is_given(redis_client: Any) -> None:
    redis_client.set("chunk", b"\x00\xff")
    assert redis_client.get("chunk") == b"\x00\xff"


def test_redis_answers_on_its_unix_socket(redis_client: Any, redis_server: RedisServer) -> None:
    redis_client.set("key", b"value")
    with pytest.importorskip("redis").Redis.from_url(redis_server.socket_url) as client:
        assert client.get("key") == b"value"


def test_each_redis_server_has_its_own_data_and_options(redis_client: Any) -> None:
    redis_client.set("key", b"value")
    with (
        running_redis("--maxmemory", "5mb") as other,
        pytest.importorskip("redis").Redis.from_url(other.url) as client,
    ):
        assert client.get("key") is None
        assert client.config_get("maxmemory") == {"maxmemory": str(5 << 20)}


def test_s3_keeps_what_it_is_given(s3_bucket: S3Bucket) -> None:
    import fsspec

    files, root = fsspec.url_to_fs(s3_bucket.url, **s3_bucket.storage_options)
    files.pipe_file(f"{root}/train/shard-000000.tar", b"0123456789")
    assert files.cat_file(f"{root}/train/shard-000000.tar", start=2, end=5) == b"234"
    assert files.ls(f"{root}/train", detail=False, refresh=True) == [f"{root}/train/shard-000000.tar"]


def test_s3_urls_work_in_another_process_without_options(s3_bucket: S3Bucket) -> None:
    program = (
        f"import fsspec; files, root = fsspec.url_to_fs({s3_bucket.url!r}); files.pipe_file(root + '/key', b'value');"
        "print(files.cat_file(root + '/key'))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.stdout == "b'value'\n", answer.stderr


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(ProgramMissingError) as caught:
        require_programs("S3", [sys.executable, "no-such-gateway"], "radosgw")
    assert str(caught.value) == "S3 needs no-such-gateway; on Debian: apt-get install radosgw"


@pytest.mark.parametrize(("required", "outcome"), [("1", "1 error"), ("0", "1 skipped")])
def test_missing_servers_skip_unless_they_are_required(required: str, outcome: str) -> None:
    """The suite runs once more in another process that finds no program at all."""
    environment = {**os.environ, "PATH": "/nonexistent", "FEEDER_REQUIRE_SERVERS": required}
    environment.pop("PYTEST_XDIST_WORKER", None)
    test = f"{__file__}::test_redis_keeps_what_it_is_given"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert outcome in done.stdout.splitlines()[-1]
    assert "Redis needs redis-server; on Debian: apt-get install redis-server" in done.stdout
