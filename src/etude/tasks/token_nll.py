"""The negative log-likelihood of tokens, and the features of the tokens that a network reads.

Shapes: b rows, t tokens of a row, v tokens of the vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from etude.core.batch import Batch
from etude.core.measuring import Measured


def nll_of(logits: Tensor, targets: Tensor) -> Measured:
    """The negative log-likelihood of the counted targets [b, t] under logits [b, t, v], with each token's beside the mean."""
    nll, counted = token_nll(logits, targets), targets != -100
    count = counted.sum()
    return Measured(nll.sum() / count.clamp(min=1), count, nll, counted)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the negative log-likelihood of each target [b, t] under logits [b, t, v], in nats; 0 where nothing is counted."""
    return F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")


def token_features(batch: Batch) -> dict[str, Tensor]:
    """Returns the features of the input tokens, [b, t] each."""
    return {name.removeprefix("feature_"): values for name, values in batch.items() if name.startswith("feature_")}
