"""Time on the side: what may be spent beside training, and what was."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class TimeBudget:
    """Keeps what is spent on the side within a share of the time that the rest of training takes.

    share spent = seconds spent / (seconds since training began - seconds spent). Its state goes on counting in a resumed
    run.

    Args:
        share: most that may be spent, above 0.
        clock: seconds from any beginning, never running backwards.
    """

    def __init__(self, share: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self.clock = share, clock
        self.spent = 0.0
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Training begins, or goes on after a resume."""
        self._since = self.clock()

    def stop(self) -> None:
        """Training pauses."""
        self._before, self._since = self._total, None

    @property
    def running(self) -> bool:
        """Whether training has begun and not paused."""
        return self._since is not None

    @property
    def _total(self) -> float:
        return self._before + (0.0 if self._since is None else self.clock() - self._since)

    @property
    def rest(self) -> float:
        """Seconds of training so far, without what was spent."""
        return max(self._total - self.spent, 0.0)

    @property
    def share_spent(self) -> float:
        """Share that was spent so far; 0 before training takes any time."""
        return self.spent / self.rest if self.rest > 0 else 0.0

    def fits(self, seconds: float) -> bool:
        """Whether spending `seconds` more, now, stays within the share."""
        return self.spent + seconds <= self.share * self.rest

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Counts what happens inside as spent, also where it fails."""
        began = self.clock()
        try:
            yield
        finally:
            self.spent += self.clock() - began

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent, "total": self._total}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.spent, self._before = state["spent"], state["total"]
