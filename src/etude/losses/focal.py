"""Focal losses, which give examples that are easy already little weight."""

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Returns the focal loss of each entry, in nats, of the shape of `logits`.

        -(1 - p)^gamma ln p,   p the probability that the logit gives to the target

    Args:
        logits: of any shape. targets: 0 or 1, of the same shape. gamma: at least 0; 0 is the cross-entropy.

    Source: Lin et al. 2017, equation 4. Deviation: without their weight alpha for positive examples, which shifts probabilities;
    what is rare then stays probable as often as it occurs.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (1 - (-cross_entropy).exp()).clamp(min=0) ** gamma * cross_entropy


def focal_loss_of_classes(
    logits: Tensor, targets: Tensor, *, gamma: float = 0.0, weights: Tensor | None = None, label_smoothing: float = 0.0,
    shares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns the mean focal loss over examples of one of several classes, in nats.

        sum_i w_i -(1 - p_i)^gamma ln p_i / sum_i w_i,   p_i the probability of the target, w_i the weight of its class

    Args:
        logits: [n, c]. targets: class of each example, int64 [n], n at least 1. gamma: at least 0; 0 is the cross-entropy.
        weights: of the classes, [c]; None for 1.
        shares: factor of each example's loss, [n], which does not change what is divided by; None for 1.
        label_smoothing: share of the target's probability that is spread over all classes, in [0, 1).

    Source: Lin et al. 2017, equation 4, for several classes; Szegedy et al. 2016, section 7 (smoothing).
    """
    cross_entropy = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if gamma:
        probability = logits.softmax(-1).gather(1, targets[:, None])[:, 0]
        cross_entropy = (1 - probability).clamp(min=0) ** gamma * cross_entropy
    shared = cross_entropy if shares is None else shares * cross_entropy
    if weights is None:
        return shared.mean()
    each = weights[targets]
    return (each * shared).sum() / each.sum()
