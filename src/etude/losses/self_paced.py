"""Weights of training examples, computed from their losses. Shapes: n examples."""

import torch
from scipy.special import lambertw
from torch import Tensor


def hard_weights(loss_n: Tensor, threshold: float) -> Tensor:
    """Returns 1 where the loss is below the threshold, else 0.

    Source: Kumar, Packer and Koller 2010, equation 3 with K = 1 / threshold.
    """
    return (loss_n < threshold).to(loss_n)


def linear_weights(loss_n: Tensor, threshold: float) -> Tensor:
    """Returns max(0, 1 - loss / threshold).

    Source: Jiang et al. 2014 (easy samples first), linear soft weighting.
    """
    return (1 - loss_n / threshold).clamp(min=0)


def superloss_weights(loss_n: Tensor, average: float, strength: float) -> Tensor:
    """Returns sigma = exp(-W(max(-2 / e, (loss - average) / strength) / 2)): above 1 for easy examples.

    Args:
        average: tau, the average loss. strength: lambda, above 0; with a larger one all weights are closer to 1.

    Source: Castells, Weinzaepfel and Revaud 2020, equation 6; W is the principal branch of Lambert's function.
    """
    # W is not defined below -1 / e; the small offset keeps rounding errors away from there
    beta = ((loss_n.double() - average) / strength).clamp(min=-2 / torch.e + 1e-9)
    return torch.from_numpy(-lambertw(0.5 * beta.cpu().numpy()).real).exp().to(loss_n)
