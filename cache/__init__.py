"""Cache: tiers that hold shards near the GPUs, and fetching through them.

This folder is imported as ``feeder.cache``, through the link ``feeder/cache``; the bare name belongs to the user's own
code.
"""

if __name__ != "feeder.cache":
    raise ImportError(f"this folder is imported as 'feeder.cache', not as {__name__!r}; write: import feeder.cache")
