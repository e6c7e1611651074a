"""Musical changes of documents: maps of their tokens, and bars that are dropped or swapped.

The strength of a change is in [-1, 1]; the constants say what the largest one does.
"""

from typing import Any

import numpy as np
import torch

MOST_SEMITONES, MOST_TEMPO, MOST_VELOCITY, MOST_DROPPED = 6, 1.5, 4, 0.5  # at strength 1
OF_BARS = ("drop_bars", "swap_bars")
OF_SCORES = ("transpose", "tempo", "velocity", *OF_BARS)


def signed_strength(magnitude: float, draws: torch.Generator) -> float:
    """Returns a number drawn evenly from [-magnitude, magnitude]."""
    return magnitude * (2 * float(torch.rand((), generator=draws)) - 1)


def bar_borders(ids: np.ndarray, tokenizer: Any) -> list[int]:
    """Returns where the bars of a document begin, and its end; [end] if it has no bars."""
    body = np.flatnonzero(ids >= tokenizer.first_body)
    starts = tokenizer.bar_starts(ids[body]) if len(body) else []
    return [*(int(body[start]) for start in starts), int(body[-1]) + 1 if len(body) else len(ids)]


def token_map(name: str, tokenizer: Any, strength: float) -> np.ndarray:
    """Returns the map of base ids, int [v], of transpose, tempo or velocity at a strength in [-1, 1]; -1 leaves the range."""
    if name == "transpose":
        found: np.ndarray = tokenizer.transposition(round(MOST_SEMITONES * strength))
    elif name == "tempo":
        found = tokenizer.tempo_scaling(MOST_TEMPO**strength)
    else:
        found = tokenizer.velocity_scaling(round(MOST_VELOCITY * strength))
    return found


def changed_score(
    name: str, tokenizer: Any, ids: np.ndarray, place: np.ndarray, magnitude: float, draws: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a document after an operation, and where in the document each token was."""
    strength = signed_strength(magnitude, draws)
    if name not in OF_BARS:
        moved = token_map(name, tokenizer, strength)[ids]
        return (moved, place) if (moved >= 0).all() else (ids, place)
    borders = bar_borders(ids, tokenizer)
    bars = list(range(len(borders) - 1))
    if len(bars) < 3:
        return ids, place
    if name == "swap_bars":
        first = int(torch.randint(len(bars) - 2, (), generator=draws))  # the last bar may not be complete, so it stays the last
        bars[first], bars[first + 1] = bars[first + 1], bars[first]
    else:
        dropped = round(MOST_DROPPED * abs(strength) * len(bars))
        bars = sorted(torch.randperm(len(bars), generator=draws)[: len(bars) - dropped].tolist())
    order = [np.arange(borders[0]), *(np.arange(borders[b], borders[b + 1]) for b in bars), np.arange(borders[-1], len(ids))]
    chosen = np.concatenate(order).astype(np.int64)
    return ids[chosen], place[chosen]
