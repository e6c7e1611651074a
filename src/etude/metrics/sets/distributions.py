"""Compare two sets of pieces by the distribution of a feature.

Source: Yang & Lerch, "On the evaluation of generative models in music", Neural Computing and Applications 32, 2020.
The distances within the real set and the distances between samples and real pieces are each smoothed by a Gaussian kernel
(Scott's bandwidth) and compared by overlapping area (OA) and Kullback-Leibler divergence (KLD).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID_POINTS = 1000
KL_FLOOR = 1e-10


def intra_distances(features: Floats) -> Floats:
    """Euclidean distances between every two different pieces of one set; features [pieces, dims] -> [P (P - 1) / 2]."""
    distances = inter_distances(features, features).reshape(len(features), -1)
    upper: Floats = distances[np.triu_indices(len(features), k=1)]
    return upper


def inter_distances(features: Floats, others: Floats) -> Floats:
    """Euclidean distances between every piece of one set and every piece of another, flat [P * Q]."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (features, others))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    distances: Floats = np.sqrt(np.maximum(squares, 0.0)).ravel()
    return distances


def density(values: Floats, *, grid: Floats) -> Floats:
    """Gaussian kernel density of `values` on an even, increasing `grid`, Scott's bandwidth std * n^(-1/5).

    Values are first counted on the grid, each shared linearly between its two neighbouring points, so that the cost
    hardly depends on the number of values. The error is of the order of (grid step / bandwidth)^2.
    """
    step = grid[1] - grid[0]
    bandwidth = max(float(np.std(values, ddof=1)) * len(values) ** -0.2, 2 * step)
    place = np.clip((values - grid[0]) / step, 0, len(grid) - 1.000001)
    left = place.astype(np.int64)
    mass = np.bincount(left, 1 - (place - left), minlength=len(grid))
    mass[1:] += np.bincount(left, place - left, minlength=len(grid))[:-1]
    reach = np.arange(1 - len(grid), len(grid)) * step
    kernel = np.exp(-0.5 * (reach / bandwidth) ** 2) / (bandwidth * math.sqrt(2 * math.pi))
    return np.convolve(mass, kernel, mode="valid") / len(values)


def _densities(first: Floats, second: Floats) -> tuple[Floats, Floats, float]:
    first, second = (np.asarray(x, np.float64)[np.isfinite(x)] for x in (first, second))
    for name, values in (("first", first), ("second", second)):
        if len(values) < 2:
            raise ValueError(f"{name} has {len(values)} finite values, at least 2 are needed; compare more pieces")
    widths = [float(np.std(x, ddof=1)) * len(x) ** -0.2 for x in (first, second)]
    both = np.concatenate([first, second])
    margin = max(4 * max(widths), 1e-6 * max(float(np.abs(both).max()), 1.0))
    grid = np.linspace(both.min() - margin, both.max() + margin, GRID_POINTS)
    return density(first, grid=grid), density(second, grid=grid), float(grid[1] - grid[0])


def overlapping_area(first: Floats, second: Floats) -> float:
    """OA = integral of min(p, q) of the two kernel densities, 0 (apart) .. 1 (equal).

    Args:
        first, second: values of a feature, or distances, one-dimensional; NaN values are left out.

    Raises:
        ValueError: fewer than two finite values in either.
    """
    p, q, step = _densities(first, second)
    return float(min(np.minimum(p, q).sum() * step, 1.0))


def kl_divergence(first: Floats, second: Floats) -> float:
    """KLD = sum p ln(p / q) of the two kernel densities in nats, >= 0, not symmetric.

    Densities are normalised on the common grid, and 1e-10 is added to each so that the result is finite.
    """
    p, q, _ = _densities(first, second)
    return histogram_kl(p, q, pseudocount=KL_FLOOR)


def histogram_kl(counts: NDArray[Any], reference: NDArray[Any], *, pseudocount: float = 0.5) -> float:
    """KL(counts || reference) of two histograms over the same bins in nats, >= 0.

    `pseudocount` is added to every bin of both, which keeps the result finite where the reference has an
    empty bin; 0.5 is Jeffreys' prior.

    Raises:
        ValueError: histograms of different shapes.
    """
    p, q = np.asarray(counts, np.float64) + pseudocount, np.asarray(reference, np.float64) + pseudocount
    if p.shape != q.shape:
        raise ValueError(f"counts has shape {p.shape} and reference {q.shape}; give histograms over the same bins")
    p, q = p / p.sum(), q / q.sum()
    return float(max((p * np.log(p / q)).sum(), 0.0))


def histogram_overlap(counts: NDArray[Any], reference: NDArray[Any]) -> float:
    """Shared mass sum min(p, q) of two histograms, 0..1; NaN if either is empty."""
    p, q = np.asarray(counts, np.float64), np.asarray(reference, np.float64)
    if p.sum() <= 0 or q.sum() <= 0:
        return math.nan
    return float(np.minimum(p / p.sum(), q / q.sum()).sum())


def wasserstein(first: Floats, second: Floats) -> float:
    """The 1-Wasserstein (earth mover's) distance of two sets of numbers, in their unit: integral of |F - G|.

    Raises:
        ValueError: an empty set.
    """
    first, second = (np.sort(np.asarray(x, np.float64)) for x in (first, second))
    if not (len(first) and len(second)):
        raise ValueError(f"first has {len(first)} values and second {len(second)}; give at least one of each")
    both = np.sort(np.concatenate([first, second]))
    shares = [np.searchsorted(x, both[:-1], side="right") / len(x) for x in (first, second)]
    return float(np.abs(shares[0] - shares[1]) @ np.diff(both))


def set_overlap(samples: Floats, real: Floats) -> dict[str, float]:
    """Compares samples with real music in one feature by OA and KLD.

    Args:
        samples, real: feature of every piece, [pieces] or [pieces, dims]; at least 3 real pieces and 1 sample.

    Returns:
        `oa` and `kld` of intra-set distances (real) and inter-set distances (samples to real): sets of the same
        distribution have an OA near 1 and a KLD near 0.
    """
    samples, real = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (samples, real))
    within, between = intra_distances(real), inter_distances(samples, real)
    return {"oa": overlapping_area(within, between), "kld": kl_divergence(within, between)}
