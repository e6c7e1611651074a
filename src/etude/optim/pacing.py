"""Pacing functions of curricula: how much of the difficulty range is open after a share of the way."""

import math

PACINGS = ("linear", "root", "exponential", "cosine")


def check_share(name: str, value: float) -> None:
    """Raises: ValueError where `value` is not in (0, 1]; `name` is what the user calls it, such as "curriculum.end"."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"technique.{name} is {value!r}, must be in (0, 1]")


def competence(progress: float, *, pacing: str = "root", start: float = 0.2, power: float = 2.0) -> float:
    """Returns c(t) in [start, 1], increasing, with c(0) = start and c(1) = 1; t is `progress`, beyond [0, 1] clipped.

    linear: c = s + (1 - s) t. root: c = (t (1 - s^p) + s^p)^(1/p), which slows down as harder pieces come, so that each gets
    the same time (equation 8 of the source, p = 2 there). exponential: c = s^(1 - t), late and fast. cosine: c = s + (1 - s)
    (1 - cos(pi t)) / 2, slow at both ends.

    Source: Platanios et al. 2019, equations 6 and 8.

    Raises:
        ValueError: an unknown pacing, or a power that is not above 0.
    """
    t = min(1.0, max(0.0, progress))
    if pacing == "linear":
        return start + (1 - start) * t
    if pacing == "root":
        if power <= 0:
            raise ValueError(f"power is {power}, must be above 0; 2 is the square root")
        return min(1.0, (t * (1 - start**power) + start**power) ** (1 / power))
    if pacing == "exponential":
        return float(start ** (1 - t))
    if pacing == "cosine":
        return start + (1 - start) * (1 - math.cos(math.pi * t)) / 2
    raise ValueError(f"pacing is {pacing!r}; choose from {', '.join(PACINGS)}")


def progress_at(value: float, *, pacing: str = "root", start: float = 0.2, power: float = 2.0) -> float:
    """Returns the t in [0, 1] at which `competence` reaches `value`; 0 for values up to `start`."""
    c = min(1.0, value)
    if c <= start:
        return 0.0
    if pacing == "linear":
        return (c - start) / (1 - start)
    if pacing == "root":
        return (c**power - start**power) / (1 - start**power)
    if pacing == "exponential":
        return 1 - math.log(c) / math.log(start)
    if pacing == "cosine":
        return math.acos(1 - 2 * (c - start) / (1 - start)) / math.pi
    raise ValueError(f"pacing is {pacing!r}; choose from {', '.join(PACINGS)}")
