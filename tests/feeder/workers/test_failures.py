"""Exceptions arrive as what they were."""

import pytest

from feeder.errors import ConfigError, FeederError
from feeder.workers.failures import WorkerTraceback, packed, unpacked
from tests.feeder.workers.streams import Picky


def sent(raised: BaseException) -> BaseException:
    """Raise an exception, and return what arrives of it."""
    try:
        raise raised
    except BaseException as error:  # noqa: BLE001
        return unpacked(packed(error, "worker 3"))


@pytest.mark.parametrize(
    "error", [ValueError("a", 1), ConfigError("batch_size is 0"), OSError(5, "input/output error"), MemoryError()]
)
def test_type_arguments_and_sentence_are_the_same(error):
    arrived = sent(error)
    assert (type(arrived), arrived.args, str(arrived)) == (type(error), error.args, str(error))


def test_the_cause_is_the_traceback_of_the_worker():
    arrived = sent(KeyError("x"))
    assert isinstance(arrived.__cause__, WorkerTraceback)
    assert str(arrived.__cause__).startswith("\n\nin worker 3:\nTraceback (most recent call last):\n")
    assert "raise raised\nKeyError: 'x'" in str(arrived.__cause__)


def test_one_that_cannot_be_pickled_is_of_a_class_below_its_own():
    arrived = sent(Picky("salt", "pepper"))
    assert isinstance(arrived, Picky)
    assert (type(arrived).__name__, str(arrived)) == ("Picky", "salt and pepper")


def test_one_of_a_class_that_nobody_finds_is_of_a_class_below_the_next_above_it():
    class LocalError(ValueError):
        pass

    arrived = sent(LocalError("from within"))
    assert isinstance(arrived, ValueError)
    assert (type(arrived).__name__, str(arrived)) == ("LocalError", "from within")


def test_one_whose_text_fails_arrives_all_the_same():
    class Silent(RuntimeError):
        def __str__(self) -> str:
            raise AssertionError

    assert str(sent(Silent())) == "Silent (its text cannot be had)"


def test_one_that_cannot_be_made_without_arguments_is_a_runtime_error():
    class Several(ExceptionGroup):
        pass

    arrived = sent(Several("both", [ValueError(1)]))
    assert (type(arrived), str(arrived)) == (RuntimeError, "Several: both (1 sub-exception)")


def test_what_would_end_this_process_is_an_error_of_ours():
    arrived = sent(SystemExit(3))
    assert type(arrived) is FeederError
    assert str(arrived) == "a function of the dataset raised SystemExit(3) in a worker process"
