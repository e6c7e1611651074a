"""Whether probabilities mean what they say: calibration error, reliability, and temperature scaling.

Shapes: n examples.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are tried


class Reliability(NamedTuple):
    """Examples in bins of equal width by their probability: mean probability, share of positives, number. NaN in empty bins."""

    confidence: Floats
    frequency: Floats
    number: NDArray[np.int64]


def sigmoid(logits: ArrayLike) -> Floats:
    """Returns 1 / (1 + exp(-logit)), without overflow."""
    found: Floats = 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))
    return found


def reliability(probabilities: ArrayLike, truths: ArrayLike, *, num_bins: int = 15) -> Reliability:
    """Returns for each bin of probability how probable its examples were said to be, and how many of them are true.

    Args:
        probabilities: in [0, 1], [n]. truths: 0 or 1, [n].
    """
    said, true = np.asarray(probabilities, np.float64).ravel(), np.asarray(truths, np.float64).ravel()
    place = np.minimum((said * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean, share = (np.bincount(place, values, num_bins) / count for values in (said, true))
    return Reliability(mean, share, count)


def expected_calibration_error(probabilities: ArrayLike, truths: ArrayLike, *, num_bins: int = 15) -> float:
    """Returns the mean over examples of |share of positives - probability| of their bin, in [0, 1]; NaN without examples.

    Source: Guo et al. 2017, equation 3, for the probability of the positive class instead of that of the predicted class.
    """
    bins = reliability(probabilities, truths, num_bins=num_bins)
    if not bins.number.sum():
        return math.nan
    gap = np.nan_to_num(np.abs(bins.frequency - bins.confidence))
    return float((gap * bins.number).sum() / bins.number.sum())


def log_loss(logits: ArrayLike, truths: ArrayLike) -> float:
    """Returns the mean cross-entropy in nats of logits for truths of 0 or 1."""
    z, y = np.asarray(logits, np.float64), np.asarray(truths, np.float64)
    return float(np.mean(np.logaddexp(0, z) - y * z))


def fit_temperature(logits: ArrayLike, truths: ArrayLike) -> float:
    """Returns the temperature T, in [0.05, 20], for which the log loss of logits / T is the lowest; 1 if one class is missing.

    Source: Guo et al. 2017, section 4.2 (temperature scaling), for one binary class.
    """
    z, y = np.asarray(logits, np.float64).ravel(), np.asarray(truths, np.float64).ravel()
    if not len(y) or y.min() == y.max():
        return 1.0
    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found = minimize_scalar(lambda t: log_loss(z / math.exp(t), y), bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(math.exp(found.x))


def fit_temperatures(logits_nd: ArrayLike, truths_nd: ArrayLike) -> list[float]:
    """Returns the temperature of each column."""
    columns: Sequence[tuple[Floats, Floats]] = list(zip(np.asarray(logits_nd).T, np.asarray(truths_nd).T, strict=True))
    return [fit_temperature(z, y) for z, y in columns]
