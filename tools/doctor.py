"""``feeder doctor``: what is active on this machine, what is missing, and the command that brings it.

Every probe reports what it finds and never raises: a broken package is a finding too. CUDA is not initialised here;
the GPUs are those that ``nvidia-smi`` lists. With FEEDER_REDIS set, the server it names is asked for a PING.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from feeder import resources
from feeder.errors import MissingPackageError
from feeder.optional import PACKAGES, load
from feeder.tools import console

REQUIRED = ("numpy", "pyarrow", "fsspec", "xxhash", "google_crc32c", "rich")
REDIS_TIMEOUT_S = 2.0  # long for a server in the same rack, short for somebody who waits for an answer
NVIDIA_SMI_TIMEOUT_S = 20.0  # it takes some seconds where the driver is not kept loaded
SMALL_SHARED_MEMORY_BYTES = 1 << 30  # eight batches of 256 images of 224×224 in flight are 300 MB, for each rank
FEW_OPEN_FILES = 1024  # a shard and its index each take one, beside what the training job opens
AVX2_CODE = b"\xc4\xe2\x7d"  # the prefix of 256-bit integer instructions, such as vpmaddubsw on a ymm register
AVX2_LEAST_COUNT = 10  # pillow-simd for AVX2 has 1,000 with -O3 and 40 with -O2; for SSE4, as Pillow, it has none

# Name, feature of PIL, Debian package with its headers; none where Debian 12's is too old for pillow-simd.
FORMATS = (
    ("WebP", "webp", "libwebp-dev"),
    ("JPEG 2000", "jpg_2000", "libopenjp2-7-dev"),
    ("TIFF", "libtiff", "libtiff-dev"),
    ("AVIF", "avif", ""),
)
PILLOW_WHEEL_COMMAND = "pip uninstall -y pillow pillow-simd && pip install --force-reinstall pillow"

State = Literal["ok", "missing", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at.

    State ``missing`` is optional and absent, ``warning`` works and will hurt, ``error`` keeps shardfeed from working.
    """

    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the findings; return 0 when all that is required is there, else 1."""
    findings = examine()
    healthy = all(finding.state != "error" for finding in findings)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(findings, healthy)
    return 0 if healthy else 1


def examine() -> list[Finding]:
    """Run every probe and return what they found, in the order in which it is shown."""
    probes: tuple[Callable[[], Iterable[Finding]], ...] = (
        _python,
        _required_packages,
        _pillow,
        _optional_packages,
        _redis_server,
        _gpus,
        _cores,
        _memory,
        _open_files,
    )
    findings: list[Finding] = []
    for probe in probes:
        try:
            findings += probe()
        except Exception as error:  # noqa: BLE001 - whatever is broken here is what the doctor was called for
            name = probe.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name=name, found=f"could not be examined: {_sentence(error)}", state="error"))
    return findings


def _print(findings: list[Finding], healthy: bool) -> None:
    console.print_table(["what", "state", "found"], [(f.name, f.state, f.found) for f in findings])
    advised = [finding for finding in findings if finding.advice]
    if advised:
        print("\nTo get what is missing, or mend it:")
        console.print_figures((f"  {finding.name}", finding.advice) for finding in advised)
    optional = ", ".join(finding.name for finding in findings if finding.state == "missing")
    if not healthy:
        print("\nSomething that shardfeed needs is missing or broken.")
    else:
        print(f"\nEverything required is there{'; optional and absent: ' + optional if optional else ''}.")


# Python and packages -------------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding(name="Python", found=f"{platform.python_version()} at {sys.executable}, {system}")
    yield Finding(name="shardfeed", found=importlib.import_module("feeder").__version__)


def _required_packages() -> Iterator[Finding]:
    for name in REQUIRED:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything while it is imported
            advice = "pip install --force-reinstall shardfeed"
            yield Finding(name=name, found=f"cannot be imported: {_sentence(error)}", state="error", advice=advice)
        else:
            yield Finding(name=name, found=_version(name, module))


def _optional_packages() -> Iterator[Finding]:
    for name, package in PACKAGES.items():
        if name == "pillow":
            continue  # required, and has its own probe
        try:
            module = load(name)
        except MissingPackageError as error:
            missing = error.__cause__ is None  # else it is installed, and the cause says why it cannot be imported
            yield Finding(
                name=name,
                found=f"not installed; for {package.purpose}" if missing else str(error).partition("; run: ")[0],
                state="missing" if missing else "warning",
                advice=package.install_command if missing else str(error).partition("; run: ")[2],
            )
        else:
            cuda = f", {_cuda_build(module)}" if name == "torch" else ""
            yield Finding(name=name, found=_version(package.module, module) + cuda)


def _cuda_build(torch: Any) -> str:
    """Return what torch was built for, without asking the driver."""
    return f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"


def _version(module_name: str, module: ModuleType) -> str:
    """Return a package's version as the module says, else as its distribution says."""
    version = getattr(module, "__version__", None)
    if version is None:
        try:
            version = importlib.metadata.version(module_name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            version = "installed, of unknown version"
    return str(version)


# Pillow or pillow-simd -----------------------------------------------------------------------------------------------


def _pillow() -> Iterator[Finding]:
    try:
        image = load("pillow")
        features = importlib.import_module("PIL.features")
    except Exception as error:  # noqa: BLE001 - a half-overwritten PIL may raise anything
        found, _, advice = str(error).partition("; run: ")
        yield Finding(name="pillow", found=found, state="error", advice=advice or PACKAGES["pillow"].install_command)
        return
    version = str(image.__version__)
    simd = ".post" in version  # pillow-simd numbers its releases as Pillow's, with .postN behind
    active = f"pillow-simd {version}{_instructions(image)}" if simd else f"Pillow {version}"
    yield Finding(name="pillow", found=active)
    yield from _doubled(simd)
    if features.check_feature("libjpeg_turbo"):
        yield Finding(name="JPEG", found=f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}")
    else:
        advice = PILLOW_WHEEL_COMMAND
        yield Finding(name="JPEG", found="without libjpeg-turbo, which is slow", state="warning", advice=advice)
    for name, feature, package in FORMATS:
        if features.check(feature):
            yield Finding(name=name, found=str(features.version(feature)))
        else:
            advice = _rebuild_command(package, version) if simd and package else PILLOW_WHEEL_COMMAND
            yield Finding(name=name, found="cannot be decoded", state="missing", advice=advice)


def _rebuild_command(package: str, version: str) -> str:
    """Return the commands that compile pillow-simd once more, with the library of Debian's ``package``."""
    return (
        f"apt-get install --no-install-recommends {package} && "
        "CC='cc -mavx2' C_INCLUDE_PATH=/usr/include/x86_64-linux-gnu pip install --force-reinstall --no-deps "
        f"--no-cache-dir --no-binary pillow-simd pillow-simd=={version}"
    )


def _instructions(image: Any) -> str:
    """Return which vector instructions pillow-simd was compiled for: it does not say, so its code is searched."""
    code = Path(image.core.__file__).read_bytes()
    return ", compiled for AVX2" if code.count(AVX2_CODE) >= AVX2_LEAST_COUNT else ", compiled for SSE4 only"


def _doubled(simd: bool) -> Iterator[Finding]:
    """Both distributions unpack into PIL/; with both installed, the next upgrade or removal of one breaks the other."""
    installed = [name for name in ("pillow", "pillow-simd") if _is_installed(name)]
    if len(installed) == 2:
        keep = "pillow-simd" if simd else "pillow"
        yield Finding(
            name="PIL",
            found="Pillow and pillow-simd are both installed, over each other",
            state="warning",
            advice=f"pip uninstall -y pillow pillow-simd && pip install --no-deps {keep}",
        )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# The machine and its services ----------------------------------------------------------------------------------------


def _redis_server() -> Iterator[Finding]:
    url = os.environ.get("FEEDER_REDIS")
    if not url:
        return
    try:
        redis = load("redis")
        client = redis.Redis.from_url(
            url,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )
        with client:
            client.ping()
            version = client.info("server").get("redis_version", "unknown")
    except Exception as error:  # noqa: BLE001 - a wrong address, a refusal, a timeout: all are the finding
        found = f"{_server_name(url)} does not answer: {_sentence(error)}"
        advice = "start the server, or correct or unset FEEDER_REDIS"
        yield Finding(name="Redis server", found=found, state="error", advice=advice)
    else:
        yield Finding(name="Redis server", found=f"{_server_name(url)} answers, Redis {version}")


def _server_name(url: str) -> str:
    """Return the server's address without the user and the password that the URL may hold."""
    parts = urlsplit(url)
    if not parts.netloc:
        return "the server that FEEDER_REDIS names"  # no address, or a socket's path; what is in it is not known
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _gpus() -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None:
        yield Finding(name="CUDA devices", found="none: there is no nvidia-smi here", state="missing")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stdout", None) or getattr(error, "stderr", None) or error
        yield Finding(name="CUDA devices", found=f"nvidia-smi fails: {_sentence(words)}", state="warning")
        return
    devices = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    for number, device in enumerate(devices):
        name_and_memory, _, driver = device.rpartition(", ")
        yield Finding(name=f"CUDA device {number}", found=f"{name_and_memory}, driver {driver}")
    if not devices:
        yield Finding(name="CUDA devices", found="nvidia-smi lists none", state="missing")


def _cores() -> Iterator[Finding]:
    quota = resources.quota_cores()
    parts = [
        f"{resources.usable_cores()} usable",
        f"affinity {resources.affinity_cores()} of {os.cpu_count()}",
        "no cgroup quota" if quota is None else f"cgroup quota {quota:.2f}",
    ]
    yield Finding(name="cores", found=", ".join(parts))


def _memory() -> Iterator[Finding]:
    limit = resources.memory_limit_bytes()
    of_group = "no cgroup limit" if limit is None else f"cgroup limit {console.format_bytes(limit)}"
    yield Finding(name="memory", found=f"{console.format_bytes(resources.memory_bytes())}, {of_group}")
    shared = resources.shared_memory_size()
    if shared is None:
        yield Finding(name="/dev/shm", found="not on this system")
        return
    small = shared.size_bytes < SMALL_SHARED_MEMORY_BYTES
    yield Finding(
        name="/dev/shm",
        found=f"{console.format_bytes(shared.free_bytes)} free of {console.format_bytes(shared.size_bytes)}",
        state="warning" if small else "ok",
        advice="run the container with --shm-size=8g: workers of torch's DataLoader hand over batches there"
        if small
        else "",
    )


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < FEW_OPEN_FILES
    yield Finding(
        name="open files",
        found=f"{_limit(soft)} at once, may be raised to {_limit(hard)}",
        state="warning" if few else "ok",
        advice="ulimit -n 4096" if few else "",
    )


def _limit(value: int) -> str:
    return "any number" if value == resource.RLIM_INFINITY else str(value)


def _sentence(reason: object) -> str:
    """Return the first line of an error, with its type when it says nothing."""
    return str(reason).strip().partition("\n")[0] or type(reason).__name__
