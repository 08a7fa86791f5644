"""Commands: one module each; they parse, call and print.

This folder is imported as ``feeder.tools``, through the link ``feeder/tools``; the bare name belongs to the user's own
code.
"""

if __name__ != "feeder.tools":
    raise ImportError(f"this folder is imported as 'feeder.tools', not as {__name__!r}; write: import feeder.tools")
