"""The ``feeder`` command: finds the subcommand, and turns errors into one sentence and an exit code.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; it is imported only when it is called, so
that ``feeder --help`` loads neither torch nor pyarrow. Exit codes:

====  =========================================================================================================
0     done
1     done, and the answer is no: `verify` found damage, `demo` failed its proof
2     a mistake in what was asked or given, or a refusal of the system (disk full, no permission): one sentence
70    a bug in shardfeed: a traceback and a request to report it (EX_SOFTWARE of sysexits.h)
130   interrupted (128 + SIGINT)
141   the reader of standard output went away, as in ``| head`` (128 + SIGPIPE); nothing is said
143   terminated (128 + SIGTERM); everything is closed as after Ctrl-C
====  =========================================================================================================
"""

import argparse
import contextlib
import difflib
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NoReturn

from feeder import __version__
from feeder.errors import FeederError
from feeder.tools import console

COMMANDS = {
    "build": ("feeder.tools.building", "write shards and a manifest from images, lists, archives or Parquet"),
    "index": ("feeder.tools.indexing", "use tar archives, MDS sets and image folders where they lie"),
    "append": ("feeder.tools.appending", "add the samples of a source to a dataset"),
    "annotate": ("feeder.tools.annotating", "add columns to a dataset from a table with keys"),
    "drop": ("feeder.tools.dropping", "remove samples from a dataset, with --purge their bytes too"),
    "inspect": ("feeder.tools.inspecting", "say what is in a dataset"),
    "convert": ("feeder.tools.converting", "write a dataset in another format, order or cut, or as Parquet"),
    "verify": ("feeder.tools.verifying", "check a dataset for damage"),
    "repair": ("feeder.tools.repairing", "save what is whole of a damaged dataset, and list what is lost"),
    "stream": ("feeder.tools.streaming", "stream batches; print their rate and digests"),
    "plan": ("feeder.tools.planning", "suggest how to shuffle on a cluster, with memory, traffic and mixing"),
    "show": ("feeder.tools.showing", "draw one batch as the model gets it, or stored samples, as a PNG contact sheet"),
    "demo": ("feeder.tools.demo", "from photographs to shards to batches, with a proof of resume"),
    "doctor": ("feeder.tools.doctor", "say what is installed, what is missing, and how to get it"),
}

USAGE, BUG, INTERRUPTED, NO_READER, TERMINATED = 2, 70, 130, 141, 143


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like KeyboardInterrupt, so that files and worker processes are closed."""


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for an error in place of the usage text."""

    def options(self) -> list[str]:
        """Return the spellings of all options."""
        return [option for action in self._actions for option in action.option_strings]

    def empty(self, args: argparse.Namespace) -> str | None:
        """Return the name of a positional argument that is empty: as a path, it would be the working folder."""
        for action in self._actions:
            value = getattr(args, action.dest, None)
            if not action.option_strings and "" in (value if isinstance(value, list) else [value]):
                return str(action.metavar or action.dest)
        return None

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"feeder: {console.printable(message)} (see '{self.prog} --help')\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments after the program's name; those of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that the terminal cannot show is no reason to die.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _sigterm_unwinds():
            try:
                code = _run(arguments)
            except SystemExit as stop:  # argparse: --help, --version, a mistake in the arguments
                code = stop.code if isinstance(stop.code, int) else USAGE
            if sys.stdout is not None:  # a process may be started without one
                sys.stdout.flush()  # here, where a reader that went away is understood
            return code
    except KeyboardInterrupt as stop:
        return _say(_with_notes("interrupted", stop), INTERRUPTED)
    except _Terminated as stop:
        return _say(_with_notes("terminated", stop), TERMINATED)
    except FeederError as error:
        return _say(_with_notes(str(error), error), USAGE)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return NO_READER
        return _say(_system_sentence(error), USAGE)
    except Exception:  # noqa: BLE001 - whatever is left is a bug, and this is the last frame that can say so
        traceback.print_exc()
        return _say(f"this is a bug in shardfeed {__version__}; please report it with the lines above", BUG)


def _run(arguments: list[str]) -> int:
    """Parse the arguments, import the command's module and run it."""
    parser, chosen = _parsers(arguments)
    if chosen is None:
        if arguments and not arguments[0].startswith("-"):
            parser.error(f"there is no command {arguments[0]!r}{_suggestion(arguments[0], COMMANDS)}")
        parser.parse_args(arguments)
        parser.print_help()
        return USAGE
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        near = _suggestion(unknown[0].partition("=")[0], chosen.options())
        chosen.error(f"unrecognized argument {unknown[0]!r}{near}")
    if empty := chosen.empty(args):
        chosen.error(f"{empty} is an empty text, as of a variable that is not set; expected a path or a URL")
    module = import_module(COMMANDS[args.command][0])
    with console.session(quiet=args.quiet):
        return int(module.run(args))


def _parsers(arguments: list[str]) -> tuple[_Parser, _Parser | None]:
    """Return the parser of the program and that of the command in ``arguments``, None when there is no such command.

    Only the chosen command's module is imported, and only its parser gets arguments.
    """
    parser = _Parser(
        prog="feeder",
        description="Keep GPUs fed with images: build shards, stream seeded and resumable batches, look at them.",
        epilog="'feeder COMMAND --help' explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"shardfeed {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=_Parser)
    chosen = None
    for name, (module, summary) in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        if arguments and arguments[0] == name:
            chosen = command
            import_module(module).add_arguments(command)
            command.add_argument("-q", "--quiet", action="store_true", help="no progress: only results and errors")
    return parser, chosen


def _suggestion(word: str, known: Sequence[str] | dict[str, tuple[str, str]]) -> str:
    """Return ", did you mean …?" when a known word is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _say(sentence: str, code: int) -> int:
    """Print one line on standard error and return the exit code; a closed standard error changes nothing."""
    with contextlib.suppress(OSError):
        print(f"feeder: {console.printable(sentence)}", file=sys.stderr, flush=True)
    return code


def _with_notes(sentence: str, error: BaseException) -> str:
    """Return a sentence with what was noted on its way up: such as what is kept, and how to go on."""
    return "; ".join([sentence, *getattr(error, "__notes__", ())])


def _system_sentence(error: OSError) -> str:
    """Return what the system said, and about which file."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return f"{error.strerror or error}{': ' if names else ''}{' and '.join(names)}"


def _reader_is_gone() -> bool:
    """Return whether the other end of standard output or standard error was closed, and close ours for good if so.

    Other pipes break too (to a worker process, to a server): those must not pass in silence.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            continue
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            gone = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)  # what is still buffered goes nowhere when the interpreter flushes at its end
            os.close(nowhere)
    return gone


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM unwind this process as Ctrl-C does; forked workers, which inherit the handler, die of it as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    owner = os.getpid()

    def on_sigterm(*_: object) -> None:
        if os.getpid() == owner:
            raise _Terminated
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
