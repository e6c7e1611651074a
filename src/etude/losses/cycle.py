"""The way there and back: what an unpaired generator must be able to undo, and what it must leave alone.

Shapes: n rows, m mel bands, f frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cycle_loss(back_nmf: Tensor, start_nmf: Tensor, *, scale_nm1: Tensor | float = 1.0, huber: float = 0.0) -> Tensor:
    """Returns mean h(scale |back - start|): 0 where the way back ends where the way there began.

    h(d) = d, or with `huber` > 0 d^2 / (2 huber) below it and d - huber / 2 above it.

    Args:
        back_nmf, start_nmf: mels of one normalisation, equal shapes. The way there may itself be detached in part.
        scale_nm1: nats of one unit of each band; the loss is then in nats.
        huber: in the same unit, at least 0.

    Source: Zhu et al. 2017 (CycleGAN), eq. 2; Huber 1964.
    """
    distance_nmf = (back_nmf - start_nmf).float().abs() * scale_nm1
    if huber:
        return F.smooth_l1_loss(distance_nmf, torch.zeros_like(distance_nmf), beta=huber)
    return distance_nmf.mean()


def identity_loss(same_nmf: Tensor, target_nmf: Tensor, *, scale_nm1: Tensor | float = 1.0, huber: float = 0.0) -> Tensor:
    """Returns the same distance of a generator's output for real music that has the target style already to that music.

    Args: as of `cycle_loss`.

    Source: Taigman et al. 2017, as used in CycleGAN, section 5.2.
    """
    return cycle_loss(same_nmf, target_nmf, scale_nm1=scale_nm1, huber=huber)
