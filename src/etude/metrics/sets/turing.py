"""The musical Turing test: can a small classifier tell generated pieces from real ones?

Shapes: n pieces, d features.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LARGEST = 8.0  # deviations beyond which a feature says no more


@dataclass(frozen=True)
class Turing:
    """How well generated and real are told apart.

    Attributes:
        score: balanced accuracy on pieces that the classifier did not learn from: 0.5 indistinguishable, 1 always known.
        low, high: its confidence interval.
    """

    score: float
    low: float
    high: float


def turing_test(
    generated: ArrayLike,
    real: ArrayLike,
    *,
    generated_groups: ArrayLike | None = None,
    real_groups: ArrayLike | None = None,
    folds: int = 5,
    ridge: float = 1.0,
    confidence_z: float = 1.96,
    seed: int = 0,
) -> Turing:
    """Cross-validated balanced accuracy of a logistic regression that tells generated from real.

    score = (share of generated known as such + share of real known as such) / 2, each piece judged by a classifier that saw
    neither it nor any piece of its group. Features are standardised, and undefined ones set to the mean, by the training
    folds alone. The interval is Wilson's for 4 n m / (n + m) trials, which has the variance of the mean of two shares of n
    and m; it takes pieces as independent, which cross-validation makes only nearly true.

    Args:
        generated: [n, d], real: [m, d]; NaN where a feature is not defined; n and m at least 2.
        generated_groups, real_groups: int [n], [m]; rows of one number (excerpts of one piece, a restyled song and its
            truth) stay in one fold. None: every row is a group of its own.
        folds: at least 2; fewer where there are fewer groups.
        ridge: weight of |w|^2 / 2 beside the summed log-loss, above 0.
        confidence_z: normal quantile of the interval, 1.96 for 95 %.
        seed: of the folds.

    Raises:
        ValueError: fewer than two groups on a side, or other shapes.

    Source: as classifier two-sample test Lopez-Paz and Oquab 2017, there with one split; Wilson 1927 for the interval.
    """
    sides = [np.asarray(side, np.float64) for side in (generated, real)]
    if any(side.ndim != 2 for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(f"generated and real have shapes {sides[0].shape} and {sides[1].shape}; give [pieces, features] of each")
    n, m = (len(side) for side in sides)
    groups = [
        np.arange(n) if generated_groups is None else np.asarray(generated_groups),
        np.arange(n, n + m) if real_groups is None else np.asarray(real_groups),
    ]
    counts = [len(np.unique(group)) for group in groups]
    if min(counts) < 2:
        raise ValueError(f"generated has {counts[0]} groups, real {counts[1]}; a Turing test needs 2 of each: give more pieces")
    fold = _folds(groups, min(folds, *counts), seed)
    features, is_real = np.concatenate(sides), np.repeat([0.0, 1.0], [n, m])
    known = np.zeros(n + m)
    for number in range(fold.max() + 1):
        test = fold == number
        train_x, test_x = _standardised(features[~test], features[test])
        weights = logistic_regression(train_x, is_real[~test], ridge=ridge)
        known[test] = (test_x @ weights[1:] + weights[0] > 0) == is_real[test]
    score = float((known[:n].mean() + known[n:].mean()) / 2)
    low, high = wilson_interval(score, 4 * n * m / (n + m), confidence_z=confidence_z)
    return Turing(score, low, high)


def _folds(groups: list[NDArray], count: int, seed: int) -> NDArray[np.int64]:
    """The fold of every row, both sides' spread evenly; a group that is on both sides is one."""
    draw = np.random.default_rng(seed)
    first = np.unique(groups[0])
    rest = np.setdiff1d(np.unique(groups[1]), first)
    of = {g: i % count for part in (first, rest) for i, g in enumerate(draw.permutation(part).tolist())}
    return np.array([of[g] for g in np.concatenate(groups).tolist()])


def _standardised(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both by the mean and deviation of `train`; what is undefined or does not vary there becomes 0."""
    defined = np.isfinite(train)
    count = np.maximum(defined.sum(axis=0), 1)
    mean = np.where(defined, train, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(defined, train - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1.0), std, np.inf)
    one, other = (np.where(np.isfinite(x), (x - mean) / scale, 0.0).clip(-LARGEST, LARGEST) for x in (train, test))
    return one, other


def logistic_regression(features: ArrayLike, labels: ArrayLike, *, ridge: float = 1.0, most_steps: int = 50) -> Floats:
    """Weights [1 + d], the constant first, that minimise sum_i c_i ln(1 + exp(-s_i z_i)) + ridge |w|^2 / 2.

    z = w_0 + x . w, s is 1 for label 1 and -1 for label 0, c makes both labels weigh alike (n / (2 n_label)); the constant
    is not penalised. Newton's method, halving a step that does not descend.

    Args:
        features: [n, d], finite. labels: [n], 0 or 1, both present.
        ridge: above 0, or weights grow without end where the labels can be separated.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    share = np.where(y > 0, len(y) / (2 * max(y.sum(), 1)), len(y) / (2 * max((1 - y).sum(), 1)))
    penalty = np.full(x.shape[1], ridge)
    penalty[0] = 1e-9  # the constant is free; this only keeps the matrix regular
    sign = 2 * y - 1

    def loss(w: Floats) -> float:
        return float((share * np.logaddexp(0, -sign * (x @ w))).sum() + (penalty * w**2).sum() / 2)

    w, value = np.zeros(x.shape[1]), math.inf
    value = loss(w)
    for _ in range(most_steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        gradient = x.T @ (share * (p - y)) + penalty * w
        if np.abs(gradient).max() < 1e-8:
            break
        curvature = (x * (share * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        while loss(w - step) > value and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
        value = loss(w)
    return w


def wilson_interval(share: float, trials: float, *, confidence_z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of successes, within [0, 1].

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Source: Wilson 1927.

    Raises:
        ValueError: a share outside [0, 1] or no trials.
    """
    if not (0 <= share <= 1 and trials > 0):
        raise ValueError(f"share is {share} of {trials} trials; give a share in [0, 1] of more than 0")
    z = confidence_z
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((centre + side * reach) / (1 + z * z / trials) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)
