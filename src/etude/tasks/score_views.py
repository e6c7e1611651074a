"""Random views of packed scores: other keys, tempi and note values, crops, voices left out.

Shapes: b rows, t tokens, u tokens of a shortened row, n documents, v vocabulary, s shifts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.tasks.pooling import documents_of
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import (
    BAR,
    DURATION,
    NOTE_OFF,
    NOTE_ON,
    PART,
    PITCH,
    PITCHED,
    POSITION,
    PROGRAM,
    TEMPO,
    TIME_SHIFT,
    TIME_SIG,
    VELOCITY,
)
from etude.tokens.tokenizer import Tokenizer

NONE = -1  # no token for this value
MULTIPLE = 8  # shortened rows have a multiple of this many tokens, which suits matrix kernels
OF_NOTES = (PITCH, NOTE_ON, NOTE_OFF, VELOCITY, DURATION, PROGRAM, PART)
Rescaled = Callable[[int], float]  # a value of a token -> the value that takes its place


class ScoreViews:
    """Draws views of the documents of a batch, from torch's generator.

    Args:
        tokenizer: with tokens of pitches, without byte pairs.
        semitones: largest transposition, up and down. tempi: largest change of the tempo, in tokens of tempo.
        note_values: whether a view may have halved or doubled note values, 2/4 as 2/2: the same music in another notation.
        voices: probability with which each voice of a document with several is left out; one always stays.

    A document that lacks a token for its new key, tempo or note values keeps its own.

    Raises: ValueError for another tokenizer.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, semitones: int, tempi: int, note_values: bool = False, voices: float = 0.0
    ) -> None:  # fmt: skip
        if not isinstance(tokenizer, MidiTokTokenizer) or tokenizer.params.get("bpe_vocab_size") is not None:
            raise ValueError(
                "views of scores change the tokens of pitches; set tokenizer=remi, or another MidiTok one without byte pairs"
            )
        table = tokenizer.table
        self.kind, number, units = (torch.from_numpy(x) for x in (table.kind, table.number, table.units))
        kind, size = self.kind, len(self.kind)
        ranks = torch.full_like(number, NONE)
        tempo = (kind == TEMPO).nonzero().flatten()
        ranks[tempo] = number[tempo].argsort().argsort()  # the rank of each tempo
        self.pitches = _stack(size, range(-semitones, semitones + 1), lambda s: [
            (kind == one, number, lambda value: value + s) for one in PITCHED
        ])  # fmt: skip
        self.tempi = _stack(size, range(-tempi, tempi + 1), lambda s: [(kind == TEMPO, ranks, lambda value: value + s)])
        self.note_values = _stack(size, (0.5, 1.0, 2.0) if note_values else (1.0,), lambda s: [
            (kind == POSITION, number, lambda value: value * s),
            ((kind == DURATION) | (kind == TIME_SHIFT), units * 100 + kind, lambda value: value // 100 * 100 * s + value % 100),
        ])  # fmt: skip
        metres = [(int(i), int(number[i]), int(units[i])) for i in (kind == TIME_SIG).nonzero()]
        for row, scale in zip(self.note_values, (0.5, 1.0, 2.0) if note_values else (1.0,), strict=True):
            for token, beats, length in metres:
                row[token] = _metre(metres, beats, length * scale)
        self.voices, self.has_bars = voices, bool((kind == BAR).any())
        self.of_notes = torch.isin(kind, torch.tensor(OF_NOTES))

    def view(self, batch: Batch, *, least: float, most: float = 1.0) -> Batch:
        """Returns a view of each document, its rows shortened to what it shows.

        least, most: the share of its bars (of its tokens, if the tokenizer has none for bars) that a view shows, in (0, 1].
        """
        tokens, kept = self.changed(batch["tokens"], batch), batch["documents"] >= 0
        if self.voices:
            kept = kept & self._heard(batch)
        return shortened({**batch, "tokens": tokens}, kept & self._stretch(batch, kept, least, most))

    def changed(self, tokens_bt: Tensor, batch: Batch) -> Tensor:
        """Returns the tokens with each document in another key, at another tempo and in other note values."""
        starts, owner_bt = _owners(batch)
        for table in (self.pitches, self.tempi, self.note_values):
            if len(table) == 1:
                continue
            shift_n = torch.randint(len(table), (len(starts),), device=tokens_bt.device)
            moved = table.to(tokens_bt.device)[shift_n[owner_bt], tokens_bt]
            lost = torch.zeros(len(starts), dtype=torch.int64, device=tokens_bt.device)
            lost.index_add_(0, owner_bt.flatten(), ((moved == NONE) & (batch["documents"] >= 0)).flatten().long())
            tokens_bt = torch.where(lost[owner_bt] == 0, moved, tokens_bt)
        return tokens_bt

    def _stretch(self, batch: Batch, kept_bt: Tensor, least: float, most: float) -> Tensor:
        """Returns which tokens lie in a random stretch of their document, bool [b, t]."""
        if least >= 1:
            return kept_bt
        starts, owner_bt = _owners(batch)
        owner, device = owner_bt.flatten(), owner_bt.device
        place = torch.arange(len(owner), device=device) - starts[owner]
        if self.has_bars:
            bars = (self.kind.to(device)[batch["tokens"].flatten()] == BAR).cumsum(0)
            place = (bars - bars[starts][owner] - 1).clamp(min=0)  # what precedes the first bar is part of it
        real = batch["documents"].flatten() >= 0
        length = torch.zeros(len(starts), dtype=torch.int64, device=device)
        length.scatter_reduce_(0, owner[real], place[real] + 1, "amax")
        share = least + (most - least) * torch.rand(len(starts), device=device)
        keep = (length * share).long().clamp(min=1)
        first = (torch.rand(len(starts), device=device) * (length - keep + 1)).long()
        return ((place >= first[owner]) & (place < (first + keep)[owner])).view_as(kept_bt)

    def _heard(self, batch: Batch) -> Tensor:
        """Returns which tokens belong to a voice that stays, or to none, bool [b, t]."""
        tokens, (starts, owner_bt) = batch["tokens"].flatten(), _owners(batch)
        owner, device = owner_bt.flatten(), tokens.device
        kind, index = self.kind.to(device)[tokens], torch.arange(len(tokens), device=device)
        program = torch.where(kind == PROGRAM, index, 0).cummax(0).values
        part = torch.where(kind == PART, index, 0).cummax(0).values
        own = program >= starts[owner]
        voice = torch.where(own, 1 + tokens[program] * len(self.kind) + torch.where(part > program, tokens[part], 0), 0)
        notes = self.of_notes.to(device)[tokens] & (batch["documents"].flatten() >= 0)
        # a Program token and its Part belong to the voice that they name; so look one token ahead for a Part
        ahead = torch.where((kind == PROGRAM) & (kind.roll(-1) == PART), voice.roll(-1), voice)
        names, number = torch.unique(torch.stack((owner, ahead)), dim=1, return_inverse=True)
        used = torch.zeros(names.shape[1], dtype=torch.bool, device=device).index_fill(0, number[notes], True)
        draw = torch.where(used, torch.rand(names.shape[1], device=device), 2.0)
        lowest = torch.full((len(starts),), 2.0, device=device).scatter_reduce(0, names[0], draw, "amin")
        stays = ((1 - draw) > self.voices) | (draw == lowest[names[0]])
        heard: Tensor = ~notes | stays[number]
        return heard.view_as(owner_bt)


def _owners(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns where each document starts in the flattened tokens [n], and the document of each token [b, t]."""
    starts, owner = documents_of(batch)
    return starts, owner.clamp(min=0).view_as(batch["documents"])


def _stack(size: int, shifts: object, rules: Callable[[float], list[tuple[Tensor, Tensor, Rescaled]]]) -> Tensor:
    """Returns the token that each token becomes by each shift, [s, v]; NONE where there is none.

    rules: for a shift, (which tokens [v], their values [v], the value that takes the place of a value).
    """
    found = []
    for shift in shifts:  # type: ignore[attr-defined]
        row = torch.arange(size)
        for mask, values, changed in rules(shift):
            place = {int(values[i]): int(i) for i in mask.nonzero()}
            for value, token in place.items():
                row[token] = place.get(changed(value), NONE)  # type: ignore[call-overload]
        found.append(row)
    return torch.stack(found)


def _metre(metres: list[tuple[int, int, int]], beats: int, length: float) -> int:
    """Returns the time signature of bars of this length: with as many beats if they are compound, else with the fewest."""
    found = sorted((number, token) for token, number, units in metres if units == length)
    same = [token for number, token in found if number == beats and beats > 3 and beats % 3 == 0]
    return (same or [token for _, token in found] or [NONE])[0]


def shortened(batch: Batch, kept_bt: Tensor) -> Batch:
    """Returns the batch with only the tokens that are kept, in shorter rows, [b, u]; the rest of a row is padding."""
    longest = int(kept_bt.sum(1).max())
    length = min(kept_bt.shape[1], -(-max(longest, 1) // MULTIPLE) * MULTIPLE)
    order = (~kept_bt).byte().argsort(dim=1, stable=True)[:, :length]
    there = kept_bt.gather(1, order)
    found = {name: value.gather(1, order) for name, value in batch.items()}
    return found | {
        "documents": torch.where(there, found["documents"], -1), "positions": torch.where(there, found["positions"], 0),
        "tokens": torch.where(there, found["tokens"], 0),
    }  # fmt: skip
