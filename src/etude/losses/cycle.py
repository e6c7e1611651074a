"""Cycle-consistency and identity losses for unpaired translation.

Shapes: n rows, m mel bands, f frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cycle_loss(reconstructed_nmf: Tensor, source_nmf: Tensor, *, scale_nm1: Tensor | float = 1.0, huber: float = 0.0) -> Tensor:
    """Returns the cycle-consistency loss, mean h(scale |reconstructed - source|).

    h(d) = d, or with `huber` > 0 d^2 / (2 huber) below it and d - huber / 2 above it.

    Args:
        reconstructed_nmf, source_nmf: the mels translated there and back, and the original ones; equal shapes.
        scale_nm1: nats per unit of each band; the loss is then in nats.
        huber: threshold in the same unit, at least 0.

    Source: Zhu et al. 2017 (CycleGAN), eq. 2; Huber 1964.
    """
    distance_nmf = (reconstructed_nmf - source_nmf).float().abs() * scale_nm1
    if huber:
        return F.smooth_l1_loss(distance_nmf, torch.zeros_like(distance_nmf), beta=huber)
    return distance_nmf.mean()


def identity_loss(output_nmf: Tensor, input_nmf: Tensor, *, scale_nm1: Tensor | float = 1.0, huber: float = 0.0) -> Tensor:
    """Returns the identity loss: the distance of a generator's output to its input, where the input has the target style already.

    Args: see `cycle_loss`.

    Source: Taigman et al. 2017, as used in CycleGAN, section 5.2.
    """
    return cycle_loss(output_nmf, input_nmf, scale_nm1=scale_nm1, huber=huber)
