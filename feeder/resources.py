"""What this process may use of the machine: cores, memory and shared memory.

A container sees all cores of its host in ``os.cpu_count`` and all of its memory in ``/proc/meminfo``. What the kernel
enforces are the limits of its control group: CPU time by throttling, memory by killing. So they are read where the
kernel has them (cgroup v2: ``cpu.max``, ``memory.max``; v1: ``cpu.cfs_quota_us``, ``memory.limit_in_bytes``), in the
group of this process and in all groups above it, and the tightest counts.

The functions read files below ``root``, the root of the file system; tests give a directory with a small tree of files.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_V1_UNLIMITED = 1 << 60  # v1 writes "no limit" as the largest multiple of the page size, about 2**63


def affinity_cores() -> int:
    """Return the number of cores that the scheduler may run this process on (cpusets and ``taskset`` included)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def quota_cores(root: Path = _ROOT) -> float | None:
    """Return the CPU time quota of this process's control groups in cores, such as 1.5; None when there is none."""
    limits = [_ratio(*_read(directory / "cpu.max").partition(" ")[::2]) for directory in _v2_groups(root)]
    limits += [
        _ratio(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))
        for directory in _v1_groups(root, "cpu")
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many threads can run at once: affinity and quota, a fraction rounded up, at least 1."""
    quota = quota_cores(root)
    cores = affinity_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory limit of this process's control groups in bytes; None when there is none."""
    texts = [_read(directory / "memory.max") for directory in _v2_groups(root)]
    texts += [_read(directory / "memory.limit_in_bytes") for directory in _v1_groups(root, "memory")]
    limits = [int(text) for text in texts if text.isdecimal()]
    return min((limit for limit in limits if limit < _V1_UNLIMITED), default=None)


def memory_bytes(root: Path = _ROOT) -> int:
    """Return the memory that this process may use: the machine's, or less where a control group says so."""
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            total = int(rest.split()[0]) * 1024
            break
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS has no /proc
    limit = memory_limit_bytes(root)
    return total if limit is None else min(total, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemorySize:
    """Size of ``/dev/shm``, by which torch's DataLoader workers hand over batches; 64 MiB in many containers."""

    size_bytes: int
    free_bytes: int


def shared_memory_size(root: Path = _ROOT) -> SharedMemorySize | None:
    """Return the size of ``/dev/shm``; None where there is no such directory (macOS)."""
    try:
        status = os.statvfs(root / "dev/shm")
    except OSError:
        return None
    return SharedMemorySize(size_bytes=status.f_blocks * status.f_frsize, free_bytes=status.f_bavail * status.f_frsize)


def _v2_groups(root: Path) -> Iterator[Path]:
    """Yield this process's directory in the v2 hierarchy and those above it."""
    for number, _, path in _memberships(root):
        if number == "0":
            # A host with both versions mounts v2 in `unified`.
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _upwards(root / mount, path)


def _v1_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process's directory in the v1 hierarchy of ``controller`` and those above it."""
    for _, controllers, path in _memberships(root):
        if controller in controllers.split(","):
            # A hierarchy is mounted under all names of its controllers ("cpu,cpuacct"), mostly with a link for each.
            mounts = [root / "sys/fs/cgroup" / name for name in (controllers, controller)]
            mount = next((mount for mount in mounts if mount.is_dir()), None)
            if mount is not None:
                yield from _upwards(mount, path)


def _memberships(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (hierarchy number, controllers, path) of each line of ``/proc/self/cgroup``; the number of v2 is 0."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield number, controllers, path


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the directories from the group ``path`` up to ``mount``.

    Where the path names groups outside of what is mounted here (a container without a cgroup namespace of its own), the
    directories do not exist and only the mount, which is then the container's own group, has limits to read.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None where there is no limit ("max", -1) or no file (empty text)."""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) > 0 else None


def _read(path: Path) -> str:
    """Return the text of a file without surrounding white space; empty when it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
