"""The dispatcher: what each way to end a command prints, and its exit code."""

import errno
import os
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from feeder import __version__
from feeder.errors import ConfigError
from feeder.tools import console
from feeder.tools.main import COMMANDS, main

Run = Callable[[Callable[[], int]], int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a function as if it were a command."""

    def run_as_command(action: Callable[[], int]) -> int:
        module = types.ModuleType("made_up_command")
        module.add_arguments = lambda parser: None  # type: ignore[attr-defined]
        module.run = lambda args: action()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "made_up_command", module)
        monkeypatch.setitem(COMMANDS, "made-up", ("made_up_command", "does what the test says"))
        return main(["made-up"])

    return run_as_command


def test_every_command_has_a_module_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (module, summary) in COMMANDS.items():
        assert callable(import_module(module).run)
        assert main([name, "--help"]) == 0
        assert f"{summary[0].upper()}{summary[1:]}." in " ".join(capsys.readouterr().out.split())


def test_help_loads_no_heavy_package() -> None:
    heavy = {"torch", "pyarrow", "numpy", "rich", "PIL"}
    program = f"import sys\nfrom feeder.tools.main import main\nmain(['--help'])\nprint({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"shardfeed {__version__}\n"


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


EMPTY = "is an empty text, as of a variable that is not set; expected a path or a URL"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["strem"], "there is no command 'strem', did you mean 'stream'? (see 'feeder --help')"),
        (["xyzzy"], "there is no command 'xyzzy' (see 'feeder --help')"),
        (["a\nb"], r"there is no command 'a\nb' (see 'feeder --help')"),
        (["--verson"], "unrecognized arguments: --verson (see 'feeder --help')"),
        (
            ["stream", "d", "--wrokers=2"],
            "unrecognized argument '--wrokers=2', did you mean '--workers'? (see 'feeder stream --help')",
        ),
        (["stream", "d", "extra"], "unrecognized argument 'extra' (see 'feeder stream --help')"),
        (["stream"], "the following arguments are required: DATASET (see 'feeder stream --help')"),
        (["stream", "d", "--epochs", "x"], "argument --epochs: invalid number value: 'x' (see 'feeder stream --help')"),
        (["stream", "d", "--epochs", "-1"], "argument --epochs: -1 is less than 0 (see 'feeder stream --help')"),
        (
            ["stream", "d", "--lanes", "x"],
            "argument --lanes: invalid number or 'auto' value: 'x' (see 'feeder stream --help')",
        ),
        (
            ["build", "", "out"],
            f"SOURCE {EMPTY} (see 'feeder build --help')",
        ),
        (
            ["index", "a.tar", ""],
            f"SOURCE… DEST {EMPTY} (see 'feeder index --help')",
        ),
    ],
)
def test_mistakes_in_arguments_are_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"feeder: {sentence}\n"


def test_abbreviated_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "d", "--work", "2"]) == 2
    assert "unrecognized argument '--work'" in capsys.readouterr().err


def test_errors_of_ours_are_one_sentence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ConfigError("batch_size is 0; it must be at least 1, in 'a\x1b[2J\nb'")

    assert run(fail) == 2
    assert capsys.readouterr().err == "feeder: batch_size is 0; it must be at least 1, in 'a\\x1b[2J\\nb'\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "No space left on device: /data/x"),
        (PermissionError(errno.EACCES, "Permission denied", b"/data/x"), "Permission denied: /data/x"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "Cross-device link: a and b"),
        (OSError("the socket is gone"), "the socket is gone"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),  # not of our output: it is said
    ],
)
def test_errors_of_the_system_are_one_sentence(
    error: OSError, sentence: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run(fail) == 2
    assert capsys.readouterr().err == f"feeder: {sentence}\n"


def test_bugs_show_their_traceback(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ZeroDivisionError("by nothing")

    assert run(fail) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == "ZeroDivisionError: by nothing"
    assert lines[-1] == f"feeder: this is a bug in shardfeed {__version__}; please report it with the lines above"


def test_interruption(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: signal.raise_signal(signal.SIGINT) or 0) == 130
    assert capsys.readouterr().err == "feeder: interrupted\n"


def test_termination_unwinds_and_leaves_the_handler_as_it_was(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    unwound = []

    def stop() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            unwound.append(True)
        return 0

    assert run(stop) == 143
    assert unwound == [True]
    assert capsys.readouterr().err == "feeder: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_forked_children_die_of_termination_as_usual(run: Run) -> None:
    statuses = []

    def fork() -> int:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        statuses.append(os.waitpid(child, 0)[1])
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that may have threads
        assert run(fork) == 0
    assert os.waitstatus_to_exitcode(statuses[0]) == -signal.SIGTERM


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_the_command_in_silence(unbuffered: str, image_folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "feeder.tools.main", "inspect", str(image_folder)]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}  # whether print fails, or the flush at the end
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_process_without_standard_output(image_folder: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m feeder.tools.main build {image_folder} {tmp_path}/out -q >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / "manifest.json").exists()


def test_exit_codes_of_commands_are_passed_on(run: Run) -> None:
    assert run(lambda: 1) == 1


def test_warnings_are_one_line_and_said_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    def warn() -> int:
        for _ in range(2):
            warnings.warn("the moon is full", stacklevel=1)
            logging.getLogger("feeder.deep.inside").warning("sample %d is odd", 3)
        console.warn("by hand")
        return 0

    assert run(warn) == 0
    assert capsys.readouterr().err.splitlines() == [
        "feeder: warning: the moon is full",
        "feeder: warning: sample 3 is odd",
        "feeder: warning: by hand",
    ]
