"""Fills in passages of scores in four voices with the chorale model, which needs no training for it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from symusic import Score
from torch import nn

from etude.models.symbolic.particles import Cell, fill_grid
from etude.music.passages import Passage, replaced
from etude.tokens.grammar import BOS, CONT
from etude.tokens.satb import SatbGrid
from etude.tokens.satb_passages import grid_passage, tracks_filled
from etude.tokens.tokenizer import FORM, WISHES, Tokenizer

BEFORE = 384  # frames before a passage that the model sees, a multiple of the bars of 4/4 and 3/4
BEHIND = 32  # frames behind it: two bars of 4/4 in sixteenths


def check_filling(tokenizer: Tokenizer, prompt: Score, passage: Passage, labels: Mapping[str, Any]) -> None:
    """Checks that a passage can be filled in with what is asked for.

    Raises: ValueError if the score is not in four voices, or something is asked of the notes.
    """
    assert isinstance(tokenizer, SatbGrid)
    if given := [name for name in (*WISHES, *FORM) if labels.get(name)]:
        raise ValueError(
            f"{given[0]} can't be asked for where a chorale model fills a passage in; leave {given[0]} out, or take a model with "
            "tokenizer=remi, such as ckpt=bundled"
        )
    grid_passage(tokenizer, prompt, passage)


def fill_voices(
    model: nn.Module,
    tokenizer: SatbGrid,
    prompt: Score,
    passage: Passage,
    *,
    num_samples: int,
    labels: Mapping[str, Any],
    seed: int,
    max_new_tokens: int,
    particles: int = 64,
    on_step: Callable[[int], None] | None = None,
    **sampling: Any,
) -> list[Score]:
    """Returns copies of a score in four voices whose passage has other notes; all else stays, note for note.

    Args:
        model: a `GridTransformer`. tokenizer: its own, without bar tokens.
        labels: for the control tokens.
        max_new_tokens: most cells of the grid that may be missing.
        particles: see `fill_grid`, as for `sampling`.

    Raises: ValueError if the score is not in four voices, too much of it is missing, or something is asked of the notes.
    """
    check_filling(tokenizer, prompt, passage, labels)
    grid = grid_passage(tokenizer, prompt, passage)
    if (count := int(grid.missing.sum())) > max_new_tokens:
        raise ValueError(f"infill: {count} tokens are missing, more than max_new_tokens={max_new_tokens}; raise it")
    chosen = np.flatnonzero((grid.missing | grid.held).any(1))
    first = max(0, -(-(int(chosen[0]) - BEFORE) // 48) * 48)
    last = min(int(chosen[-1]) + 1 + BEHIND, len(grid.frames))
    cells = np.where(grid.held, Cell.HELD, np.where(grid.missing, Cell.MISSING, Cell.GIVEN))[first:last]
    found = fill_grid(
        model, [CONT if first else BOS, *tokenizer.controls(dict(labels))],
        torch.from_numpy(tokenizer.encode_frames(grid.frames[first:last]).reshape(-1, 4).astype(np.int64)),
        torch.from_numpy(cells.astype(np.int64)), first_body=tokenizer.first_body, num_pieces=num_samples, particles=particles,
        generator=torch.Generator().manual_seed(seed), on_step=on_step, **sampling,
    )  # fmt: skip
    samples = []
    for tokens in found.tokens.numpy():
        frames = grid.frames.copy()
        frames[first:last] = tokenizer.decode_frames(tokens.flatten())
        samples.append(replaced(prompt, passage, tracks_filled(tokenizer, prompt, passage, grid, frames)))
    return samples
