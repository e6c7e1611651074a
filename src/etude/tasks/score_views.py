"""Random views of packed scores: other keys, other tempi, and crops, without another pass through the data.

Shapes: b rows, t tokens, n documents, v vocabulary, s shifts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.tasks.pooling import documents_of
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import PITCHED, TEMPO
from etude.tokens.tokenizer import Tokenizer

NONE = -1  # no token for this pitch


class Shifts:
    """Which token each token becomes when a piece is transposed, or played at another tempo.

    Args:
        tokenizer: with tokens of pitches, without byte pairs.
        semitones: largest transposition, up and down. tempi: largest change of the tempo, in tokens of tempo.

    Raises: ValueError for another tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, *, semitones: int, tempi: int) -> None:
        if not isinstance(tokenizer, MidiTokTokenizer) or tokenizer.params.get("bpe_vocab_size") is not None:
            raise ValueError(
                "views of scores change the tokens of pitches; set tokenizer=remi, or another MidiTok one without byte pairs"
            )
        kind, number = (torch.from_numpy(x) for x in (tokenizer.table.kind, tokenizer.table.number))
        self.pitches = _table(kind, number, PITCHED, range(-semitones, semitones + 1))
        steps = torch.full_like(number, NONE)
        tempo = (kind == TEMPO).nonzero().flatten()
        steps[tempo] = number[tempo].argsort().argsort()  # the rank of each tempo
        self.tempi = _table(kind, steps, (TEMPO,), range(-tempi, tempi + 1))
        self.semitones, self.most_tempi = semitones, tempi

    def applied(self, tokens_bt: Tensor, batch: Batch) -> Tensor:
        """Returns the tokens with each document in another key and at another tempo; one that has no token for it stays."""
        starts, owner = documents_of(batch)
        owner_bt = owner.clamp(min=0).view_as(tokens_bt)
        for table, most in ((self.pitches, self.semitones), (self.tempi, self.most_tempi)):
            if not most:
                continue
            shift_n = torch.randint(2 * most + 1, (len(starts),), device=tokens_bt.device)
            moved = table.to(tokens_bt.device)[shift_n[owner_bt], tokens_bt]
            lost = torch.zeros(len(starts), dtype=torch.int64, device=tokens_bt.device)
            lost.index_add_(0, owner_bt.flatten(), (moved == NONE).flatten().long())
            tokens_bt = torch.where(lost[owner_bt] == 0, moved, tokens_bt)
        return tokens_bt


def _table(kind: Tensor, number: Tensor, kinds: tuple[int, ...], shifts: range) -> Tensor:
    """Returns the token that each token becomes by each shift of its number, [s, v]; NONE where there is none."""
    found = torch.arange(len(kind)).repeat(len(shifts), 1)
    for one in kinds:
        place = {int(number[i]): int(i) for i in (kind == one).nonzero().flatten()}
        for row, shift in enumerate(shifts):
            for value, token in place.items():
                found[row, token] = place.get(value + shift, NONE)
    return found


def crop(batch: Batch, *, least: float) -> Batch:
    """Returns the batch with a random stretch of each document, of a random share from `least` to 1; the rest is padding."""
    if least >= 1:
        return batch
    starts, owner = documents_of(batch)
    owner, real = owner.clamp(min=0), batch["documents"].flatten() >= 0
    place = torch.arange(len(owner), device=owner.device) - starts[owner]
    length = torch.bincount(owner[real], minlength=len(starts))
    keep = (length * (least + (1 - least) * torch.rand(len(starts), device=owner.device))).long().clamp(min=1)
    first = (torch.rand(len(starts), device=owner.device) * (length - keep + 1)).long()
    inside = real & (place >= first[owner]) & (place < (first + keep)[owner])
    documents = torch.where(inside.view_as(batch["documents"]), batch["documents"], -1)
    return {**batch, "documents": documents, "positions": torch.where(documents >= 0, batch["positions"], 0)}
