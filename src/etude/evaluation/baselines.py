"""A baseline that predicts each voice to repeat its previous note, and the token columns for it and `count_model`.

Grids have the form of the JSB benchmark: int [T, V] per piece, V voices from the highest to the lowest, each a MIDI pitch
or -1 for a rest. Tokens are ordered by frame, and within a frame by voice. Every token counts, those of the first frame
included, and the vocabulary is the pitches and the rest, so the nats can be compared with those of a model on this grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.integer]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
REST = -1


@dataclass(frozen=True, eq=False)
class GridTokens:
    """All tokens of a set of pieces as flat columns [N]: the symbol to predict and its context. Symbol 0 is the rest."""

    symbol: Ints
    voice: Ints
    piece: Ints
    step: Ints
    current: Ints  # [N, V] the symbols of the voices before this one in this frame, -1 for the others
    before: Ints  # [N, V] the symbols of the previous frame, -1 in the first frame
    two_before: Ints  # [N] the symbol of this voice two frames ago, -1 in the first two frames
    duration: Ints  # [N] frames for which the previous symbol of this voice has lasted, 0 in the first frame

    @classmethod
    def of(cls, pieces: Sequence[Grid], *, low: int, high: int) -> "GridTokens":
        """Builds the columns of `pieces` ([T, V] each).

        Raises:
            ValueError: no pieces, or a piece that is empty or has a pitch out of range.
        """
        parts: list[list[Ints]] = []
        for number, piece in enumerate(pieces):
            grid = np.asarray(piece, np.int64)
            if grid.ndim != 2 or len(grid) == 0:
                raise ValueError(f"piece {number} has shape {grid.shape}, must be [frames, voices] with frames >= 1")
            if np.any((grid != REST) & ((grid < low) | (grid > high))):
                raise ValueError(
                    f"piece {number} has pitches {grid[grid != REST].min()}..{grid.max()}, must be in "
                    f"{low}..{high} or -1; widen low and high"
                )
            parts.append(_columns(np.where(grid == REST, 0, grid - low + 1), number))
        if not parts:
            raise ValueError("pieces is empty; give at least one grid of frames")
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    @property
    def own(self) -> Ints:
        """[N] the symbol of this voice in the previous frame, -1 in the first frame."""
        return np.take_along_axis(self.before, self.voice[:, None], axis=1)[:, 0]


def _columns(symbols_tv: Ints, number: int) -> list[Ints]:
    """Returns the fields of `GridTokens` for one piece, in their order."""
    frames, voices = symbols_tv.shape
    steps = np.arange(frames)[:, None]
    before = np.vstack([np.full((1, voices), -1), symbols_tv[:-1]])
    two_before = np.vstack([np.full((min(2, frames), voices), -1), symbols_tv[:-2]])
    changed = np.vstack([np.ones((1, voices), bool), symbols_tv[1:] != symbols_tv[:-1]])
    began = np.maximum.accumulate(np.where(changed, steps, 0), axis=0)
    duration = np.vstack([np.zeros((1, voices), np.int64), (steps - began + 1)[:-1]])
    known = np.tri(voices, k=-1, dtype=bool)  # [voice, voice]: voice v is predicted after those above it
    current = np.where(known, symbols_tv[:, None, :], -1).reshape(-1, voices)
    return [
        symbols_tv.ravel(),
        np.tile(np.arange(voices), frames),
        np.full(frames * voices, number),
        np.repeat(np.arange(frames), voices),
        current,
        np.repeat(before, voices, axis=0),
        two_before.ravel(),
        duration.ravel(),
    ]


class CopyPrevious:
    """Predicts that every voice repeats its previous symbol.

    P(x | previous) = c_v + (1 - c_v) u_v(x) if x is the previous symbol of voice v, (1 - c_v) u_v(x) otherwise, and u_v(x)
    in the first frame. u_v is the unigram distribution of voice v with add-one smoothing. c_v is the smoothed share of
    repeated symbols beyond those that the unigram predicts.

    Args:
        low, high: the range of MIDI pitches of the vocabulary, both included.
    """

    def __init__(self, *, low: int, high: int):
        if not 0 <= low < high <= 127:
            raise ValueError(f"low={low}, high={high} must satisfy 0 <= low < high <= 127; give MIDI pitches")
        self.low, self.high, self.num_symbols = low, high, high - low + 2

    def fit(self, pieces: Sequence[Grid]) -> "CopyPrevious":
        """Estimates the copy rate and the unigram of every voice from the training pieces."""
        tokens = GridTokens.of(pieces, low=self.low, high=self.high)
        voices = tokens.current.shape[1]
        counts = np.ones((voices, self.num_symbols))
        np.add.at(counts, (tokens.voice, tokens.symbol), 1)
        self.unigram = counts / counts.sum(axis=1, keepdims=True)
        follows = tokens.own >= 0
        voice, copied = tokens.voice[follows], (tokens.symbol == tokens.own)[follows]
        num_steps = np.bincount(voice, minlength=voices)
        rate = (np.bincount(voice, copied, voices) + 1) / (num_steps + 2)
        # A repeated symbol comes from the copy branch or, by chance, from the unigram: rate = c + (1 - c) * chance.
        chance = np.bincount(voice, self.unigram[voice, tokens.own[follows]], voices) / np.maximum(num_steps, 1)
        self.copy = np.clip((rate - chance) / (1 - chance), 0.0, 1 - 1e-9)
        return self

    def nats(self, pieces: Sequence[Grid]) -> Floats:
        """Returns -ln p of every piece, summed over all its tokens: float64 [pieces]."""
        tokens = GridTokens.of(pieces, low=self.low, high=self.high)
        probability = self.unigram[tokens.voice, tokens.symbol]
        copy = np.where(tokens.own >= 0, self.copy[tokens.voice], 0.0)
        probability = copy * (tokens.symbol == tokens.own) + (1 - copy) * probability
        return np.bincount(tokens.piece, -np.log(probability)).astype(np.float64)
