"""Pure functions of few-shot learning.

Shapes: s pieces of the support, q pieces that are asked about, d features, n ways (classes of an episode).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def prototypes(support_sd: Tensor, way_s: Tensor, *, ways: int) -> Tensor:
    """Returns the mean of the support of each way, [n, d]. Source: Snell et al. 2017, equation 1."""
    member_ns = F.one_hot(way_s, ways).T.to(support_sd.dtype)
    return member_ns @ support_sd / member_ns.sum(1, keepdim=True).clamp(min=1)


def negative_squared_distances(query_qd: Tensor, centre_nd: Tensor) -> Tensor:
    """Returns minus the squared Euclidean distance of each query to each centre, [q, n]: logits (Snell et al. 2017)."""
    return -(query_qd[:, None] - centre_nd[None]).square().sum(-1)


def cosines(one_qd: Tensor, other_sd: Tensor) -> Tensor:
    """Returns the cosine of each row of one with each row of the other, [q, s]."""
    return F.normalize(one_qd, dim=-1) @ F.normalize(other_sd, dim=-1).T


def attention_logits(similarity_qs: Tensor, way_s: Tensor, *, ways: int) -> Tensor:
    """Returns the log of the attention that each way gets, [q, n], where the support's pieces share softmax(similarity).

    Their softmax over the ways is the distribution of Vinyals et al. 2016, equation 1. A way without support gets the lowest
    value of the dtype.
    """
    outside_sn = F.one_hot(way_s, ways) == 0
    log_attention_qs = similarity_qs.log_softmax(-1)
    least = torch.finfo(similarity_qs.dtype).min
    return log_attention_qs[:, :, None].masked_fill(outside_sn, least).logsumexp(1)


def descended(
    weights: Mapping[str, Tensor], slopes: Mapping[str, Tensor], rates: Mapping[str, Tensor | float]
) -> dict[str, Tensor]:
    """Returns the weights after a step of gradient descent, w - rate * slope; a weight without a slope stays."""
    return {name: w - rates[name] * slopes[name] if name in slopes else w for name, w in weights.items()}


def half_squared_distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Tensor:
    """Returns half the squared Euclidean distance; its gradient with respect to the weights is weights - others."""
    return torch.stack([0.5 * (w - others[name].detach()).square().sum() for name, w in weights.items()]).sum()
