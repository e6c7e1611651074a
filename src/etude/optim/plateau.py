"""Detects when a metric no longer improves."""

import math
from collections.abc import Mapping
from typing import Any


def check_mode(name: str, mode: str) -> None:
    """Raises: ValueError if `mode` is neither "min" nor "max"; `name` is the option, such as "early_stopping.mode"."""
    if mode not in ("min", "max"):
        raise ValueError(f"technique.{name} is {mode!r}, must be min or max")


def watched_options(state: Mapping[str, Any]) -> frozenset[str]:
    """Returns the options `monitor` and `mode` of a technique if the plateau in its state has seen a value of that metric."""
    return frozenset({"monitor", "mode"} if math.isfinite(state["best"]) else ())


class Plateau:
    """Keeps the best value of a metric and counts the values in a row that have not improved on it.

    Args:
        mode: "min" if lower values are better, "max" if higher values are.
        min_delta: a value must be better by more than this to count as an improvement.
        min_gain: and by more than this share of the best value's size.
    """

    def __init__(self, *, mode: str = "min", min_delta: float = 0.0, min_gain: float = 0.0) -> None:
        self.mode, self.min_delta, self.min_gain = mode, min_delta, min_gain
        self._sign = 1 if mode == "min" else -1
        self.best, self.waited = self._sign * math.inf, 0

    def improves(self, value: float) -> bool:
        """Records a value and returns whether it improves on the best by enough; NaN never does."""
        least = max(self.min_delta, self.min_gain * abs(self.best)) if math.isfinite(self.best) else 0.0
        better = self._sign * value < self._sign * self.best - least
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        if "mode" not in state_dict:  # an earlier version stored the negative value for "max"
            best = self._sign * best
        self.best, self.waited = best, state_dict.get("waited", 0)
