"""Where the seconds of a training loop go: into its own work, or into waiting for batches, and for what.

Time is one line that is cut where something ends, and each piece has one cause; so the seconds by cause sum to the wall
time by construction.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from feeder.stages import Counts

COMPUTE = "compute"
WORKER_START = "worker start"
FIRST_BATCH = "first batch"
WORKER = "worker"  # where a worker cannot say by which stage it was kept
HAND_OVER = "hand-over"
DEVICE = "copy to device"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderStats:
    """The account of an epoch, or of several.

    Attributes:
        epoch: the epoch; None for several.
        batches: how many were handed out.
        wall_s: seconds from the start of the iteration to now, or to its end.
        compute_s: seconds that the training loop took between asking for batches.
        stalls_s: seconds that it waited, by cause: "worker start"; "first batch", after a start or a seek; the stages
            that kept the workers ("read", "decode", a transform's name, …), in proportion to the time that these were
            busy with them; "worker" where none was; "hand-over"; "copy to device".
    """

    epoch: int | None
    batches: int
    wall_s: float
    compute_s: float
    stalls_s: Mapping[str, float]

    @property
    def stall_s(self) -> float:
        """Seconds that the training loop waited."""
        return sum(self.stalls_s.values())

    @property
    def utilization(self) -> float:
        """The training loop's part of the wall time, from 0 to 1."""
        return self.compute_s / self.wall_s if self.wall_s else 0.0

    def __str__(self) -> str:
        name = "all epochs" if self.epoch is None else f"epoch {self.epoch}"
        parts = sorted(self.stalls_s.items(), key=lambda item: -item[1])
        causes = ", ".join(f"{cause} {seconds:.2f} s" for cause, seconds in parts if seconds >= 0.005)
        return (
            f"{name}: {self.batches} batches in {self.wall_s:.2f} s, of which compute {self.compute_s:.2f} s"
            f" ({self.utilization:.1%}), stalls {self.stall_s:.2f} s{f': {causes}' if causes else ''}"
        )


@dataclass(slots=True)
class _Account:
    epoch: int | None
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def stats(self) -> LoaderStats:
        stalls = {cause: seconds for cause, seconds in self.seconds.items() if cause != COMPUTE}
        return LoaderStats(
            epoch=self.epoch,
            batches=self.batches,
            wall_s=sum(self.seconds.values()),
            compute_s=self.seconds.get(COMPUTE, 0.0),
            stalls_s=stalls,
        )


class StallClock:
    """Cuts time into pieces that have a cause.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._mark = 0.0
        self._epoch = _Account(None)
        self._all = _Account(None)
        self._busy_s: dict[int, dict[str, float]] = {}  # by worker and stage, when last heard

    def start(self, epoch: int) -> None:
        """Begin the account of an epoch, now."""
        self._epoch = _Account(epoch)
        self._mark = self._now()

    def note(self, cause: str) -> None:
        """Give the time since the last call to a cause."""
        self._add({cause: self._cut()})

    def note_waiting(self, worker: int, counts: Counts | None) -> None:
        """Give the time since the last call to the stages that a worker was busy with, as far as it has counted them.

        Args:
            worker: its number.
            counts: what its stages have done since it was started; None if it does not count.
        """
        before = self._busy_s.get(worker, {})
        busy = {stage: busy_s for stage, (_, _, busy_s) in (counts or {}).items()}
        grown = {stage: max(0.0, busy_s - before.get(stage, 0.0)) for stage, busy_s in busy.items()}
        self._busy_s[worker] = busy
        seconds, total = self._cut(), sum(grown.values())
        self._add({stage: seconds * part / total for stage, part in grown.items()} if total else {WORKER: seconds})

    def forget_workers(self) -> None:
        """Expect counts that start from zero."""
        self._busy_s.clear()

    def count_batch(self) -> None:
        """Count a batch that is handed out."""
        self._epoch.batches += 1
        self._all.batches += 1

    @property
    def stats(self) -> LoaderStats:
        """The account of the epoch begun last."""
        return self._epoch.stats()

    @property
    def total(self) -> LoaderStats:
        """The account of all epochs."""
        return self._all.stats()

    def _cut(self) -> float:
        mark, self._mark = self._mark, self._now()
        return self._mark - mark

    def _add(self, seconds: Mapping[str, float]) -> None:
        for account in (self._epoch, self._all):
            for cause, more in seconds.items():
                account.seconds[cause] = account.seconds.get(cause, 0.0) + more
