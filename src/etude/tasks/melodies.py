"""The notes of each document of a packed batch: pitches and durations in the order of the tokens.

Shapes: n documents, k notes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.tasks.pooling import documents_of
from etude.tokens.classes import DURATION, TWELFTHS, token_classes
from etude.tokens.tokenizer import Tokenizer

WITHIN = 3  # tokens after a pitch among which its duration is


class Melodies(nn.Module):
    """Reads notes off tokens: [n, 2, k], MIDI pitches (-1 where there is no note) and log2 of their durations in quarters.

    Args:
        tokenizer: one with a token for the duration of each note, such as REMI, without merges.
        notes: k; later ones are left out.

    Raises: ValueError for another tokenizer.
    """

    pitch_v: Tensor
    units_v: Tensor

    def __init__(self, tokenizer: Tokenizer, *, notes: int) -> None:
        super().__init__()
        classes = token_classes(tokenizer)
        if len(tokenizer) != tokenizer.base_size or not (classes.units[classes.kind == DURATION] > 0).any():
            raise ValueError(
                "algorithm=alignment compares notes, and the tokens of this tokenizer do not name a duration for each; choose "
                "tokenizer=remi, or another algorithm"
            )
        self.notes = notes
        self.register_buffer("pitch_v", torch.from_numpy(np.where(classes.onset, classes.pitch, -1)), persistent=False)
        self.register_buffer("units_v", torch.from_numpy(np.where(classes.kind == DURATION, classes.units, -1)), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        starts, owner = documents_of(batch)
        tokens = batch["tokens"].flatten()
        pitch, units = self.pitch_v[tokens], self.units_v[tokens]
        begins = (pitch >= 0) & (batch["documents"].flatten() >= 0)
        length = torch.zeros_like(units)
        for step in range(WITHIN, 0, -1):
            ahead = units.roll(-step)
            length = torch.where(ahead > 0, ahead, length)
        count = begins.long().cumsum(0)
        rank = count - 1 - (count - begins.long())[starts][owner]  # of each note in its document
        chosen = (begins & (rank < self.notes)).nonzero()[:, 0]
        found = torch.zeros(len(starts), 2, self.notes, device=tokens.device)
        found[:, 0] = -1
        found[owner[chosen], 0, rank[chosen]] = pitch[chosen].float()
        found[owner[chosen], 1, rank[chosen]] = (length[chosen].clamp(min=1) / TWELFTHS).log2()
        return found
