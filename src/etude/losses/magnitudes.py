"""Distances of magnitude spectrograms.

Shapes: b rows, k linear frequency bins, f frames.
"""

import torch
from torch import Tensor

QUIET = 1e-3  # magnitudes well below it count little: a full-scale sine reaches 256 under a window of 1024 samples


def log_magnitude_distance(log_fake_bkf: Tensor, real_bkf: Tensor) -> Tensor:
    """Returns mean |ln(M' + QUIET) - ln(M + QUIET)|, in nats, of ln M' and M."""
    return ((log_fake_bkf.exp() + QUIET).log() - (real_bkf + QUIET).log()).abs().mean()


def root_convergence(log_fake_bkf: Tensor, real_bkf: Tensor) -> Tensor:
    """Returns the mean over rows of |M'^(1/2) - M^(1/2)|_F / |M^(1/2)|_F, of ln M' and M: the loud bins count most.

    Source: spectral convergence (Arik, Jun and Diamos 2018, eq. 2). Deviation: of square roots, so that the loudest notes don't
    decide alone.
    """
    root = real_bkf.clamp(min=QUIET**2).sqrt()
    shares: Tensor = torch.linalg.matrix_norm((0.5 * log_fake_bkf).exp() - root) / torch.linalg.matrix_norm(root)
    return shares.mean()
