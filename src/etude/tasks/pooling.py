"""One row for each document of a packed batch, such as the mean of its hidden states.

Shapes: b rows, t tokens of a row, d hidden width, n documents.
"""

import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.models.symbolic.attention import starts_of_pieces


def documents_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns where each document starts in the flattened tokens [n], and the document of each token [b * t].

    Documents are in the order of the rows, and within a row in the order of time; padding belongs to the document before it.
    """
    real, starts = batch["documents"].flatten() >= 0, starts_of_pieces(batch["documents"])
    starts = starts[real[starts]]
    opens = torch.zeros_like(real, dtype=torch.int64).index_fill(0, starts, 1)
    return starts, opens.cumsum(0) - 1


def each_document(batch: Batch, name: str) -> Tensor:
    """Returns the batch's entry `name`, such as `piece` or `label_genre`, once for each document: [n]."""
    entry_bt: Tensor = batch[name]
    return entry_bt.flatten()[documents_of(batch)[0]]


def mean_and_max_of_documents(hidden_btd: Tensor, batch: Batch) -> Tensor:
    """Returns mean and largest value of each hidden state over the tokens of each document, [n, 2 d], in float32."""
    starts, owner = documents_of(batch)
    counted = (batch["documents"] >= 0).flatten()
    mean = mean_of_documents(hidden_btd.float(), batch, batch["documents"] >= 0)
    hidden, place = hidden_btd.float().flatten(0, 1)[counted], owner[counted][:, None].expand(-1, hidden_btd.shape[-1])
    largest = hidden.new_zeros(len(starts), hidden_btd.shape[-1]).scatter_reduce(0, place, hidden, "amax", include_self=False)
    return torch.cat((mean, largest), dim=1)


def mean_of_documents(hidden_btd: Tensor, batch: Batch, counted_bt: Tensor) -> Tensor:
    """Returns the mean of the hidden states over the counted tokens of each document, [n, d]; 0 for one without."""
    starts, owner = documents_of(batch)
    hidden, counted = hidden_btd.flatten(0, 1), counted_bt.flatten()
    sums = hidden.new_zeros(len(starts), hidden.shape[-1]).index_add(0, owner[counted], hidden[counted])
    count = torch.bincount(owner[counted], minlength=len(starts)).clamp(min=1)
    return sums / count[:, None].to(sums.dtype)
