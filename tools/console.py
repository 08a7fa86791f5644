"""What commands show: progress and warnings on standard error, results on standard output.

On a terminal progress is a bar (rich, imported on use, which honours NO_COLOR); elsewhere it is plain lines, at most
one every five seconds and a last one, so that logs stay short. Results are plain text in both cases.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

LINE_INTERVAL_S = 5.0  # plain progress lines: rare enough for a log, often enough to see that work goes on

_quiet = False
_warned: set[str] = set()  # a warning is worth saying once


class Advance(Protocol):
    """Tells the progress display that ``n`` more units are done, and optionally how many bytes they had."""

    def __call__(self, n: int = 1, *, size_bytes: int = 0) -> None: ...


@contextlib.contextmanager
def session(*, quiet: bool = False) -> Iterator[None]:
    """For the length of a command, print warnings and log records of shardfeed as one line each; be quiet if asked."""
    global _quiet
    previous, _quiet = _quiet, quiet
    _warned.clear()
    handler = _Handler(logging.WARNING)
    logger = logging.getLogger("feeder")
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            logger.removeHandler(handler)
            _quiet = previous


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            warn(record.getMessage())
        except Exception:  # noqa: BLE001 - the contract of logging.Handler: a log record never stops the work
            self.handleError(record)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Stand in for warnings.showwarning: the place in the code is of no use to who runs a command."""
    warn(str(message))


def warn(sentence: str) -> None:
    """Print one line of warning on standard error, unless this command printed the same before."""
    if sentence in _warned:
        return
    _warned.add(sentence)
    print(f"feeder: warning: {printable(sentence)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return ``text`` with every control character and lone surrogate escaped: names of files may hold anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# Progress ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(total: int | None, label: str, unit: str = "images") -> Iterator[Advance]:
    """Show how far a piece of work is: ``with progress(2000, "building", "images") as advance: advance()``.

    Args:
        total: units in all; None when unknown (then neither bar nor remaining time is shown).
        label: what is done, in a word or two.
        unit: the plural of what is counted.
    """
    if _quiet:
        yield _ignore
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(total, label, unit) as advance:
            yield advance
    else:
        lines = _Lines(total, label, unit)
        yield lines.advance
        lines.finish()


def _ignore(n: int = 1, *, size_bytes: int = 0) -> None:
    """Progress that nobody looks at."""


class _Lines:
    """Progress as plain lines on standard error."""

    def __init__(self, total: int | None, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self.size_bytes = 0
        self.start = self.last = time.monotonic()

    def advance(self, n: int = 1, *, size_bytes: int = 0) -> None:
        self.done += n
        self.size_bytes += size_bytes
        now = time.monotonic()
        if now - self.last >= LINE_INTERVAL_S:
            self.last = now
            rates = _rates(self.done, self.size_bytes, now - self.start, self.unit)
            remaining = _remaining(self.done, self.total, now - self.start)
            of_total = "" if self.total is None else f" of {self.total:,}"
            self._print(f"{self.done:,}{of_total} {self.unit}, {rates}{remaining and f', {remaining} left'}")

    def finish(self) -> None:
        seconds = time.monotonic() - self.start
        rates = _rates(self.done, self.size_bytes, seconds, self.unit)
        self._print(f"{self.done:,} {self.unit} in {format_duration(seconds)}, {rates}")

    def _print(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(total: int | None, label: str, unit: str) -> Iterator[Advance]:
    """Progress as a bar of rich on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    console = Console(stderr=True)
    start, total_bytes = time.monotonic(), 0
    narrow = console.width < 80  # then the rate of bytes gives way

    class Figures(ProgressColumn):
        """Counts, rate and remaining time, taken over the whole run: a steady figure rather than a nervous one."""

        def render(self, task: Task) -> Text:
            done, seconds = int(task.completed), task.finished_time or time.monotonic() - start
            of_total = "" if total is None else f"/{total:,}"
            last = format_duration(seconds) if task.finished else _remaining(done, total, seconds)
            parts = (f"{done:,}{of_total}", _rates(done, 0 if narrow else total_bytes, seconds, unit), last)
            return Text("  ".join(part for part in parts if part), no_wrap=True, overflow="ellipsis")

    # The bar takes what the label and about 40 columns of figures leave (55 with bytes).
    bar = BarColumn(bar_width=max(4, min(40, console.width - len(label) - (40 if narrow else 55))))
    columns = (TextColumn("{task.description}", markup=False), bar, Figures())
    # Standard output is not redirected: it may be a file, and rich would send its lines to the terminal.
    with Progress(*columns, console=console, redirect_stdout=False) as display:
        task = display.add_task(label, total=total)

        def advance(n: int = 1, *, size_bytes: int = 0) -> None:
            nonlocal total_bytes
            total_bytes += size_bytes
            display.advance(task, n)

        yield advance


def _rates(done: int, size_bytes: int, seconds: float, unit: str) -> str:
    text = format_rate(done, seconds, unit)
    return f"{text}, {format_bytes(size_bytes / max(seconds, 1e-9))}/s" if size_bytes else text


def _remaining(done: int, total: int | None, seconds: float) -> str:
    return format_duration(seconds * (total - done) / done) if total and done else ""


# Results -------------------------------------------------------------------------------------------------------------


def print_figures(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two aligned columns on standard output."""
    listed = [(name, printable(str(value))) for name, value in pairs]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under headers on standard output; columns of numbers are aligned to the right."""
    listed = [list(row) for row in rows]
    numeric = [all(isinstance(row[c], (int, float)) for row in listed) and bool(listed) for c in range(len(headers))]
    texts = [list(headers), *([_cell(value) for value in row] for row in listed)]
    widths = [max(len(row[c]) for row in texts) for c in range(len(headers))]
    for row in texts:
        cells = (f"{t:>{w}}" if right else f"{t:<{w}}" for t, w, right in zip(row, widths, numeric, strict=True))
        print("  ".join(cells).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return printable(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def format_count(count: int, singular: str) -> str:
    """Return ``"1 shard"``, ``"2,000 shards"``."""
    return f"{count:,} {singular}{'' if count == 1 else 's'}"


def format_bytes(size_bytes: float) -> str:
    """Return a size in decimal units: ``"0 bytes"``, ``"1 byte"``, ``"104.2 kB"``, ``"5.0 TB"``."""
    if abs(size_bytes) < 1000:
        return "1 byte" if size_bytes == 1 else f"{size_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        size_bytes /= 1000
        if abs(size_bytes) < 999.95:  # else it would be shown as 1000.0
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1000:,.1f} PB"


def format_duration(seconds: float) -> str:
    """Return a time span: ``"0.4 s"``, ``"12 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def format_rate(count: float, seconds: float, unit: str = "images") -> str:
    """Return ``"1,234 images/s"``; below ten a second with one decimal."""
    per_s = count / max(seconds, 1e-9)
    return f"{per_s:,.0f} {unit}/s" if per_s >= 9.95 or per_s == 0 else f"{per_s:.1f} {unit}/s"
