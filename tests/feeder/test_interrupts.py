"""Who answers Ctrl-C."""

import signal
import subprocess
import sys

import pytest

from feeder.interrupts import workers_ignore_interrupts

_SAYS = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


def child_ignores_interrupts() -> str:
    return subprocess.run([sys.executable, "-c", _SAYS], capture_output=True, text=True, check=True).stdout.strip()


def test_processes_started_within_never_see_interrupts() -> None:
    with workers_ignore_interrupts():
        assert child_ignores_interrupts() == "True"
    assert child_ignores_interrupts() == "False"


def test_an_interrupt_within_arrives_at_the_end() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), workers_ignore_interrupts():
        steps = [signal.raise_signal(signal.SIGINT), "went on"]
    assert steps[-1] == "went on"
