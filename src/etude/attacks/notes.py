"""A discrete attack on scores: changes the few tokens, such as pitches by a semitone, that raise the loss most.

Shapes: t tokens of a score, p possible changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Changes(NamedTuple):
    """Possible changes of single tokens: their places in the score and the tokens that they become, int64 [p] each."""

    place: Tensor
    token: Tensor


def change_notes(
    loss_of: Callable[[Tensor], Tensor], tokens_t: Tensor, changes: Changes, *, notes: int, batch_size: int = 64
) -> tuple[Tensor, list[float]]:
    """Returns the tokens after `notes` changes at different places, each the one that raises the loss most, and the losses.

    All changes are tried at every round, so the loss after each round is the highest that one more change can give.

    Args:
        loss_of: maps tokens [k, t] to losses [k]. notes: most changes, at least 0. batch_size: scores that are tried at once.

    Returns: the tokens [t], and the loss before and after each round; fewer rounds if no change raises the loss.

    Raises: ValueError for a number below 0.

    Source: after Alzantot et al. 2018 and Ebrahimi et al. 2018 (HotFlip), here an exact greedy search.
    """
    if notes < 0:
        raise ValueError(f"notes={notes} is below 0; 0 changes nothing")
    now, left = tokens_t.clone(), torch.ones(len(changes.place), dtype=torch.bool)
    with torch.no_grad():
        losses = [float(loss_of(now[None])[0])]
        for _ in range(notes):
            rows = left.nonzero()[:, 0]
            if not len(rows):
                break
            found = []
            for part in torch.split(rows, batch_size):
                tried = now.repeat(len(part), 1)
                tried[torch.arange(len(part)), changes.place[part]] = changes.token[part]
                found.append(loss_of(tried))
            tried_losses = torch.cat(found)
            best = int(tried_losses.argmax())
            if not float(tried_losses[best]) > losses[-1]:
                break
            chosen = rows[best]
            now[changes.place[chosen]] = changes.token[chosen]
            left &= changes.place != changes.place[chosen]
            losses.append(float(tried_losses[best]))
    return now, losses
