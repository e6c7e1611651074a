"""Fakes that look real to every layer of the discriminator, not to its last one alone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over scales and layers of the mean absolute difference of features; 0 where they are equal.

    Args:
        fake, real: for each scale the features of each layer, tensors of equal shapes; no gradient goes into real.

    Raises:
        ValueError: numbers of scales or layers, or shapes, that differ.

    Source: Wang et al. 2018 (pix2pixHD), eq. 4. For pairs: without them compare statistics, not features at a place.
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
