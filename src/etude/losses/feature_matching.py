"""Feature-matching loss: distance of real and generated data in the hidden layers of a discriminator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Returns the mean absolute difference of discriminator features, averaged over scales and layers.

    Args:
        fake, real: features of each layer of each scale, in tensors of equal shapes; real gets no gradient.

    Raises:
        ValueError: the numbers of scales or layers, or the shapes, differ.

    Source: Wang et al. 2018 (pix2pixHD), eq. 4. It needs paired data.
    """
    if [len(scale) for scale in fake] != [len(scale) for scale in real] or not any(fake):
        raise ValueError(
            f"fake has {[len(s) for s in fake]} layers a scale and real {[len(s) for s in real]}; give both of one discriminator"
        )
    pairs = [(f, r) for scales in zip(fake, real, strict=True) for f, r in zip(*scales, strict=True)]
    for f, r in pairs:
        if f.shape != r.shape:
            raise ValueError(f"features have shapes {tuple(f.shape)} and {tuple(r.shape)}; give pieces of equal size")
    return torch.stack([F.l1_loss(f, r.detach()) for f, r in pairs]).mean()
