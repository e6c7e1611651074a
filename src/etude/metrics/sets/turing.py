"""The musical Turing test: can a small classifier tell generated pieces from real ones?

Shapes: n pieces, d features.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
MAX_DEVIATIONS = 8.0  # standardised features are clipped to this many standard deviations


@dataclass(frozen=True)
class Turing:
    """The result of a musical Turing test.

    Attributes:
        score: balanced accuracy on pieces that the classifier did not learn from: 0.5 if generated and real can't be told apart,
            1 if they always can.
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

    score = (accuracy on generated pieces + accuracy on real pieces) / 2, where each piece is classified by a model that was
    trained without it and its group. Features are standardised with statistics of the training folds, and NaN is replaced
    by the mean. The interval is Wilson's for 4 n m / (n + m) trials, which has the variance of the mean of two shares of n
    and m pieces. It takes pieces as independent, which is only approximately true in cross-validation.

    Args:
        generated: [n, d], real: [m, d]; NaN where a feature is not defined; n and m at least 2.
        generated_groups, real_groups: int [n], [m]; rows of the same group (excerpts of one piece, a restyled
            song and the real one) stay in one fold. None: every row is its own group.
        folds: at least 2; fewer if there are fewer groups.
        ridge: weight of the penalty |w|^2 / 2, above 0; the log-loss is summed over pieces.
        confidence_z: normal quantile of the interval, 1.96 for 95 %.
        seed: of the random division into folds.

    Raises:
        ValueError: fewer than two groups of either kind, or shapes that don't fit.

    Source: Lopez-Paz and Oquab 2017, classifier two-sample tests, there with one split into training and test;
        Wilson 1927 for the interval.
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
    correct = np.zeros(n + m)
    for number in range(fold.max() + 1):
        test = fold == number
        train_x, test_x = _standardised(features[~test], features[test])
        weights = logistic_regression(train_x, is_real[~test], ridge=ridge)
        correct[test] = (test_x @ weights[1:] + weights[0] > 0) == is_real[test]
    score = float((correct[:n].mean() + correct[n:].mean()) / 2)
    low, high = wilson_interval(score, 4 * n * m / (n + m), confidence_z=confidence_z)
    return Turing(score, low, high)


def _folds(groups: list[NDArray[Any]], count: int, seed: int) -> NDArray[np.int64]:
    """Returns the fold of every row. The groups of each side are spread evenly; a group on both sides gets one fold."""
    draw = np.random.default_rng(seed)
    first = np.unique(groups[0])
    rest = np.setdiff1d(np.unique(groups[1]), first)
    of = {g: i % count for part in (first, rest) for i, g in enumerate(draw.permutation(part).tolist())}
    return np.array([of[g] for g in np.concatenate(groups).tolist()])


def _standardised(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Standardises both by the mean and deviation of `train`; NaN, and features that are constant in `train`, become 0."""
    defined = np.isfinite(train)
    count = np.maximum(defined.sum(axis=0), 1)
    mean = np.where(defined, train, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(defined, train - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1.0), std, np.inf)
    one, other = (np.where(np.isfinite(x), (x - mean) / scale, 0.0).clip(-MAX_DEVIATIONS, MAX_DEVIATIONS) for x in (train, test))
    return one, other


def logistic_regression(features: ArrayLike, labels: ArrayLike, *, ridge: float = 1.0, max_steps: int = 50) -> Floats:
    """Fits a logistic regression and returns its weights [1 + d], the intercept first.

    They minimise sum_i c_i ln(1 + exp(-s_i z_i)) + ridge |w|^2 / 2 with z = w_0 + x . w, where s is 1 for label 1 and -1 for
    label 0, and c = n / (2 n_label) gives both labels the same total weight. The intercept is not penalised. Newton's
    method; a step that does not reduce the loss is halved.

    Args:
        features: [n, d], finite. labels: [n], 0 or 1, both present.
        ridge: above 0, or the weights diverge if the labels are linearly separable.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    share = np.where(y > 0, len(y) / (2 * max(y.sum(), 1)), len(y) / (2 * max((1 - y).sum(), 1)))
    penalty = np.full(x.shape[1], ridge)
    penalty[0] = 1e-9  # the intercept is not penalised; this only keeps the matrix invertible
    sign = 2 * y - 1

    def loss(w: Floats) -> float:
        return float((share * np.logaddexp(0, -sign * (x @ w))).sum() + (penalty * w**2).sum() / 2)

    w, value = np.zeros(x.shape[1]), math.inf
    value = loss(w)
    for _ in range(max_steps):
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
