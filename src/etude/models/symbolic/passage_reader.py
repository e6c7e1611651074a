"""What a network makes of the passages that `PassageMemory` finds: features, and evidence for the next pitch.

Shapes: as in `passage_memory`; e width of the network, m frames + 1.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.models.symbolic.grid_context import REST
from etude.models.symbolic.passage_memory import CLASSES, KINDS, REACH, WIDTH, PassageMemory

FLOOR = 0.01  # probability below which the memory says nothing against a pitch
KEPT = 1000  # pieces whose passages are kept once they were found


class PassageReader(nn.Module):
    """Holds the training pieces, and reads what followed in similar passages of them.

    The pieces are buffers, so that a checkpoint holds them; `remember` sets them before training. In training, and in
    `own_pieces_left_out`, a piece that contains all of the music that is looked up is not searched: otherwise a training piece
    would find itself.

    Args:
        dim: width e of the network.
        dropout: probability, in training, with which a distribution is hidden from a token.

    Source: Khandelwal et al. 2020 (nearest-neighbour language models), with a gate that is learned, as in See et al. 2017.
    """

    pitches: Tensor
    lengths: Tensor

    def __init__(self, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.embed = nn.Linear(KINDS * (WIDTH - CLASSES + 1) + 1, dim)
        self.gate = nn.Linear(dim, KINDS)
        self.register_buffer("pitches", torch.empty(0, 4, dtype=torch.int16))
        self.register_buffer("lengths", torch.empty(0, dtype=torch.long))
        self._memory: PassageMemory | None = None
        self._in_training_pieces = False
        self._found: OrderedDict[tuple[bool, bytes], Tensor] = OrderedDict()

    def remember(self, pieces: Sequence[np.ndarray]) -> None:
        """Takes the pieces that are to be searched: MIDI pitches [f, 4] each, `REST` for a rest."""
        rows = [torch.as_tensor(np.asarray(piece, np.int16)) for piece in pieces]
        device = self.pitches.device
        self.pitches = torch.cat([torch.empty(0, 4, dtype=torch.int16), *rows]).to(device)
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.long, device=device)
        self._forget_found()

    def _forget_found(self) -> None:
        self._memory = None
        self._found.clear()

    @contextmanager
    def own_pieces_left_out(self) -> Iterator[None]:
        """Looks up as in training also in evaluation mode, for a model that reads training pieces, such as a teacher."""
        self._in_training_pieces = True
        try:
            yield
        finally:
            self._in_training_pieces = False

    @property
    def memory(self) -> PassageMemory:
        """The pieces, arranged for the search."""
        if self._memory is None:
            self._memory = PassageMemory(np.split(self.pitches.cpu().numpy(), self.lengths.cumsum(0).cpu().numpy()[:-1]))
        return self._memory

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("pitches", "lengths"):  # as many as the checkpoint holds
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._forget_found()

    def look_up(self, frames_pfv: Tensor, lengths: Sequence[int]) -> Tensor:
        """Returns what the memory knows of each token of several pieces, float32 [pieces, m, 4, k, c + 2].

        frames_pfv: MIDI pitches, `REST` for a rest. lengths: frames of each piece.
        """
        found = frames_pfv.new_zeros(len(lengths), frames_pfv.shape[1] + 1, 4, KINDS, WIDTH, dtype=torch.float32)
        pitches = frames_pfv.cpu().numpy()
        for row, length in enumerate(lengths):
            found[row, : length + 1] = self._look_up_one(pitches[row, :length])
        return found

    def _look_up_one(self, frames_fv: np.ndarray) -> Tensor:
        leave_out = self.training or self._in_training_pieces
        key = leave_out, _without_key(frames_fv)
        if key not in self._found:
            own = self.memory.containing(frames_fv[:-1]) if leave_out else []  # the last frame may not be complete
            self._found[key] = torch.from_numpy(self.memory.look_up(frames_fv, leave_out=own)).half()
            if len(self._found) > KEPT:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    def forward(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features [..., e] of what was found [..., k, c + 2], and what was found with some of it hidden.

        The features say how sure the memory is, not of what: a network that sees the distributions learns its training pieces
        by heart from them (docs/results/jsb.md).
        """
        if self.training and self.dropout:
            found = found * (torch.rand(*found.shape[:-1], 1, device=found.device) >= self.dropout)
        probability, facts = found[..., :CLASSES], found[..., CLASSES:]
        agreement = probability.prod(-2).sum(-1, keepdim=True)
        known = torch.cat([facts.flatten(-2), probability.amax(-1), agreement], dim=-1)
        features: Tensor = self.embed(known.to(self.embed.weight.dtype))
        return features, found

    def evidence(self, x: Tensor, found: Tensor, own: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is added to the logits of the pitches [..., pitches] and of the rest [..., 1], in float32.

        x: the network's last hidden state [..., e]. own: last pitch of the voice [...]. pitch: all pitches, [pitches].
        """
        probability = found[..., :CLASSES]
        known = probability.sum(-1, keepdim=True) > 0
        surprise = torch.log(probability + FLOOR) - math.log(FLOOR)
        weighted = (surprise * known * self.gate(x).float()[..., None]).sum(-2)
        interval = pitch - own[..., None] + REACH
        inside = (interval >= 0) & (interval < CLASSES - 1)
        notes = torch.where(inside, weighted.gather(-1, interval.clamp(0, CLASSES - 2)), 0.0)
        return notes, weighted[..., -1:]


def _without_key(frames_fv: np.ndarray) -> bytes:
    """Returns what tells pieces apart whose passages differ: the same for all transpositions of one.

    A voice that rests at first counts from a stand-in, which does not move with the key; then transpositions differ, too.
    """
    moves = len(frames_fv) > 0 and bool((frames_fv[0] != REST).all())
    lowest = frames_fv[0, 0] if moves else 0
    return np.where(frames_fv == REST, np.iinfo(np.int64).min, frames_fv - lowest).tobytes()
