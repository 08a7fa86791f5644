"""Everything that shardfeed raises on purpose.

::

    FeederError
    ├── ConfigError (ValueError)         an argument or a combination of arguments that cannot work
    │   └── RankError                    rank and world size are missing, or contradict each other
    ├── StateError (ValueError)          a checkpoint state that does not belong to this dataset or order
    ├── SampleError (ValueError)         one sample cannot be decoded, and the policy says to stop
    │   └── TooManyBadSamplesError       more bad samples than ``max_bad_fraction`` allows
    ├── TransformError (RuntimeError)    a user's own function raised, or returned what cannot be used
    ├── StalledError (RuntimeError)      a stage of the pipeline made no progress in its time limit
    ├── WorkerDiedError (RuntimeError)   a worker process of a loader has ended: killed, crashed, out of memory
    ├── MissingPackageError (ImportError)  an optional package is needed and not installed
    └── feeder.shards.errors.ShardsError   datasets on disk; its own tree stands in that module

Every message says what, where, what was got, what was expected, and the next step.
"""


class FeederError(Exception):
    """Root of all errors raised by shardfeed. Commands print its message as one sentence and exit with code 2."""


class ConfigError(FeederError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class RankError(ConfigError):
    """Rank and world size are missing, out of range, or contradict each other."""


class StateError(FeederError, ValueError):
    """A state that does not belong to this dataset or this order, or that is not a state at all."""


class SampleError(FeederError, ValueError):
    """A sample cannot be decoded and ``on_error="raise"`` was chosen."""


class TooManyBadSamplesError(SampleError):
    """More of the last samples were bad than ``max_bad_fraction`` allows."""


class TransformError(FeederError, RuntimeError):
    """A user's own function raised, which is the cause of this error, or returned what cannot be used.

    It says nothing of the sample's bytes: no other sample stands in, whatever ``on_error`` says.
    """

    def at(self, place: str) -> "TransformError":
        """Return the error that also names a place, such as ``sample 17 ('ant/ant-03')``, with the same cause."""
        error = TransformError(f"{self}; at {place}")
        error.__cause__ = self.__cause__
        return error


class StalledError(FeederError, RuntimeError):
    """A stage of the pipeline made no progress within its time limit."""


class WorkerDiedError(FeederError, RuntimeError):
    """A worker process of a loader has ended without being told to."""


class MissingPackageError(FeederError, ImportError):
    """An optional package is needed and is not installed."""
