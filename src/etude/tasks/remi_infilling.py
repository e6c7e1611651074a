"""Fills in passages of scores with a model of REMI tokens that learnt to, see `etude.tokens.infilling`."""

from collections.abc import Mapping
from typing import Any

import torch
from symusic import Score
from torch import nn

from etude.models.symbolic.sampling import generate
from etude.music.passages import Passage
from etude.tasks.prompted_samples import filled
from etude.tokens.grammar import BOS, CONT
from etude.tokens.infilling import OpenHole
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.open_holes import hole_decoder, open_hole
from etude.tokens.wished_tracks import wishes_of

AHEAD_BARS = 8  # bars behind a passage that a model sees when it fills it in, as many as in training at most
MOST_BEFORE = 768  # tokens before what is missing, at most about: training rows have 1,024 by default


def hole_of(tokenizer: MidiTokTokenizer, prompt: Score, passage: Passage) -> OpenHole:
    """Returns the passage as a hole in the tokens. Raises: ValueError if the tokenizer can't represent the score."""
    return open_hole(tokenizer, prompt, passage, ahead=AHEAD_BARS, most_tokens=MOST_BEFORE)


def fill_tracks(
    model: nn.Module, tokenizer: MidiTokTokenizer, prompt: Score, passage: Passage, *, num_samples: int,
    labels: Mapping[str, Any], seed: int, **sampling: Any,
) -> list[Score]:  # fmt: skip
    """Returns copies of a score whose passage has other notes; all else stays, note for note.

    Args:
        labels: for the control tokens, and what is asked of the notes.
        sampling: more arguments of `etude.models.symbolic.sampling.generate`.

    Raises: ValueError as `hole_of` does.
    """
    if labels.get("form") is not None:
        raise ValueError("form is for whole pieces and continuations, not for infill; leave it out")
    hole = hole_of(tokenizer, prompt, passage)
    start = [CONT if hole.inside else BOS, *tokenizer.controls(dict(labels)), *hole.ids.tolist()]
    first = len(start) - len(hole.ids)
    positions = [*range(first), *(first + hole.positions).tolist(), first + int(hole.positions[-1]) + 1]
    sequences = generate(
        model, torch.tensor([start] * num_samples, device=next(model.parameters()).device),
        decoder=hole_decoder(tokenizer, hole, batch=num_samples, wishes=wishes_of(tokenizer, labels, prompt=prompt)),
        generator=torch.Generator().manual_seed(seed),
        positions_t=torch.tensor(positions), **sampling,
    )  # fmt: skip
    return [filled(tokenizer, prompt, passage, sequence[len(start) :]) for sequence in sequences]
