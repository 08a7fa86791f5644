"""``feeder doctor``: it reports whatever is missing or broken, says how to mend it, and never ends in a traceback."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feeder.errors import MissingPackageError
from feeder.tools import doctor
from feeder.tools.doctor import Finding
from feeder.tools.main import main
from tests.servers.launching import free_port
from tests.servers.redis_server import RedisServer

SMI = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15"
echo "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15"
"""


@pytest.fixture(autouse=True)
def no_redis_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEEDER_REDIS", raising=False)


def report(capsys: pytest.CaptureFixture[str], expected_code: int = 0) -> dict[str, Finding]:
    """Run ``feeder doctor --json`` and return its findings by name."""
    code = main(["doctor", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert code == expected_code
    assert printed["ok"] == (expected_code == 0)
    return {finding["name"]: Finding(**finding) for finding in printed["findings"]}


def test_all_that_is_required_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    findings = report(capsys)
    for name in (*doctor.REQUIRED, "Python", "shardfeed", "pillow", "cores", "memory", "open files"):
        assert findings[name].state in ("ok", "warning"), findings[name]
    assert findings["numpy"].found == importlib.import_module("numpy").__version__
    assert findings["pillow"].found.startswith(("Pillow ", "pillow-simd "))
    assert findings["JPEG"].found.startswith("libjpeg-turbo ")


def test_the_report_for_people_is_a_table_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "state", "found"]
    assert lines[-1].startswith("Everything required is there")


def test_an_absent_optional_package_is_missing_and_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert report(capsys)["ray"] == Finding(
        name="ray",
        found="not installed; for running on a Ray cluster",
        state="missing",
        advice="pip install 'shardfeed[ray]'",
    )


def test_a_torch_that_breaks_on_import_is_a_warning_with_its_reason(tmp_path: Path) -> None:
    """In a process of its own: torch may be imported here already, and cannot be imported twice."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "feeder.tools.main", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (torch,) = (finding for finding in json.loads(done.stdout)["findings"] if finding["name"] == "torch")
    reason = "OSError: libcudart.so.12: cannot open shared object file"
    assert torch == {
        "name": "torch",
        "state": "warning",
        "found": "a batch of torch tensors needs the package 'torch', which is installed but cannot be imported "
        f"({reason})",
        "advice": "pip install --force-reinstall 'shardfeed[torch]'",
    }


def test_a_missing_required_package_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    finding = report(capsys, expected_code=1)["xxhash"]
    assert finding.state == "error"
    assert finding.advice == "pip install --force-reinstall shardfeed"


def test_without_any_pillow_the_advice_is_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise MissingPackageError(
            f"engine {name!r} needs a package that is not installed; run: pip install 'shardfeed[{name}]'"
        )

    monkeypatch.setattr(doctor, "load", load)
    findings = report(capsys, expected_code=1)
    assert findings["pillow"] == Finding(
        name="pillow",
        found="engine 'pillow' needs a package that is not installed",
        state="error",
        advice="pip install 'shardfeed[pillow]'",
    )


def test_both_pillows_at_once_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda name: True)
    (finding,) = doctor._doubled(simd=True)
    assert finding.state == "warning"
    assert finding.advice == "pip uninstall -y pillow pillow-simd && pip install --no-deps pillow-simd"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(doctor.AVX2_CODE * 1000, ", compiled for AVX2"), (b"\x66\x0f\x38" * 1000, ", compiled for SSE4 only")],
)
def test_vector_instructions_are_told_from_the_machine_code(code: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "_imaging.so").write_bytes(code)
    image = SimpleNamespace(core=SimpleNamespace(__file__=str(tmp_path / "_imaging.so")))
    assert doctor._instructions(image) == expected


def test_a_probe_that_fails_is_a_finding(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PermissionError("/sys is not for you")

    monkeypatch.setattr(doctor.resources, "quota_cores", fail)
    findings = report(capsys, expected_code=1)
    assert findings["cores"].found == "could not be examined: /sys is not for you"


def test_a_redis_server_that_answers(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEEDER_REDIS", redis_server.url)
    finding = report(capsys)["Redis server"]
    assert finding.found.startswith(f"{redis_server.url} answers, Redis ")


def test_a_redis_server_that_is_not_there_fails_without_telling_the_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redis")
    port = free_port()
    monkeypatch.setenv("FEEDER_REDIS", f"redis://user:secret@127.0.0.1:{port}/0")
    finding = report(capsys, expected_code=1)["Redis server"]
    assert finding.found.startswith(f"redis://127.0.0.1:{port}/0 does not answer: ")
    assert "secret" not in finding.found
    assert finding.advice == "start the server, or correct or unset FEEDER_REDIS"


@pytest.mark.parametrize("url", ["redis://:secret@host:port", "http://host", "redis", "user:secret@host:6379"])
def test_a_redis_address_that_is_none_is_a_finding(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redis")
    monkeypatch.setenv("FEEDER_REDIS", url)
    finding = report(capsys, expected_code=1)["Redis server"]
    assert "does not answer" in finding.found
    assert "secret" not in finding.found


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of programs, the only one on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_cuda_devices_are_those_of_nvidia_smi(programs: Path) -> None:
    write_program(programs / "nvidia-smi", SMI)
    assert [(finding.name, finding.found) for finding in doctor._gpus()] == [
        (f"CUDA device {number}", "NVIDIA H100 80GB HBM3, 81559 MiB, driver 550.54.15") for number in (0, 1)
    ]


def test_a_driver_that_fails_is_a_warning_with_its_words(programs: Path) -> None:
    write_program(programs / "nvidia-smi", "#!/bin/sh\necho NVIDIA-SMI has failed: no driver\nexit 9\n")
    (finding,) = doctor._gpus()
    assert finding.state == "warning"
    assert finding.found == "nvidia-smi fails: NVIDIA-SMI has failed: no driver"


def test_no_cuda_is_initialised_and_no_framework_is_needed_to_list_devices(programs: Path) -> None:
    (finding,) = doctor._gpus()
    assert finding == Finding(name="CUDA devices", found="none: there is no nvidia-smi here", state="missing")


def test_small_shared_memory_is_a_warning_with_the_option_that_enlarges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = doctor.resources.SharedMemorySize(size_bytes=64 << 20, free_bytes=60 << 20)
    monkeypatch.setattr(doctor.resources, "shared_memory_size", lambda: shared)
    _, finding = doctor._memory()
    assert finding == Finding(
        name="/dev/shm",
        found="62.9 MB free of 67.1 MB",
        state="warning",
        advice="run the container with --shm-size=8g: workers of torch's DataLoader hand over batches there",
    )
