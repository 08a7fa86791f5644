"""The audit log: one line of JSON for each bad sample that a batch met, and what was put in its place.

Lines are added by all ranks and workers to one file, each with one ``write`` to a file opened for appending, which
local file systems keep whole. A log that cannot be written is a warning, once: training goes on.
"""

import json
import logging
import os
from pathlib import Path

from feeder.layout import BadSample

_log = logging.getLogger("feeder")


class AuditLog:
    """Adds lines to a file; every process opens it on its own.

    A line is an object: ``dataset`` (URL), ``rank``, ``epoch``, ``position`` and ``row`` of the batch, ``id`` and
    ``key`` of the sample, ``reason``, and ``stand_in`` (id and key, or null where the row is masked).

    Args:
        path: of the file; it is made if need be.
        rank: of this process.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int) -> None:
        self._path = Path(path)
        self._rank = rank
        self._failed = False

    def add(self, dataset: str, epoch: int, position: int, bad: BadSample) -> None:
        """Add a line."""
        line = {
            "dataset": dataset,
            "rank": self._rank,
            "epoch": epoch,
            "position": position,
            "row": bad.row,
            "id": bad.id,
            "key": bad.key,
            "reason": bad.reason,
            "stand_in": None if bad.stand_in is None else {"id": bad.stand_in[0], "key": bad.stand_in[1]},
        }
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning("cannot write the audit log %s: %s; training goes on", self._path, error.strerror or error)
