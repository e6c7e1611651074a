"""The focal loss, which gives examples that are easy already little weight."""

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
