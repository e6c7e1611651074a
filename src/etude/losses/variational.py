"""Terms of variational models of sound: the divergence from the prior, and errors over the frames that count.

Shapes: b batch, z latents, m mel bands, f frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_from_normal(mean_bz: Tensor, log_variance_bz: Tensor) -> Tensor:
    """Returns the divergence of normal distributions from the standard normal, in nats of each dimension, [b, z].

        KL = (mu^2 + sigma^2 - 1 - ln sigma^2) / 2

    Source: Kingma and Welling 2014, appendix B.
    """
    return (mean_bz.square() + log_variance_bz.exp() - 1 - log_variance_bz) / 2


def kl_with_free_bits(mean_bz: Tensor, log_variance_bz: Tensor, free_bits: float) -> Tensor:
    """Returns the divergence of a clip in nats: the sum over dimensions of max(mean over the batch, `free_bits`).

    Source: Kingma et al. 2016, equation 15.
    """
    return kl_from_normal(mean_bz, log_variance_bz).mean(0).clamp(min=free_bits).sum()


def frame_error(found_bmf: Tensor, wanted_bmf: Tensor, counted_bf: Tensor, *, huber: float = 0.0) -> Tensor:
    """Returns the mean error over bands of the frames that count; 0 if none does.

    huber: error above which it is linear, with slope 1, and below quadratic; 0 for the absolute error.
    Source: Huber 1964, divided by the threshold.
    """
    error = (found_bmf - wanted_bmf).abs()
    if huber:
        error = torch.where(error < huber, error.square() / (2 * huber), error - huber / 2)
    weight = counted_bf[:, None].to(error)
    return (error * weight).sum() / (weight.sum() * error.shape[1]).clamp(min=1)


def smoothed_stop(logits_bf: Tensor, stop_bf: Tensor, smoothing: float) -> Tensor:
    """Returns the mean binary cross-entropy of the end of the music, with targets (1 - e) y + e / 2.

    Source: Szegedy et al. 2016, section 7, for two classes.
    """
    return F.binary_cross_entropy_with_logits(logits_bf, stop_bf * (1 - smoothing) + smoothing / 2)
