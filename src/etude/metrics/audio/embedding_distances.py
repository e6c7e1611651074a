"""Distances between two sets of embeddings of audio: Fréchet audio distance (FAD) and kernel audio distance (KAD).

Shapes: n rows, d dimensions.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.metrics.audio.mel_distances import gaussian_distance

Floats = NDArray[np.float64]
KAD_SCALE = 100.0


def frechet_audio_distance(embeddings: ArrayLike, reference: ArrayLike) -> float:
    """Fréchet distance of two sets of embeddings [n, d], each taken as a Gaussian, >= 0.

    It is biased upwards for sets of few rows; `kernel_audio_distance` is not.

    Raises:
        ValueError: fewer than 2 rows, or different dimensions.

    Source: Kilgour et al. 2019, with another network's embeddings.
    """
    return gaussian_distance(*_checked(embeddings, reference))


def bandwidth(reference: ArrayLike) -> float:
    """Returns the kernel's bandwidth: the median distance between different rows of the reference [n, d]."""
    rows = np.asarray(reference, np.float64)
    squares = _squared_distances(rows, rows)[np.triu_indices(len(rows), k=1)]
    return float(np.sqrt(np.median(squares)))


def kernel_audio_distance(embeddings: ArrayLike, reference: ArrayLike) -> float:
    """Kernel distance of two sets of embeddings [n, d]: about 0, possibly slightly negative, for equal distributions.

    100 * (mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)),  k = exp(-|x - y|^2 / (2 s^2)), where s
    is the `bandwidth` of the reference set alone, so that values for one reference can be compared.

    Raises:
        ValueError: fewer than 2 rows, different dimensions, or a reference whose rows are mostly equal.

    Source: Chung et al. 2025, "KAD: no more FAD! An effective and efficient evaluation metric for audio generation".
    """
    made, real = _checked(embeddings, reference)
    width = bandwidth(real)
    if width <= 0:
        raise ValueError("the reference's rows are mostly equal, so they give no bandwidth; give more recordings")

    def kernel(a: Floats, b: Floats) -> Floats:
        values: Floats = np.exp(-_squared_distances(a, b) / (2 * width**2))
        return values

    def within(rows: Floats) -> float:
        return float((kernel(rows, rows).sum() - len(rows)) / (len(rows) * (len(rows) - 1)))

    return KAD_SCALE * (within(made) + within(real) - 2 * float(kernel(made, real).mean()))


def _squared_distances(a: Floats, b: Floats) -> Floats:
    centre = b.mean(axis=0)  # a large common offset would lose the precision of the differences
    a, b = a - centre, b - centre
    found: Floats = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    return found


def _checked(embeddings: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    made, real = np.asarray(embeddings, np.float64), np.asarray(reference, np.float64)
    if made.ndim != 2 or real.ndim != 2 or min(len(made), len(real)) < 2 or made.shape[1] != real.shape[1]:
        raise ValueError(f"embeddings have shapes {made.shape} and {real.shape}; give both as [2 or more rows, dimensions]")
    return made, real
