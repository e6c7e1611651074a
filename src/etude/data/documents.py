"""Pieces as documents: augmented body ids behind their controls, cut into windows that fit a row.

A document is BOS (CONT for a window that starts inside a piece), controls, body, and EOS at the end of the piece.
Everything random about it is a function of (seed, pass, piece): the same in any worker, rank or order.
"""

from dataclasses import dataclass

import numpy as np

from etude.data.randomness import uniform
from etude.data.view import View
from etude.music.tokenizer import Tokenizer

TEMPO_STEPS = 9  # factors to which a range of tempo scaling is quantised, so that their maps can be kept
TRANSPOSE, TEMPO, VELOCITY, CONTROLS = range(4)  # columns of a piece's random numbers; one for each control follows
CACHED_PIECES = 512
SAMPLED_PIECES = 64


@dataclass(frozen=True)
class Augmentation:
    """What is varied from pass to pass.

    transpose: lowest and highest shift in semitones; each piece stays within the range of its tokenizer. None: no
        shift.
    tempo_scale: lowest and highest factor, above 0. None: as written.
    velocity_shift: up to so many velocity bins louder or softer, 0 or more.
    control_dropout: probability with which each control is left out, in [0, 1].
    """

    transpose: tuple[int, int] | None = None
    tempo_scale: tuple[float, float] | None = None
    velocity_shift: int = 0
    control_dropout: float = 0.0


class Documents:
    """The pieces of a view as documents.

    view, tokenizer: of one split. augmentation: what is varied. seed: which variations.
    """

    def __init__(self, view: View, tokenizer: Tokenizer, *, augmentation: Augmentation, seed: int):
        self.view, self.tokenizer, self.augmentation, self.seed = view, tokenizer, augmentation, seed
        self.merges = len(tokenizer) != tokenizer.base_size  # byte pairs: lengths depend on the transposition
        self._maps: dict[tuple[int, float, int], np.ndarray] = {}
        self._recent: dict[tuple[int, int], np.ndarray] = {}
        self._recent_bars: dict[tuple[int, int], np.ndarray] = {}

    @property
    def num_tokens(self) -> int:
        """About how many tokens a pass over all documents has; byte pairs are estimated from some pieces."""
        total, sample = self.view.num_tokens, range(0, len(self.view), max(1, len(self.view) // SAMPLED_PIECES))
        if self.merges and total:
            base = sum(int(self.view.table["length"][piece]) for piece in sample)
            total = round(total * sum(len(self.body(0, piece)) for piece in sample) / base)
        controls = int(
            (np.asarray(self.view.table["controls"][list(sample)]) >= 0).sum() / max(1, len(sample)) * len(self.view)
        )
        return total + len(self.view) + round(controls * (1 - self.augmentation.control_dropout))

    def random(self, passes: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """The random numbers of each (pass, piece), float64 [n, 3 + controls]."""
        return uniform(self.seed, passes, pieces, CONTROLS + self.view.table["controls"].shape[1])

    def kept_controls(self, pieces: np.ndarray, random: np.ndarray) -> np.ndarray:
        """Which controls stand in front of each document, bool [n, controls]."""
        present = np.asarray(self.view.table["controls"][pieces]) >= 0
        return present & (random[:, CONTROLS:] >= self.augmentation.control_dropout)

    def lengths(self, passes: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """Body tokens of each piece as the model sees it, int64 [n]."""
        if not self.merges:
            return np.asarray(self.view.table["length"][pieces]).astype(np.int64)
        return np.array(
            [len(self.body(number, piece)) for number, piece in zip(passes.tolist(), pieces.tolist(), strict=True)]
        )

    def body(self, number: int, piece: int) -> np.ndarray:
        """Augmented body ids of `piece` in pass `number`, as the model sees them."""
        ids = self._recent.get((number, piece))
        if ids is None:
            ids = self.view.body(piece)
            table = self._map(number, piece)
            ids = ids if table is None else table[ids]
            if self.merges:
                ids = np.asarray(self.tokenizer.compress(np.asarray(ids, np.int32)))
            if len(self._recent) >= CACHED_PIECES:
                self._recent.pop(next(iter(self._recent)))
            self._recent[number, piece] = ids
        return ids

    def bars(self, number: int, piece: int) -> np.ndarray:
        """Where bars begin in `body(number, piece)`, int64, increasing."""
        starts = self._recent_bars.get((number, piece))
        if starts is None:
            starts = np.asarray(self.tokenizer.bar_starts(self.body(number, piece)), np.int64)
            if len(self._recent_bars) >= CACHED_PIECES:
                self._recent_bars.pop(next(iter(self._recent_bars)))
            self._recent_bars[number, piece] = starts
        return starts

    def prefix(self, number: int, piece: int) -> np.ndarray:
        """Control ids of a document, augmented as its body is."""
        controls = self.view.table["controls"][piece]
        if len(controls) == 0:
            return controls
        random = self.random(np.array([number]), np.array([piece]))
        controls = controls[self.kept_controls(np.array([piece]), random)[0]]
        table = self._map(number, piece)
        return controls if table is None else table[controls]

    def _map(self, number: int, piece: int) -> np.ndarray | None:
        """The map id -> id of a piece's augmentation in a pass; None where nothing changes."""
        wish = self.augmentation
        if wish.transpose is None and wish.tempo_scale is None and wish.velocity_shift == 0:
            return None
        random = self.random(np.array([number]), np.array([piece]))[0]
        shift, factor, bins = 0, 1.0, 0
        if wish.transpose is not None:
            low, high = self.view.table["shift"][piece].tolist()
            low, high = max(low, wish.transpose[0]), min(high, wish.transpose[1])
            shift = min(high, low + int(random[TRANSPOSE] * (high - low + 1))) if low <= high else 0
        if wish.tempo_scale is not None:
            slow, fast = wish.tempo_scale
            factor = slow * (fast / slow) ** (int(random[TEMPO] * TEMPO_STEPS) / (TEMPO_STEPS - 1))
        if wish.velocity_shift:
            bins = int(random[VELOCITY] * (2 * wish.velocity_shift + 1)) - wish.velocity_shift
        return self._compose(shift, factor, bins)

    def _compose(self, shift: int, factor: float, bins: int) -> np.ndarray:
        if (shift, factor, bins) not in self._maps:
            table = self.tokenizer.transposition(shift)
            for change in (self.tokenizer.tempo_scaling(factor), self.tokenizer.velocity_scaling(bins)):
                table = np.where(table >= 0, change[table], -1).astype(np.int32)
            self._maps[shift, factor, bins] = table
        return self._maps[shift, factor, bins]
