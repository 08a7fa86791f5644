"""Progress on terminals and elsewhere, tables and figures."""

import io
import sys

import pytest

from feeder.tools import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until the test moves it."""
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_plain_progress_is_at_most_a_line_every_five_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(3000, "building", "images") as advance:
        for _ in range(12):
            clock.now += 1
            advance(250, size_bytes=25_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "building: 1,250 of 3,000 images, 250 images/s, 25.0 MB/s, 7.0 s left",
        "building: 2,500 of 3,000 images, 250 images/s, 25.0 MB/s, 2.0 s left",
        "building: 3,000 images in 12 s, 250 images/s, 25.0 MB/s",
    ]


def test_plain_progress_without_a_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(None, "listing", "files") as advance:
        clock.now += 10
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "listing: 1 files, 0.1 files/s",
        "listing: 1 files in 10 s, 0.1 files/s",
    ]


def test_failed_work_has_no_last_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), console.progress(10, "building"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with console.session(quiet=True):
        with console.progress(10, "building") as advance:
            advance(10)
        console.warn("a warning is no progress")
    assert capsys.readouterr().err.splitlines() == ["feeder: warning: a warning is no progress"]


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_gets_a_bar_that_fits(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    with console.progress(2000, "streaming epoch 0") as advance:
        for _ in range(20):
            advance(100, size_bytes=10_000_000)
    last = [line for line in terminal.getvalue().replace("\r", "\n").splitlines() if "2,000/2,000" in line][-1]
    assert "streaming epoch 0" in last
    assert "images/s" in last
    assert len(last.replace("\x1b[2K", "").rstrip()) <= columns
    assert "\x1b[3" not in terminal.getvalue()  # no colour


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with console.progress(1, "building") as advance:
        advance()
    assert terminal.getvalue().startswith("building: 1 images in 0.0 s")


def test_figures_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_figures([("shards", 3), ("classes", "a\tb")])
    assert capsys.readouterr().out == "shards   3\nclasses  a\\tb\n"


def test_tables_align_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["class", "images", "mean"], [["cat", 1200, 0.5], ["dog\n", 7, 12.25]])
    assert capsys.readouterr().out.splitlines() == [
        "class  images   mean",
        "cat     1,200   0.50",
        "dog\\n       7  12.25",
    ]


def test_an_empty_table_is_its_headers(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["class", "images"], [])
    assert capsys.readouterr().out == "class  images\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü 日本", "plain ü 日本"), ("a\nb\x1b", "a\\nb\\x1b"), ("bad\udc80name", "bad\\udc80name")],
)
def test_printable(text: str, shown: str) -> None:
    assert console.printable(text) == shown


def test_format_count() -> None:
    assert [console.format_count(n, "shard") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (104_200, "104.2 kB"),
        (999_960, "1.0 MB"),
        (5e12, "5.0 TB"),
        (2.5e18, "2,500.0 PB"),
    ],
)
def test_format_bytes(size_bytes: float, text: str) -> None:
    assert console.format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert console.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [(2468, 2, "1,234 images/s"), (5, 2, "2.5 images/s"), (0, 2, "0 images/s"), (0, 0, "0 images/s")],
)
def test_format_rate(count: int, seconds: float, text: str) -> None:
    assert console.format_rate(count, seconds) == text
