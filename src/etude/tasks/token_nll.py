"""The negative log-likelihood of tokens, and the features of the tokens that a network reads.

Shapes: b rows, t tokens of a row, v tokens of the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.core.batch import Batch
from etude.core.measuring import Measured

OTHERS, SHARE = "mixed_targets", "mixed_share"  # entries of a batch whose documents are mixed with others


def mean_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the mean negative log-likelihood of the counted targets, and for the trace `token_nll`.

    token_nll: that of each target [b, t], 0 where nothing is counted.

    Where others are mixed in (`mixed_targets`, `mixed_share`), the mean is of both next tokens, weighted by their shares, while
    `token_nll` is of each token's own one. Then there is also `token_weight` [b, t], with which that counts in the mean.
    """
    targets = batch["targets"]
    own = token_nll(logits, targets)
    if OTHERS not in batch:
        return own.sum() / (targets != -100).sum().clamp(min=1), {"token_nll": own}
    others, share = batch[OTHERS], batch[SHARE]
    weight = torch.where(targets != -100, share, 0).sum() + torch.where(others != -100, 1 - share, 0).sum()
    weight = weight.clamp(min=1)
    total = (share * own).sum() + ((1 - share) * token_nll(logits, others)).sum()
    return total / weight, {"token_nll": own, "token_weight": share / weight}


def nll_of(logits: Tensor, targets: Tensor) -> Measured:
    """The negative log-likelihood of the counted targets [b, t] under logits [b, t, v], with each token's beside the mean."""
    nll, counted = token_nll(logits, targets), targets != -100
    count = counted.sum()
    return Measured(nll.sum() / count.clamp(min=1), count, nll, counted)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the negative log-likelihood of each target [b, t] under logits [b, t, v], in nats; 0 where nothing is counted."""
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none")
    return nll.view_as(targets)


def token_features(batch: Batch) -> dict[str, Tensor]:
    """Returns the features of the input tokens, [b, t] each."""
    return {name.removeprefix("feature_"): values for name, values in batch.items() if name.startswith("feature_")}


def network_inputs(batch: Batch) -> dict[str, Any]:
    """Returns what a network reads of a batch beside its tokens: pieces, positions, features and, where there are, embeddings."""
    inputs = {"documents_bt": batch["documents"], "positions_bt": batch["positions"], "features": token_features(batch)}
    return {**inputs, "embeddings_btd": batch["embeddings"]} if "embeddings" in batch else inputs
