"""The limits of a container, read from small trees of files as the kernel lays them out."""

import os
from pathlib import Path

import pytest

from feeder import resources

UNLIMITED_V1 = 9223372036854771712  # what v1 writes when there is no limit: 2**63 less a page, rounded to pages


def tree(root: Path, files: dict[str, object]) -> Path:
    """Write files below ``root`` and return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def version_2(root: Path, files: dict[str, object], group: str = "/") -> Path:
    """Return a root with cgroup v2 mounted, this process in ``group``, and files below the mount."""
    mounted = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    return tree(root, {"proc/self/cgroup": f"0::{group}", **mounted})


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "affinity_cores", lambda: 8)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("cpu_max", "quota", "usable"),
    [
        ("max 100000", None, 8),
        ("150000 100000", 1.5, 2),  # a fraction is rounded up: half a core more is worth a thread
        ("200000 100000", 2.0, 2),
        ("10000 100000", 0.1, 1),
        ("1600000 100000", 16.0, 8),  # a quota above the affinity changes nothing
        ("", None, 8),
        ("nonsense", None, 8),
        ("100000 0", None, 8),
    ],
)
def test_quota_of_version_2(tmp_path: Path, cpu_max: str, quota: float | None, usable: int) -> None:
    root = version_2(tmp_path, {"cpu.max": cpu_max})
    assert resources.quota_cores(root) == quota
    assert resources.usable_cores(root) == usable


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "kubepods/cpu.max": "300000 100000",
        "kubepods/pod7/cpu.max": "400000 100000",
        "kubepods/pod7/train/cpu.max": "max 100000",
        "kubepods/memory.max": "max",
        "kubepods/pod7/memory.max": 64 << 30,
        "kubepods/pod7/train/memory.max": 96 << 30,
    }
    root = version_2(tmp_path, files, group="/kubepods/pod7/train")
    assert resources.quota_cores(root) == 3.0
    assert resources.memory_limit_bytes(root) == 64 << 30


@pytest.mark.parametrize("group", ["/docker/4f2a", "/../../elsewhere"])
def test_a_group_that_is_not_mounted_here_leaves_the_mounts_own_limits(tmp_path: Path, group: str) -> None:
    """A container without a cgroup namespace sees the host's path and, mounted, its own group."""
    root = version_2(tmp_path, {"cpu.max": "250000 100000", "memory.max": 1 << 30}, group=group)
    assert resources.quota_cores(root) == 2.5
    assert resources.memory_limit_bytes(root) == 1 << 30


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota_us", "quota", "usable"), [(-1, None, 8), (350000, 3.5, 4)])
def test_quota_of_version_1(tmp_path: Path, mount: str, quota_us: int, quota: float | None, usable: int) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/4f2a\n3:cpu,cpuacct:/docker/4f2a\n1:name=systemd:/docker/4f2a",
        f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": quota_us,
        f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": 100000,
    }
    root = tree(tmp_path, files)
    assert resources.quota_cores(root) == quota
    assert resources.usable_cores(root) == usable


@pytest.mark.parametrize(("limit", "expected"), [(UNLIMITED_V1, None), (2 << 30, 2 << 30)])
def test_memory_limit_of_version_1(tmp_path: Path, limit: int, expected: int | None) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/batch/job1\n0::/",
        "sys/fs/cgroup/memory/batch/memory.limit_in_bytes": limit,
        "sys/fs/cgroup/memory/batch/job1/memory.limit_in_bytes": UNLIMITED_V1,
    }
    assert resources.memory_limit_bytes(tree(tmp_path, files)) == expected


def test_both_versions_at_once(tmp_path: Path) -> None:
    """A hybrid host has controllers in v1 and mounts v2 in `unified`; either may hold the limit."""
    files = {
        "proc/self/cgroup": "2:cpu:/job\n0::/job",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": 400000,
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": 100000,
        "sys/fs/cgroup/unified/job/cpu.max": "200000 100000",
    }
    assert resources.quota_cores(tree(tmp_path, files)) == 2.0


def test_memory_is_the_machines_or_the_limit_below_it(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": "MemTotal:       16384 kB\nMemFree:  1 kB"})
    assert resources.memory_bytes(root) == 16384 * 1024
    version_2(root, {"memory.max": 1 << 20})
    assert resources.memory_bytes(root) == 1 << 20


def test_a_machine_without_any_of_these_files_has_no_limits(tmp_path: Path) -> None:
    assert resources.quota_cores(tmp_path) is None
    assert resources.memory_limit_bytes(tmp_path) is None
    assert resources.memory_bytes(tmp_path) > 0
    assert resources.shared_memory_size(tmp_path) is None
    assert resources.usable_cores(tmp_path) == resources.affinity_cores()


def test_shared_memory_is_the_file_systems(tmp_path: Path) -> None:
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    shared = resources.shared_memory_size(tmp_path)
    assert shared is not None
    assert 0 <= shared.free_bytes <= shared.size_bytes


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_is_that_of_the_process() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert resources.affinity_cores() == 1
        assert resources.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert resources.affinity_cores() == os.cpu_count()
