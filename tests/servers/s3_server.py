"""A real S3 server for tests: Ceph's gateway over one monitor and one storage daemon that keeps its data in memory."""

import contextlib
import functools
import itertools
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.launching import accepts, first_that_starts, free_port, require_programs, run, running, wait_until

PACKAGES = "--no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
ACCESS_KEY, SECRET_KEY = "testkey", "testsecret123"

# Without authentication the monitor's clients must be told `crc`. tcp_nodelay saves 40 ms on many calls, and a relaxed
# region lets clients sign for any. One copy of everything and no hierarchy to choose from: there is a single daemon.
CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor_port}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_crush_chooseleaf_type = 0
osd_class_load_list = *
osd_class_default_list = *
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_data = {directory}/mon
osd_data = {directory}/osd
run_dir = {directory}/run
admin_socket = {directory}/run/$cluster-$name.asok
log_file = {directory}/$name.log
mon_cluster_log_file = {directory}/cluster.log
mon_data_avail_crit = 1
mon_data_avail_warn = 2
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_op_num_shards = 2
rgw_frontends = beast endpoint=127.0.0.1:{s3_port} tcp_nodelay=1
rgw_data = {directory}/rgw
rgw_thread_pool_size = 64
rgw_run_sync_thread = false
rgw_enable_usage_log = false
rgw_relaxed_region_enforcement = true
rgw_enable_apis = s3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Bucket:
    """An empty bucket, and what fsspec needs to reach it."""

    url: str
    storage_options: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """Where a running server answers."""

    endpoint_url: str
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which AWS's libraries, and with them every ``s3://`` URL, find this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def storage_options(self) -> dict[str, Any]:
        """The arguments of s3fs for this server."""
        return {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": self.endpoint_url}

    def make_bucket(self) -> S3Bucket:
        """Make a bucket of its own for a test."""
        import s3fs

        name = f"bucket-{next(self.numbers)}"
        s3fs.S3FileSystem(**self.storage_options).mkdir(name)
        return S3Bucket(url=f"s3://{name}", storage_options=self.storage_options)


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    """Run an empty S3 server until the block ends; it starts in about a second."""
    require_programs("S3", PROGRAMS, PACKAGES)
    with first_that_starts(_one_try) as server:
        yield server


@contextlib.contextmanager
def _one_try() -> Iterator[S3Server]:
    # The prefix is short because the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True) as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        for part in ("mon", "osd", "rgw", "run"):
            (directory / part).mkdir()
        monitor_port, s3_port, fsid = free_port(), free_port(), str(uuid.uuid4())
        configuration = directory / "ceph.conf"
        configuration.write_text(
            CONFIGURATION.format(fsid=fsid, directory=directory, monitor_port=monitor_port, s3_port=s3_port)
        )
        conf = ["-c", str(configuration)]

        def start(port: int | None, *command: str) -> None:
            log = directory / f"{command[0]}.out"
            process = stack.enter_context(running([*command, *conf, "-f"], log=log))
            if port is not None:
                wait_until(functools.partial(accepts, port), process, log)

        monmap = str(directory / "monmap")
        run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", monmap])
        run(["ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", "/dev/null"])
        start(monitor_port, "ceph-mon", "-i", "a")
        storage_id = str(uuid.uuid4())
        run(["ceph", *conf, "--connect-timeout", "20", "osd", "new", storage_id])
        run(["ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", storage_id])
        start(None, "ceph-osd", "-i", "0")
        keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
        run(["radosgw-admin", *conf, "user", "create", "--uid", "test", "--display-name", "test", *keys])
        start(s3_port, "radosgw", "-n", "client.rgw.a")
        yield S3Server(endpoint_url=f"http://127.0.0.1:{s3_port}")
