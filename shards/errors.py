"""What reading and writing datasets raises on purpose.

::

    FeederError
    └── ShardsError
        ├── SourceError (ValueError)      the input of a build cannot be used
        ├── DestinationError (ValueError) the output of a build cannot be used
        ├── ManifestError (ValueError)    missing, cut, of a future version, or contradicting itself
        ├── ShardError (ValueError)       a shard or its index is missing, cut, altered, or of another dataset
        └── StorageError (OSError)        the storage answered with an error
"""

from feeder.errors import FeederError


class ShardsError(FeederError):
    """Root of what `feeder.shards` raises."""


class SourceError(ShardsError, ValueError):
    """The input of a build cannot be used."""


class DestinationError(ShardsError, ValueError):
    """The output of a build cannot be used."""


class ManifestError(ShardsError, ValueError):
    """A manifest is missing, cut, of a future version, or contradicts itself."""


class ShardError(ShardsError, ValueError):
    """A shard or its index is missing, cut, altered, or belongs to another dataset."""


class StorageError(ShardsError, OSError):
    """The storage answered with an error; the system's words are in the message."""
