"""Pieces as documents: augmented body ids behind their controls, cut into windows that fit a row.

A document is BOS (CONT for a window that starts inside a piece), controls, body, and EOS at the end of the piece.
Everything random about it is a function of (seed, pass, piece): the same in any worker, rank or order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from etude.data.randomness import uniform
from etude.data.scores.view import View
from etude.tokens.tokenizer import Tokenizer

Key = TypeVar("Key")
Value = TypeVar("Value")
TEMPO_STEPS = 9  # factors to which a range of tempo scaling is quantised, so that their maps can be kept
TRANSPOSE, TEMPO, VELOCITY, HIDE, DROPOUT = range(5)  # columns of a piece's random numbers; one for each control follows
SHIFT, STEP, BINS, KEPT = range(4)  # columns of a variation
MAX_CONTROLS = 62  # bits of the column that says which controls are kept
CACHED_PIECES = 4096
SAMPLED_PIECES = 64


@dataclass(frozen=True)
class Augmentation:
    """What is varied from pass to pass.

    transpose: lowest and highest shift in semitones; each piece stays within the range of its tokenizer. None: no
        shift.
    tempo_scale: lowest and highest factor, above 0. None: as written.
    velocity_shift: up to so many velocity bins louder or softer, 0 or more.
    control_dropout: probability with which each control is left out, in [0, 1]; half of it leaves out all of a piece.
    """

    transpose: tuple[int, int] | None = None
    tempo_scale: tuple[float, float] | None = None
    velocity_shift: int = 0
    control_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.velocity_shift < 0:
            raise ValueError(f"velocity_shift={self.velocity_shift} must be at least 0, bins either way")


class Documents:
    """The pieces of a view as documents.

    A variation, int64 [4], is what happens to a piece in one pass: semitones, tempo step, velocity bins, and which
    controls are kept, as bits.

    view, tokenizer: of one split. augmentation: what is varied. seed: which variations.
    """

    def __init__(self, view: View, tokenizer: Tokenizer, *, augmentation: Augmentation, seed: int):
        self.view, self.tokenizer, self.augmentation, self.seed = view, tokenizer, augmentation, seed
        self.merges = len(tokenizer) != tokenizer.base_size  # byte pairs: lengths depend on the transposition
        self.width = view.table["controls"].shape[1]
        if self.width > MAX_CONTROLS:
            raise ValueError(f"a piece has {self.width} controls, at most {MAX_CONTROLS} are possible; set data.controls")
        self._maps: dict[tuple[int, ...], np.ndarray] = {}
        self._changes: dict[tuple[str, float], np.ndarray] = {}
        self._merged = Recent[tuple[int, ...], np.ndarray](CACHED_PIECES // 8)
        self._bars = Recent[tuple[int, ...], np.ndarray](CACHED_PIECES)
        self._features = Recent[tuple[int, ...], dict[str, np.ndarray]](CACHED_PIECES)

    @property
    def num_tokens(self) -> int:
        """About how many tokens a pass over all documents has; byte pairs are estimated from some pieces."""
        total, sample = self.view.num_tokens, np.arange(0, len(self.view), max(1, len(self.view) // SAMPLED_PIECES))
        if len(sample) == 0:
            return 0
        variations = self.variations(np.zeros_like(sample), sample)
        if self.merges:
            base = int(self.view.table["length"][sample].sum())
            total = round(total * int(self.lengths(sample, variations).sum()) / base)
        controls = np.mean([kept.bit_count() for kept in variations[:, KEPT].tolist()])
        return total + round(len(self.view) * (1 + float(controls)))

    def variations(self, passes: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """What happens to each piece in each pass, int64 [n, 4]."""
        wish, table = self.augmentation, self.view.table
        random = uniform(self.seed, passes, pieces, DROPOUT + self.width)
        result = np.zeros((len(pieces), 4), np.int64)
        if wish.transpose is not None:
            low, high = np.asarray(table["shift"][pieces], np.int64).T
            low, high = np.maximum(low, wish.transpose[0]), np.minimum(high, wish.transpose[1])
            shift = np.minimum(high, low + (random[:, TRANSPOSE] * (high - low + 1)).astype(np.int64))
            result[:, SHIFT] = np.where(low <= high, shift, 0)
        if wish.tempo_scale is not None:
            result[:, STEP] = (random[:, TEMPO] * TEMPO_STEPS).astype(np.int64)
        if wish.velocity_shift:
            span = 2 * wish.velocity_shift + 1
            result[:, BINS] = (random[:, VELOCITY] * span).astype(np.int64) - wish.velocity_shift
        # Half of the hiding takes all controls of a piece at once: sampling without any wish must be known.
        together = wish.control_dropout / 2
        alone = 1 - (1 - wish.control_dropout) / (1 - together)
        kept = (table["controls"][pieces] >= 0) & (random[:, DROPOUT:] >= alone) & (random[:, HIDE, None] >= together)
        result[:, KEPT] = (kept << np.arange(self.width)).sum(axis=1)
        return result

    def num_controls(self, variations: np.ndarray) -> np.ndarray:
        """Controls in front of each document, int64 [n]."""
        return ((variations[:, KEPT, None] >> np.arange(self.width)) & 1).sum(axis=1)

    def lengths(self, pieces: np.ndarray, variations: np.ndarray) -> np.ndarray:
        """Body tokens of each piece as the model sees it, int64 [n]."""
        if not self.merges:
            return self.view.table["length"][pieces].astype(np.int64)
        return np.array([len(self._whole(piece, how)) for piece, how in zip(pieces.tolist(), variations, strict=True)])

    def prefix(self, piece: int, variation: np.ndarray) -> np.ndarray:
        """Control ids of a document, varied as its body is."""
        controls = self.view.table["controls"][piece]
        controls = controls[(variation[KEPT] >> np.arange(self.width)) & 1 == 1]
        table = self._map(variation)
        return controls if table is None else table[controls]

    def body(self, piece: int, variation: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Body ids [start, stop) of a varied piece, as the model sees them; a view of the file where nothing varies."""
        if self.merges:
            return self._whole(piece, variation)[start:stop]
        ids = self.view.body(piece)[start:stop]
        table = self._map(variation)
        return ids if table is None else table[ids]

    def _whole(self, piece: int, variation: np.ndarray) -> np.ndarray:
        def merge() -> np.ndarray:
            ids, table = self.view.body(piece), self._map(variation)
            return np.asarray(self.tokenizer.compress(np.asarray(ids if table is None else table[ids], np.int32)))

        return self._merged.get(self._key(piece, variation), merge)

    def _key(self, piece: int, variation: np.ndarray) -> tuple[int, ...]:
        """What bars and features depend on: augmentation changes neither, unless byte pairs fall elsewhere."""
        return (piece, *variation[:KEPT].tolist()) if self.merges else (piece,)

    def bars(self, piece: int, variation: np.ndarray) -> np.ndarray:
        """Where bars begin in the body, int64, increasing."""
        return self._bars.get(
            self._key(piece, variation),
            lambda: np.asarray(self.tokenizer.bar_starts(self.body(piece, variation)), np.int64),
        )

    def features(self, piece: int, variation: np.ndarray) -> dict[str, np.ndarray]:
        """The features of each body token of the whole piece, small integers."""
        return self._features.get(self._key(piece, variation), lambda: self._all_features(piece, variation))

    def _all_features(self, piece: int, variation: np.ndarray) -> dict[str, np.ndarray]:
        sizes = self.tokenizer.feature_sizes
        found = self.tokenizer.features(np.asarray(self.body(piece, variation)))
        return {name: values.astype(np.min_scalar_type(sizes[name])) for name, values in found.items()}

    def _map(self, variation: np.ndarray) -> np.ndarray | None:
        """The map id -> id of a variation; None where nothing is ever varied."""
        wish = self.augmentation
        if wish.transpose is None and wish.tempo_scale is None and wish.velocity_shift == 0:
            return None
        key = tuple(variation[:KEPT].tolist())
        if key not in self._maps:
            shift, step, bins = key
            slow, fast = wish.tempo_scale or (1.0, 1.0)
            factor = slow * (fast / slow) ** (step / (TEMPO_STEPS - 1))
            table = self._change("transposition", shift)
            for change in (self._change("tempo_scaling", factor), self._change("velocity_scaling", bins)):
                table = np.where(table >= 0, change[table], -1).astype(np.int32)
            self._maps[key] = table
        return self._maps[key]

    def _change(self, name: str, amount: float) -> np.ndarray:
        """One of the tokenizer's maps, made once: they are many when combined, few by themselves."""
        if (name, amount) not in self._changes:
            self._changes[name, amount] = getattr(self.tokenizer, name)(amount)
        return self._changes[name, amount]


class Recent(Generic[Key, Value]):
    """The values of the last `size` keys, so that memory stays flat however many pieces there are."""

    def __init__(self, size: int):
        self.size, self._values = size, dict[Key, Value]()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not kept."""
        if key not in self._values:
            if len(self._values) >= self.size:
                self._values.pop(next(iter(self._values)))
            self._values[key] = make()
        return self._values[key]

    def __getstate__(self) -> int:
        return self.size  # workers begin with empty ones

    def __setstate__(self, size: int) -> None:
        self.__init__(size)  # type: ignore[misc]
