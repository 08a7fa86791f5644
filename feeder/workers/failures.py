"""Exceptions on their way from a worker: same type and same sentence, whether they can be pickled or not."""

import importlib
import pickle
import traceback
from typing import Any

from feeder.errors import FeederError


class WorkerTraceback(Exception):
    """The cause of an exception that was raised in a worker: the traceback there, as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def packed(error: BaseException, worker: str) -> bytes:
    """Return an exception as bytes; ``worker`` says where it was raised."""
    text = f"in {worker}:\n" + "".join(traceback.format_exception(error))
    kind = next(kind for kind in type(error).__mro__ if _importable(kind))
    described = (kind.__module__, kind.__qualname__, type(error).__name__, _sentence(error))
    pickled = None
    try:
        copy = pickle.dumps(error)
        if _same(pickle.loads(copy), error):
            pickled = copy
    except Exception:  # noqa: BLE001 - users' classes may fail in any way when they are pickled
        pass
    return pickle.dumps((pickled, described, text))


def unpacked(data: bytes) -> BaseException:
    """Return the exception, its cause the traceback in the worker.

    One that could not be pickled is of a class made from its own, or from the next above it that can be imported. What
    would end this process (SystemExit and the like) becomes a FeederError.
    """
    pickled, (module, qualified, name, sentence), text = pickle.loads(data)
    error: BaseException
    if pickled is not None:
        error = pickle.loads(pickled)
    else:
        error = _made_of(_imported(module, qualified), name, sentence)
    if not isinstance(error, Exception):
        error = FeederError(f"a function of the dataset raised {type(error).__name__}({error}) in a worker process")
    error.__cause__ = WorkerTraceback(text)
    return error


def _same(copy: Any, error: BaseException) -> bool:
    return type(copy) is type(error) and _sentence(copy) == _sentence(error)


def _importable(kind: type) -> bool:
    """Whether another process finds a class under its name."""
    try:
        return _imported(kind.__module__, kind.__qualname__) is kind
    except (ImportError, AttributeError):
        return False


def _imported(module: str, qualified: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


def _sentence(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__
        return f"{type(error).__name__} (its text cannot be had)"


def _made_of(kind: type[BaseException], name: str, sentence: str) -> BaseException:
    """Return an exception of a class below ``kind`` whose text is a sentence, without calling any ``__init__``."""
    below: Any = type(name, (kind,), {"__str__": lambda self: sentence, "__module__": kind.__module__})
    made: BaseException
    try:
        made = below.__new__(below)
    except TypeError:  # such as ExceptionGroup, which must be given parts
        made = RuntimeError(f"{name}: {sentence}")
    return made
