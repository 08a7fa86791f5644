"""Shards: the formats on disk, reading and writing them.

This folder is imported as ``feeder.shards``, through the link ``feeder/shards``; the bare name belongs to the user's
own code.
"""

if __name__ != "feeder.shards":
    raise ImportError(f"this folder is imported as 'feeder.shards', not as {__name__!r}; write: import feeder.shards")
