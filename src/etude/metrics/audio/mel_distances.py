"""Distances between mels: between the two mels of a pair, and between two unpaired sets of mels.

Shapes: m mel bands, f frames, n segments, d features. All mels are natural-log magnitudes; numpy arrays or tensors.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct

Floats = NDArray[np.float64]
CEPSTRA = 13
TOLERANCE_SHARE, TOLERANCE_FRAMES = 0.02, 4


def may_be_versions(frames_a: int, frames_b: int) -> bool:
    """Whether mels of these numbers of frames may be of the same song: if they differ by at most 2 % of the longer, or by 4."""
    short, long = sorted((frames_a, frames_b))
    return short > 0 and long - short <= max(TOLERANCE_SHARE * long, TOLERANCE_FRAMES)


def common_part(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """Cuts two mels to the same number of frames, that of the shorter one: float64 [m, f], [m, f].

    Args:
        a, b: [m, f], lengths that differ by at most 2 % of the longer or 4 frames, whichever is more.

    Raises:
        ValueError: not two-dimensional, different numbers of bands, no frames, or lengths that differ by more.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"mels have shapes {first.shape} and {second.shape}; give both as [bands, frames] with the same mel settings"
        )
    if not may_be_versions(first.shape[1], second.shape[1]):
        raise ValueError(
            f"mels have {first.shape[1]} and {second.shape[1]} frames, "
            "which differ by more than 2 % and 4 frames; give two versions of the same song"
        )
    short = min(first.shape[1], second.shape[1])
    return first[:, :short], second[:, :short]


def log_mel_l1(a: ArrayLike, b: ArrayLike) -> float:
    """Mean absolute difference of two mels over bands and frames, in nats; 0 if equal. See `common_part` for lengths."""
    first, second = common_part(a, b)
    return float(np.abs(first - second).mean())


def mel_cepstral_distortion(a: ArrayLike, b: ArrayLike) -> float:
    """Mel-cepstral distortion of two mels in dB: mean over frames of (10 / ln 10) sqrt(2 sum_{d=1..13} (c_d - c'_d)^2).

    c is the orthonormal DCT-II of the natural-log mel over the bands. c_0, the level, is left out, so that mels which differ
    by a gain alone have distortion 0. Frames are compared without time warping. With 13 bands or fewer, all coefficients
    but c_0 count.

    Source: Kubichek 1993, with log mels of any filterbank in place of mel-generalised cepstra. Values are comparable only
    between mels of the same settings.
    """
    first, second = common_part(a, b)
    difference = dct(first - second, type=2, norm="ortho", axis=0)[1 : CEPSTRA + 1]
    return float(10 / np.log(10) * np.sqrt(2 * (difference**2).sum(axis=0)).mean())


def frechet_distance(frames_a: ArrayLike, frames_b: ArrayLike) -> float:
    """Fréchet distance of two sets of frames, each taken as a Gaussian, in squared bels, >= 0.

    |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)), of log10 magnitudes. The trace of the square root is the sum of the square
    roots of the eigenvalues of C^(1/2) C' C^(1/2), which are real and not negative for covariances of any rank.

    Args:
        frames_a, frames_b: natural-log mels [m, f] of all songs of a set, joined along the frames, at least 2 frames each.

    Raises:
        ValueError: too few frames, or different numbers of bands.

    Source: Dowson and Landau 1982; Heusel et al. 2017 and Kilgour et al. 2019 on embeddings, here on the mels themselves.
    """
    sets = [np.asarray(x, np.float64) / np.log(10) for x in (frames_a, frames_b)]
    if any(x.ndim != 2 or x.shape[1] < 2 for x in sets) or len(sets[0]) != len(sets[1]):
        raise ValueError(f"frames have shapes {sets[0].shape} and {sets[1].shape}; give both as [bands, 2 or more frames]")
    return gaussian_distance(sets[0].T, sets[1].T)


def gaussian_distance(rows_a: ArrayLike, rows_b: ArrayLike) -> float:
    """Fréchet distance of two sets of rows [n, d], 2 or more each, taken as Gaussians; see `frechet_distance`."""
    sets = [np.asarray(rows, np.float64).T for rows in (rows_a, rows_b)]
    (mean, covariance), (other_mean, other) = ((x.mean(axis=1), np.atleast_2d(np.cov(x))) for x in sets)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    apart = ((mean - other_mean) ** 2).sum()
    return float(max(apart + np.trace(covariance) + np.trace(other) - 2 * shared, 0.0))


def mmd(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared maximum mean discrepancy of two sets, by the unbiased estimate with a Gaussian kernel.

    Around 0, possibly slightly negative, if both sets have the same distribution:

    mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean k(a_i, b_j),  k = exp(-|x - y|^2 / (2 s^2)), where s is
    the median distance between different points of both sets together.

    Args:
        features_a, features_b: [n, d], for example `mel_features.segment_features`; at least 2 rows each.

    Raises:
        ValueError: fewer rows, or different numbers of features.

    Source: Gretton et al. 2012, eq. 3 and section 8 (median heuristic).
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features have shapes {a.shape} and {b.shape}; give both as [2 or more segments, features]")
    both = np.concatenate([a, b])
    both = both - both.mean(axis=0)  # a large common offset would lose the precision of the differences
    squares = (both**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0)
    scale = 2 * np.median(np.sqrt(distances[np.triu_indices(len(both), k=1)])) ** 2
    # most points are equal, so there is no scale: the kernel is 1 for equal points and 0 for others
    kernel = np.exp(-distances / scale) if scale > 0 else (distances <= 1e-12).astype(np.float64)
    np.fill_diagonal(kernel, 0.0)
    n, k = len(a), len(b)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (k * (k - 1))
    return float(within - 2 * kernel[:n, n:].mean())
