"""Two jobs on one machine, of one user or of two: one that crashes neither disturbs the other nor leaves anything."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.feeder.neighbour_job import digest, loader_of
from tests.images import write_image_folder
from tests.peers import peer

ROOT = Path(__file__).parents[2]
ME, NOBODY = os.geteuid(), 65534


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def images(scratch: Path) -> Path:
    peer("torch")
    return write_image_folder(scratch / "images")


@pytest.fixture(scope="module")
def undisturbed(images: Path) -> list[str]:
    """The digests of two epochs, made in this process."""
    with loader_of(str(images), workers=0) as loader:
        return [digest(batch) for _ in range(2) for batch in loader]


@contextmanager
def job_in_the_middle(images: Path, folder: Path, uid: int) -> Iterator[subprocess.Popen[str]]:
    """Start a job with a place of its own for temporary files; wait until its first epoch is half over."""
    own = {"TMPDIR": folder / "tmp", "XDG_CACHE_HOME": folder.parent / "cache"}
    for path in own.values():
        path.mkdir(parents=True, exist_ok=True)
        if uid != ME:
            of_another = Path(f"{path}-of-another")
            of_another.mkdir(exist_ok=True)
            os.chown(of_another, uid, -1)
    launcher = {"RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"}
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.feeder.neighbour_job", str(images), str(uid)],
        cwd=ROOT,
        env={**environment, **{name: str(path) for name, path in own.items()}},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as job:
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "in the middle\n"
            yield job
        finally:
            job.kill()


def goes_on(job: subprocess.Popen[str]) -> list[str]:
    """Let a job go on, and return the digests that it prints at its end."""
    said, _ = job.communicate("\n", timeout=120)
    assert job.returncode == 0
    return said.split()


def processes_of(job: subprocess.Popen[str]) -> list[int]:
    """Return the processes that live in a job's session, which is its own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(session) == job.pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def named_memory(job: subprocess.Popen[str]) -> list[str]:
    """Return what a job's processes have mapped that has a name in /dev/shm."""
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in processes_of(job)]
    return [line for text in maps for line in text.splitlines() if " /dev/shm/" in line and "(deleted)" not in line]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("crashing", "other"), [(ME, ME), (NOBODY, ME), (ME, NOBODY)])
def test_a_crash_disturbs_nobody_and_leaves_nothing(
    crashing: int, other: int, images: Path, undisturbed: list[str], scratch: Path
) -> None:
    if ME != 0 and NOBODY in (crashing, other):
        pytest.skip("only root can start a job of another user")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o755)
    with ExitStack() as stack:
        victim = stack.enter_context(job_in_the_middle(images, folder / "victim", crashing))
        survivor = stack.enter_context(job_in_the_middle(images, folder / "survivor", other))
        assert min(len(processes_of(victim)), len(processes_of(survivor))) >= 3  # with two workers each
        assert named_memory(victim) == named_memory(survivor) == []
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(60) == -signal.SIGKILL
        assert goes_on(survivor) == undisturbed
        deadline = time.monotonic() + 60
        while processes_of(victim):  # its workers notice
            assert time.monotonic() < deadline
            time.sleep(0.01)
    newcomer = folder / "newcomer"
    with job_in_the_middle(images, newcomer, crashing) as job:
        assert goes_on(job) == undisturbed
    assert list(folder.glob("*/tmp*/*")) == []
    # what a user's jobs keep for the next ones is the selection, and nothing half-written
    assert {path.suffix for path in folder.glob("cache*/**/*") if path.is_file()} == {".bits", ".copies"}
