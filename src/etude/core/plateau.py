"""When a watched metric no longer gets better."""

import math
from typing import Any


def check_mode(name: str, mode: str) -> None:
    """Raises: ValueError where `mode` says neither that less ("min") nor that more ("max") is better."""
    if mode not in ("min", "max"):
        raise ValueError(f"technique.{name} is {mode!r}, must be min or max")


class Plateau:
    """The best value of a metric, and how many observations in a row have not improved on it.

    Args:
        mode: whether less ("min") or more ("max") is better.
        min_delta: smaller progress is none.
    """

    def __init__(self, *, mode: str = "min", min_delta: float = 0.0) -> None:
        self._sign, self.min_delta = (1 if mode == "min" else -1), min_delta
        self.best, self.waited = self._sign * math.inf, 0

    def improves(self, value: float) -> bool:
        """Counts an observation and returns whether it is better than the best by more than `min_delta`; NaN never is."""
        better = self._sign * value < self._sign * self.best - self.min_delta
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
