"""How good predicted classes are: accuracy, balanced accuracy, confusion, calibration over several classes.

Shapes: n examples, c classes.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are tried


def softmax(logits_nc: ArrayLike) -> Floats:
    """Returns exp(logits) / sum of exp(logits) of each row, in float64."""
    z = np.asarray(logits_nc, np.float64)
    shifted = np.exp(z - z.max(-1, keepdims=True))
    found: Floats = shifted / shifted.sum(-1, keepdims=True)
    return found


def confusion(predicted_n: ArrayLike, true_n: ArrayLike, *, num_classes: int) -> NDArray[np.int64]:
    """Returns how many examples of each true class (rows) were taken for each class (columns), [c, c]."""
    pairs = np.asarray(true_n, np.int64) * num_classes + np.asarray(predicted_n, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(predicted_n: ArrayLike, true_n: ArrayLike) -> float:
    """Returns the share of examples whose class is right; NaN without examples."""
    right = np.asarray(predicted_n) == np.asarray(true_n)
    return float(right.mean()) if right.size else math.nan


def balanced_accuracy(predicted_n: ArrayLike, true_n: ArrayLike) -> float:
    """Returns the mean over the classes that occur of the share of their examples whose class is right; NaN without examples."""
    predicted, true = np.asarray(predicted_n), np.asarray(true_n)
    shares = [float((predicted[true == one] == one).mean()) for one in np.unique(true)]
    return float(np.mean(shares)) if shares else math.nan


def log_loss(logits_nc: ArrayLike, true_n: ArrayLike) -> float:
    """Returns the mean cross-entropy in nats."""
    z = np.asarray(logits_nc, np.float64)
    largest = z.max(-1)
    total = largest + np.log(np.exp(z - largest[:, None]).sum(-1))
    return float(np.mean(total - z[np.arange(len(z)), np.asarray(true_n, np.int64)]))


def fit_temperature(logits_nc: ArrayLike, true_n: ArrayLike) -> float:
    """Returns the temperature in [0.05, 20] for which the log loss of logits / temperature is the lowest; 1 without examples.

    Source: Guo et al. 2017, section 4.2.
    """
    z, true = np.asarray(logits_nc, np.float64), np.asarray(true_n, np.int64)
    if not len(true):
        return 1.0
    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found: Any = minimize_scalar(
        lambda t: log_loss(z / math.exp(t), true), bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    return float(math.exp(found.x))


def reliability(probabilities_nc: ArrayLike, true_n: ArrayLike, *, num_bins: int = 15) -> tuple[Floats, Floats, Floats]:
    """Returns mean confidence, accuracy and number of the examples in each of equally wide bins of confidence, [num_bins].

    The first two are 0 in an empty bin. Source: Guo et al. 2017, section 2.
    """
    p, true = np.asarray(probabilities_nc, np.float64), np.asarray(true_n, np.int64)
    said, right = p.max(-1), (p.argmax(-1) == true).astype(np.float64)
    place = np.minimum((said * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(place, minlength=num_bins).astype(np.float64)
    sums = (np.bincount(place, each, num_bins) for each in (said, right))
    confidence, accurate = (each / counts.clip(1) for each in sums)
    return confidence, accurate, counts


def calibration_error(probabilities_nc: ArrayLike, true_n: ArrayLike, *, num_bins: int = 15) -> float:
    """Returns the mean over examples of |accuracy - confidence| of their bin of confidence, in [0, 1]; NaN without examples.

    Source: Guo et al. 2017, equation 3.
    """
    if not len(np.asarray(true_n)):
        return math.nan
    confidence, accurate, counts = reliability(probabilities_nc, true_n, num_bins=num_bins)
    return float(np.sum(counts * np.abs(accurate - confidence)) / counts.sum())
