"""Losses of self-supervised learning, from vectors of two views of the same examples.

Shapes: n examples, d dimensions, q vectors of a queue, k prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(one_nd: Tensor, two_nd: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Returns the normalised, temperature-scaled cross-entropy: tell each view's other view from all other views of the batch.

        mean over the 2n views i of -ln( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ),   j the other view, s the cosine

    Args:
        one_nd, two_nd: vectors of the two views, in the same order, n at least 1. temperature: above 0.

    Returns: a scalar in nats.

    Source: Chen et al. 2020 (SimCLR), equation 1.
    """
    count = len(one_nd)
    z = F.normalize(torch.cat((one_nd, two_nd)).float(), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * count, dtype=torch.bool, device=z.device), -torch.inf)
    other = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(logits, other)


def info_nce(query_nd: Tensor, key_nd: Tensor, queue_qd: Tensor, *, temperature: float = 0.2) -> Tensor:
    """Returns the cross-entropy of telling each query's key from the vectors of a queue, in nats.

    Args:
        query_nd, key_nd: of two views of the same examples; the keys are constants. queue_qd: keys of earlier examples.
        temperature: above 0.

    Source: He et al. 2020 (MoCo), equation 1; van den Oord et al. 2018.
    """
    query, key, queue = (F.normalize(x.float(), dim=1) for x in (query_nd, key_nd.detach(), queue_qd))
    logits = torch.cat(((query * key).sum(1, keepdim=True), query @ queue.T), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def regression(prediction_nd: Tensor, target_nd: Tensor) -> Tensor:
    """Returns the mean squared distance of the normalised vectors, 2 - 2 cos, in [0, 4]; the targets are constants.

    Source: Grill et al. 2020 (BYOL), equation 2.
    """
    return (2 - 2 * F.cosine_similarity(prediction_nd.float(), target_nd.detach().float(), dim=1)).mean()


@torch.no_grad()
def sinkhorn(scores_nk: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Returns soft assignments of examples to prototypes that use all prototypes equally, [n, k]; each row adds up to 1.

    Q = exp(scores / epsilon), scaled in turn so that columns add up to 1/k and rows to 1/n; then times n.

    Args:
        scores_nk: cosines. epsilon: above 0; smaller is sharper. iterations: at least 1.

    Source: Caron et al. 2020 (SwAV), section 3.1 and appendix A.
    """
    log = scores_nk.double() / epsilon
    for _ in range(iterations):
        log = log - log.logsumexp(0, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp().to(scores_nk.dtype)


def swapped_prediction(scores_nk: Tensor, assigned_nk: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Returns the cross-entropy of predicting one view's assignment from the other view's scores, in nats.

    Source: Caron et al. 2020 (SwAV), equation 2.
    """
    return -(assigned_nk.detach() * F.log_softmax(scores_nk.float() / temperature, dim=1)).sum(1).mean()


def effective_rank(features_nd: Tensor) -> Tensor:
    """Returns exp of the entropy of the normalised singular values of the centred features: 1 for a line, d for a ball.

    Source: Roy and Vetterli 2007; used as a sign of collapse by Garrido et al. 2023, who do not centre.
    """
    values = torch.linalg.svdvals((features_nd - features_nd.mean(0)).double())
    share = values / values.sum().clamp(min=1e-12)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank
