"""What reading and writing datasets raises on purpose.

::

    FeederError
    └── ShardsError
        ├── SourceError (ValueError)      the input of a build cannot be used
        │   ├── BadImageError             one image cannot be used; it names its cause
        │   └── NoGoodImageError          not one of many can
        ├── DestinationError (ValueError) the output of a build cannot be used
        │   └── ResumeError               an interrupted build there is not this one
        ├── ManifestError (ValueError)    missing, cut, of a future version, or contradicting itself
        ├── ShardError (ValueError)       a shard or its index is missing, cut, altered, or of another dataset
        └── StorageError (OSError)        the storage answered with an error
"""

from feeder.errors import FeederError


class ShardsError(FeederError):
    """Root of what `feeder.shards` raises."""


class SourceError(ShardsError, ValueError):
    """The input of a build cannot be used."""


class BadImageError(SourceError):
    """One image cannot be used.

    Attributes:
        cause: one of `feeder.shards.images.headers.CAUSES`, what tables of bad images count by.
        reason: one clause that says what was got and what was expected.
    """

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(cause, reason)  # both, so that the error survives a pickle between processes
        self.cause = cause
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class NoGoodImageError(SourceError):
    """Of all images that were to be written, not one can be used."""


class DestinationError(ShardsError, ValueError):
    """The output of a build cannot be used."""


class ResumeError(DestinationError):
    """A destination holds an interrupted build of other input, or with other options."""


class ManifestError(ShardsError, ValueError):
    """A manifest is missing, cut, of a future version, or contradicts itself."""


class ShardError(ShardsError, ValueError):
    """A shard or its index is missing, cut, altered, or belongs to another dataset."""


class StorageError(ShardsError, OSError):
    """The storage answered with an error; the system's words are in the message."""
