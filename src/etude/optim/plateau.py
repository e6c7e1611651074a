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
        self.mode, self.min_delta = mode, min_delta
        self._sign = 1 if mode == "min" else -1
        self.best, self.waited = self._sign * math.inf, 0

    def improves(self, value: float) -> bool:
        """Counts an observation and returns whether it is better than the best by more than `min_delta`; NaN never is."""
        better = self._sign * value < self._sign * self.best - self.min_delta
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        if "mode" not in state_dict:  # of an earlier version, which turned the sign for "max"
            best = self._sign * best
        self.best, self.waited = best, state_dict.get("waited", 0)
