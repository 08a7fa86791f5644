"""The claim on a destination behind a URL: a marker object with an owner, renewed as long as the owner lives.

Made with a conditional request (S3's ``If-None-Match: *``, and what fsspec makes of mode ``"create"`` elsewhere), so
that of two builds that come at once one wins; renewed and taken over with ``If-Match``, so that nobody overwrites what
he has not seen. An owner is taken for dead if its process is gone from this very machine, or if its marker is older
than `STALE_S` by the store's own clock.

Stores that ignore conditions, or have none, leave a gap of one request in which two builds may both begin; then the one
whose marker was overwritten sees it at its next renewal and stops.
"""

import contextlib
import dataclasses
import email.utils
import functools
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from feeder.shards.dataset.manifest import MARKER_NAME
from feeder.shards.destinations.conditional import is_s3, put_new, put_over
from feeder.shards.destinations.protocol import in_use, not_empty
from feeder.shards.errors import DestinationError

RENEW_S = 20.0  # a request every so often costs nothing
STALE_S = 300.0  # fifteen renewals: a store that does not answer for minutes does not cost the claim

_TEXT = "shardfeed is writing here, or was interrupted; the same command again goes on with it"

_held: set[str] = set()  # the owners that live in this process: it may have given others up when no store answered


def _clock_s() -> float:
    """Return seconds that pass also while the machine sleeps, as they do for the store."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _LostError(Exception):
    """The marker is not what it was taken for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Marker:
    """What a marker says: who wrote it last, when (seconds of Unix time), and whether it is free to be taken."""

    owner: str
    host: str
    process: list[Any]
    renewed: float
    vacant: bool

    def encoded(self) -> bytes:
        return json.dumps({"text": _TEXT, **dataclasses.asdict(self)}).encode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A marker that is there, its entity tag where the store has such, and its age in seconds."""

    marker: _Marker
    tag: str | None
    age_s: float


class Lease:
    """The marker of one destination, from one process.

    Args:
        files: the fsspec file system.
        url: of the marker.
        destination: its folder, for messages.
    """

    def __init__(self, files: Any, url: str, destination: str) -> None:
        self._files, self._url, self._destination = files, url, destination
        self._owner = uuid.uuid4().hex
        self._tag: str | None = None
        self._renewed_s = _clock_s()
        self._lost = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def holder(self) -> str:
        """Return who holds the marker now, as a clause for `in_use`; empty if it is free, or the owner dead."""
        found = self._find()
        return "" if found is None else self._alive(found)

    def take(self) -> bool:
        """Take the marker, and renew it from now on; return whether it was there before, free or of a dead build.

        Raises:
            DestinationError: another build holds it, or it is nothing that a build writes.
        """
        found = self._find()
        if found is not None and (who := self._alive(found)):
            raise in_use(self._destination, who)
        try:
            self._write(self._made(), found)
        except _LostError as error:
            raise in_use(self._destination) from error
        _held.add(self._owner)
        self._thread = threading.Thread(target=self._keep_renewing, name="feeder-lease", daemon=True)
        self._thread.start()
        return found is not None

    def check(self) -> None:
        """Raise `DestinationError` if the marker was taken over, or could not be renewed for long."""
        if self._lost or _clock_s() - self._renewed_s > STALE_S:  # a process that was stopped renews nothing
            raise DestinationError(
                f"destination {self._destination} was taken over by another process of shardfeed, because this one "
                f"gave no sign of life for {STALE_S:.0f} s; wait until that has finished"
            )

    def give_up(self, *, vacant: bool = False) -> None:
        """Stop renewing, and remove the marker, or leave it free; nothing is raised if the store does not answer."""
        self._ended.set()
        _held.discard(self._owner)
        if self._thread is not None:
            self._thread.join()
        if self._lost:
            return
        with contextlib.suppress(Exception):  # then it gets stale, or this process is seen to be gone
            found = self._find()
            if found is None or found.marker.owner != self._owner:
                return
            if vacant:
                self._write(self._made(vacant=True), found)
            else:
                self._files.rm_file(self._url)

    def renew(self) -> None:
        """Renew the marker; if that is not possible, for once or for good, `check` says so in time."""
        try:
            found = self._find()
            if found is None or found.marker.owner != self._owner:
                raise _LostError
            self._write(self._made(), found)
            self._renewed_s = _clock_s()
        except (_LostError, DestinationError):
            self._lost = True
        except Exception:  # noqa: BLE001 - whatever the store's library raises: it may answer again next time
            self._lost = _clock_s() - self._renewed_s > STALE_S - RENEW_S

    def _keep_renewing(self) -> None:
        while not self._lost and not self._ended.wait(RENEW_S):
            self.renew()

    def _made(self, *, vacant: bool = False) -> _Marker:
        return _Marker(
            owner=self._owner,
            host=socket.gethostname(),
            process=[*_machine(), os.getpid(), _started(os.getpid())],
            renewed=time.time(),
            vacant=vacant,
        )

    def _alive(self, found: _Found) -> str:
        """Return who holds a marker, as a clause; empty if it is free or its owner dead."""
        marker = found.marker
        if marker.vacant or found.age_s > STALE_S:
            return ""
        *machine, pid, started = marker.process
        if _machine()[0] and machine == _machine():
            gone = marker.owner not in _held if pid == os.getpid() else _started(pid) != started
            if gone:
                return ""
        return (
            f" (process {pid} on {marker.host}, last sign of life {max(0, found.age_s):.0f} s ago; if it was killed, "
            f"its place is free after {STALE_S:.0f} s)"
        )

    def _find(self) -> _Found | None:
        """Return the marker, or None if there is none."""
        tag = None
        try:
            if is_s3(self._files):
                bucket, key, _ = self._files.split_path(self._url)
                head = self._files.call_s3("head_object", Bucket=bucket, Key=key)
                tag = head["ETag"]
                now = email.utils.parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
                age_s = (now - head["LastModified"]).total_seconds()
                marker = self._parsed(self._files.cat_file(self._url))
            else:
                marker = self._parsed(self._files.cat_file(self._url))
                age_s = time.time() - marker.renewed
        except FileNotFoundError:
            return None
        return _Found(marker=marker, tag=tag, age_s=age_s)

    def _parsed(self, data: bytes) -> _Marker:
        try:
            document = json.loads(data)
            marker = _Marker(**{field.name: document[field.name] for field in dataclasses.fields(_Marker)})
            _, _, pid, started = marker.process
            int(pid), int(started), float(marker.renewed)  # what no number is, is none of ours
        except (ValueError, KeyError, TypeError) as error:
            raise not_empty(self._destination, MARKER_NAME) from error
        return marker

    def _write(self, marker: _Marker, found: _Found | None) -> None:
        """Write the marker if it is still absent, or still the one that was found; else raise `_LostError`."""
        data = marker.encoded()
        if found is None:
            written = put_new(self._files, self._url, data)
        else:
            written = put_over(self._files, self._url, data, found.tag)
        # A request that was sent again because its answer got lost finds its own result.
        if not written and ((now := self._find()) is None or now.marker != marker):
            raise _LostError


@functools.cache
def _machine() -> list[str]:
    """Return what names this machine since its start, and this process's namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return [boot, os.readlink("/proc/self/ns/pid")]
    except OSError:  # no Linux: then the marker's age decides
        return ["", ""]


def _started(pid: int) -> int:
    """Return when a process started, in ticks since the machine did; −1 if there is no such process, or it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return -1
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return -1 if fields[0] in "ZX" else int(fields[19])
