"""Randomized smoothing: a radius within which no change of the inputs changes the class, with a stated confidence.

Shapes: n examples, c classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import beta, norm
from torch import Tensor

from etude.attacks.objectives import LogitsOf

ABSTAINS = -1


class Certificate(NamedTuple):
    """The class of each example, int64 [n], -1 where the smoothed classifier abstains; and its l2 radius, [n], 0 there."""

    classes: Tensor
    radius: Tensor


def check_samples(samples: int, alpha: float) -> None:
    """Raises ValueError if no radius can be certified even where all samples agree, that is, alpha^(1/samples) <= 1/2."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie in (0, 1); 0.001 is a confidence of 99.9 %")
    least = math.floor(math.log(alpha) / math.log(0.5)) + 1
    if samples < least:
        raise ValueError(
            f"samples={samples} certify nothing at alpha={alpha}, even if all agree; give samples={least} or more, 1000 say"
        )


def lower_bound(successes: int, samples: int, alpha: float) -> float:
    """Returns the one-sided lower confidence bound of a probability: at least it with confidence 1 - alpha.

    Source: Clopper and Pearson 1934.
    """
    return 0.0 if successes == 0 else float(beta.ppf(alpha, successes, samples - successes + 1))


def radius_of(probability: float, sigma: float) -> float:
    """Returns sigma times the normal quantile of the probability of the most likely class; 0 up to a half.

    Source: Cohen, Rosenfeld and Kolter 2019, theorem 1, with p_B = 1 - p_A.
    """
    return sigma * float(norm.ppf(probability)) if probability > 0.5 else 0.0


def certify(
    logits_of: LogitsOf,
    inputs: Tensor,
    *,
    sigma: float,
    samples: int = 1000,
    selection: int = 100,
    alpha: float = 0.001,
    counted: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Certificate:
    """Certifies the classifier that says the most likely class under Gaussian noise on its inputs.

    The class is chosen by `selection` draws of noise; `samples` others bound its probability. The noise must be the same for
    all inputs: a sigma that depended on an example would not be valid around it.

    Args:
        logits_of: logits [n, c] of inputs [n, ...]. sigma: standard deviation of the noise, above 0.
        alpha: probability with which a certificate may be wrong, in (0, 1).
        counted: 1 where inputs are real, 0 in padding, which gets no noise.

    Raises: ValueError for too few samples, or an option out of its range.

    Source: Cohen, Rosenfeld and Kolter 2019, algorithm CERTIFY.
    """
    if not sigma > 0 or selection < 1:
        raise ValueError(f"sigma={sigma} must be above 0, selection={selection} at least 1")
    check_samples(samples, alpha)
    mask = None if counted is None else counted.to(inputs)

    def votes(number: int) -> Tensor:
        total: Tensor | None = None
        for _ in range(number):
            noise = sigma * torch.randn(inputs.shape, generator=generator, device=inputs.device, dtype=inputs.dtype)
            logits = logits_of(inputs + (noise if mask is None else noise * mask))
            one = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
            total = one if total is None else total + one
        assert total is not None
        return total

    with torch.no_grad():
        chosen = votes(selection).argmax(1)
        agreed = votes(samples).gather(1, chosen[:, None])[:, 0]
    radii = [radius_of(lower_bound(count, samples, alpha), sigma) for count in agreed.tolist()]
    radius = torch.tensor(radii, dtype=torch.float64)
    return Certificate(torch.where(radius > 0, chosen.cpu(), ABSTAINS), radius)
