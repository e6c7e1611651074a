"""Divergences of predictions."""

from collections.abc import Mapping

import torch
from torch import Tensor


def mean_kl(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Returns KL(softmax(one) || softmax(other)) in nats: the mean over rows, and over the entries of the mappings.

    one, other: logits [r, c] under the same names. Gradients flow into both. No rows give 0.
    """
    found = []
    for name in sorted(one):
        p, q = one[name].log_softmax(-1), other[name].log_softmax(-1)
        found.append((p.exp() * (p - q)).sum() / max(len(p), 1))
    return torch.stack(found).mean()
