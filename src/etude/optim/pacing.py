"""Pacing functions of curricula: the share of pieces that is admitted after a share of training."""

import math

PACINGS = ("linear", "root", "exponential", "cosine")


def check_share(name: str, value: float) -> None:
    """Raises: ValueError if `value` is not in (0, 1]; `name` is the option, such as "curriculum.end"."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"technique.{name} is {value!r}, must be in (0, 1]")


def competence(progress: float, *, pacing: str = "root", start: float = 0.2, power: float = 2.0) -> float:
    """Returns the competence c(t), which increases from c(0) = start to c(1) = 1; t is `progress`, clipped to [0, 1].

    With s = start and p = power:

    - linear: c = s + (1 - s) t.
    - root: c = (t (1 - s^p) + s^p)^(1/p). It slows down as harder pieces are admitted, so that each gets the same time
      (equation 8 of the source, where p = 2).
    - exponential: c = s^(1 - t), which admits most pieces late.
    - cosine: c = s + (1 - s) (1 - cos(pi t)) / 2, slow at both ends.

    Source: Platanios et al. 2019, equations 6 and 8.

    Raises:
        ValueError: the pacing is unknown, or the power is not above 0.
    """
    t = min(1.0, max(0.0, progress))
    if pacing == "linear":
        return start + (1 - start) * t
    if pacing == "root":
        if power <= 0:
            raise ValueError(f"power is {power}, must be above 0; 2 is the square root")
        return float(min(1.0, (t * (1 - start**power) + start**power) ** (1 / power)))
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
        return float((c**power - start**power) / (1 - start**power))
    if pacing == "exponential":
        return 1 - math.log(c) / math.log(start)
    if pacing == "cosine":
        return math.acos(1 - 2 * (c - start) / (1 - start)) / math.pi
    raise ValueError(f"pacing is {pacing!r}; choose from {', '.join(PACINGS)}")
