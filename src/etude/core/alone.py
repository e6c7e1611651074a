"""Batches in which every example stands alone, and which row of logits belongs to which token.

Shapes: b rows, t tokens of a row, n examples (documents or mels).
"""

import torch
from torch import Tensor

from etude.core.batch import Batch, HasExamples

NO_LABEL = -1
PADDED = {"documents": -1, "piece": -1, "targets": -100}


def alone(task: HasExamples, batch: Batch) -> Batch:
    """Returns a batch in which every example stands alone: each document in a row of its own, padded; mels in one axis."""
    if "documents" not in batch:
        axis = task.example_axis or 0
        return {name: value.flatten(0, axis).reshape(*[1] * axis, -1, *value.shape[axis + 1 :]) for name, value in batch.items()}
    documents = batch["documents"]
    opens = torch.ones_like(documents, dtype=torch.bool)
    opens[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = [
        (row, piece)
        for row in range(len(documents))
        for piece in torch.tensor_split(torch.arange(documents.shape[1]), opens[row].nonzero()[1:, 0].cpu())
        if documents[row, piece[0]] >= 0
    ]
    length = max((len(piece) for _, piece in places), default=0)
    found: Batch = {}
    for name, value in batch.items():
        made = value.new_full(
            (len(places), length, *value.shape[2:]), NO_LABEL if name.startswith("label_") else PADDED.get(name, 0)
        )
        for number, (row, piece) in enumerate(places):
            made[number, : len(piece)] = value[row, piece.to(value.device)]
        found[name] = made
    if "documents" in found:
        found["documents"] = torch.where(found["documents"] >= 0, 0, -1)
    return found


def owners(documents_bt: Tensor) -> Tensor:
    """Returns the number of the document of each token, in the order of the rows, int64 [b, t]; -1 in padding."""
    opens = torch.ones_like(documents_bt, dtype=torch.bool)
    opens[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    real = documents_bt >= 0
    number = (opens & real).flatten().long().cumsum(0).reshape(documents_bt.shape) - 1
    return torch.where(real, number, -1)
