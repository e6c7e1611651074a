"""A time budget for work beside training, such as measurements."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class TimeBudget:
    """Limits the time of work beside training to a share of the time of training itself.

    share spent = seconds spent / (seconds since training began - seconds spent). A resumed run continues the counts.

    Args:
        share: the largest share that may be spent, above 0.
        clock: returns seconds since any fixed time; must not go backwards.
    """

    def __init__(self, share: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self.clock = share, clock
        self.spent = 0.0
        self._earlier_seconds = 0.0
        self._started_at: float | None = None

    def start(self) -> None:
        """Starts counting: call when training begins or resumes."""
        self._started_at = self.clock()

    def stop(self) -> None:
        """Stops counting: call when training ends or pauses."""
        self._earlier_seconds, self._started_at = self._total_seconds, None

    @property
    def running(self) -> bool:
        """Whether `start` was called and `stop` was not yet."""
        return self._started_at is not None

    @property
    def _total_seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._started_at is None else self.clock() - self._started_at)

    @property
    def training_seconds(self) -> float:
        """Seconds of training so far, without the seconds spent beside it."""
        return max(self._total_seconds - self.spent, 0.0)

    @property
    def share_spent(self) -> float:
        """The share spent so far; 0 before any time has passed."""
        return self.spent / self.training_seconds if self.training_seconds > 0 else 0.0

    def fits(self, seconds: float) -> bool:
        """Whether spending another `seconds` now stays within the share."""
        return self.spent + seconds <= self.share * self.training_seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Counts the time inside the `with` block as spent, also if it raises."""
        began = self.clock()
        try:
            yield
        finally:
            self.spent += self.clock() - began

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent, "total": self._total_seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.spent, self._earlier_seconds = state["spent"], state["total"]
