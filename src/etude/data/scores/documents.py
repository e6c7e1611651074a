"""Documents: pieces or windows of pieces as token ids with control tokens and augmentation.

A document consists of BOS (or CONT for a window that starts inside a piece), controls, body, and EOS at the end of the
piece. Its random choices are a function of (seed, pass, piece): they are the same in any worker, rank or order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from etude.data.randomness import key, uniform
from etude.data.scores.view import View
from etude.tokens.infilling import Infilled
from etude.tokens.tokenizer import Tokenizer

Key = TypeVar("Key")
Value = TypeVar("Value")
TEMPO_STEPS = 9  # number of tempo factors to which a range is quantised, so that their maps can be cached
TRANSPOSE, TEMPO, VELOCITY, HIDE, DROPOUT = range(5)  # columns of the random numbers of a piece; then one for each control
SHIFT, STEP, BINS, KEPT, HOLES = range(5)  # columns of a variation
NUM_VARIED = 5
INFILLING = 11  # key that makes the random numbers of holes different from those of the other columns
MAX_CONTROLS = 62  # bits of column KEPT
CACHED_PIECES = 4096
SAMPLED_PIECES = 64


@dataclass(frozen=True)
class Augmentation:
    """Options of the augmentation, which is drawn anew in each pass.

    transpose: lowest and highest shift in semitones; each piece stays within the range of its tokenizer. None: no shift.
    tempo_scale: lowest and highest factor, above 0. None: tempos stay the same.
    velocity_shift: largest change of velocity, up or down, in bins, 0 or more.
    control_dropout: probability, in [0, 1], that a control token is left out. With half of this probability, all controls
        of a piece are left out together.
    infill: probability, in [0, 1], that a piece gets holes, see `etude.tokens.infilling`.
    most_infilled: tokens of a hole and of what is seen of its surroundings, at most about.
    """

    transpose: tuple[int, int] | None = None
    tempo_scale: tuple[float, float] | None = None
    velocity_shift: int = 0
    control_dropout: float = 0.0
    infill: float = 0.0
    most_infilled: int = 512

    def __post_init__(self) -> None:
        if self.velocity_shift < 0:
            raise ValueError(f"velocity_shift={self.velocity_shift} must be at least 0, bins either way")


class Documents:
    """The pieces of a view as documents.

    A variation, int64 [5], is the augmentation of a piece in one pass: semitones, tempo step, velocity bins, the kept controls as
    bits, and the seed of its holes, 0 for none.

    view: the pieces of one split.
    tokenizer: their tokenizer.
    augmentation: its options.
    seed: of the random variations.
    """

    def __init__(self, view: View, tokenizer: Tokenizer, *, augmentation: Augmentation, seed: int):
        self.view, self.tokenizer, self.augmentation, self.seed = view, tokenizer, augmentation, seed
        self.merges = len(tokenizer) != tokenizer.base_size  # with byte pairs, lengths depend on the transposition
        self.width = view.table["controls"].shape[1]
        if self.width > MAX_CONTROLS:
            raise ValueError(f"a piece has {self.width} controls, at most {MAX_CONTROLS} are possible; set data.controls")
        self._maps: dict[tuple[int, ...], np.ndarray] = {}
        self._changes: dict[tuple[str, float], np.ndarray] = {}
        self._merged = Recent[tuple[int, ...], np.ndarray](CACHED_PIECES // 8)
        self._bars = Recent[tuple[int, ...], np.ndarray](CACHED_PIECES)
        self._features = Recent[tuple[int, ...], dict[str, np.ndarray]](CACHED_PIECES)
        self._infilled = Recent[tuple[int, ...], Infilled](CACHED_PIECES // 8)

    @property
    def num_tokens(self) -> int:
        """Approximate number of tokens of all documents; with byte pairs it is estimated from a sample of pieces."""
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
        """Returns the variation of each piece in each pass, int64 [n, 5]."""
        options, table = self.augmentation, self.view.table
        random = uniform(self.seed, passes, pieces, DROPOUT + self.width)
        result = np.zeros((len(pieces), NUM_VARIED), np.int64)
        if options.transpose is not None:
            low, high = np.asarray(table["shift"][pieces], np.int64).T
            low, high = np.maximum(low, options.transpose[0]), np.minimum(high, options.transpose[1])
            shift = np.minimum(high, low + (random[:, TRANSPOSE] * (high - low + 1)).astype(np.int64))
            result[:, SHIFT] = np.where(low <= high, shift, 0)
        if options.tempo_scale is not None:
            result[:, STEP] = (random[:, TEMPO] * TEMPO_STEPS).astype(np.int64)
        if options.velocity_shift:
            span = 2 * options.velocity_shift + 1
            result[:, BINS] = (random[:, VELOCITY] * span).astype(np.int64) - options.velocity_shift
        # Half of the dropout removes all controls of a piece at once, so that the model learns to sample without controls.
        together = options.control_dropout / 2
        alone = 1 - (1 - options.control_dropout) / (1 - together)
        kept = (table["controls"][pieces] >= 0) & (random[:, DROPOUT:] >= alone) & (random[:, HIDE, None] >= together)
        result[:, KEPT] = (kept << np.arange(self.width)).sum(axis=1)
        if options.infill:
            holes = uniform(int(key(self.seed, INFILLING)), passes, pieces, 2)
            result[:, HOLES] = np.where(holes[:, 0] < options.infill, 1 + (holes[:, 1] * 2**31).astype(np.int64), 0)
        return result

    def num_controls(self, variations: np.ndarray) -> np.ndarray:
        """Returns the number of control tokens of each document, int64 [n]."""
        count: np.ndarray = ((variations[:, KEPT, None] >> np.arange(self.width)) & 1).sum(axis=1)
        return count

    def lengths(self, pieces: np.ndarray, variations: np.ndarray) -> np.ndarray:
        """Returns the number of body tokens of each piece as the model sees it, int64 [n]."""
        if not self.merges:
            lengths: np.ndarray = self.view.table["length"][pieces].astype(np.int64)
            for i in np.flatnonzero(variations[:, HOLES]).tolist():
                lengths[i] = len(self._with_holes(int(pieces[i]), variations[i]).ids)
            return lengths
        return np.array([len(self._whole(piece, how)) for piece, how in zip(pieces.tolist(), variations, strict=True)])

    def prefix(self, piece: int, variation: np.ndarray) -> np.ndarray:
        """Returns the control ids of a document, augmented like its body."""
        controls: np.ndarray = self.view.table["controls"][piece]
        controls = controls[(variation[KEPT] >> np.arange(self.width)) & 1 == 1]
        table = self._map(variation)
        return controls if table is None else table[controls]

    def body(self, piece: int, variation: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns body ids [start, stop) of an augmented piece, as the model sees them; a view of the file if unchanged."""
        if self.merges:
            return self._whole(piece, variation)[start:stop]
        whole = self._with_holes(piece, variation).ids if variation[HOLES] else self.view.body(piece)
        ids, table = whole[start:stop], self._map(variation)
        return ids if table is None else table[ids]

    def _whole(self, piece: int, variation: np.ndarray) -> np.ndarray:
        def merge() -> np.ndarray:
            ids, table = self.view.body(piece), self._map(variation)
            return np.asarray(self.tokenizer.compress(np.asarray(ids if table is None else table[ids], np.int32)))

        return self._merged.get(self._key(piece, variation), merge)

    def _with_holes(self, piece: int, variation: np.ndarray) -> Infilled:
        """The base ids of a piece with holes, before any other augmentation."""
        seed = int(variation[HOLES])
        return self._infilled.get(
            (piece, seed),
            lambda: self.tokenizer.infilled(self.view.body(piece), seed=seed, most_tokens=self.augmentation.most_infilled),
        )

    def positions(self, piece: int, variation: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Returns the positions of body ids [start, stop), counted from the first of them, int64."""
        if not variation[HOLES]:
            return np.arange(stop - start)
        positions = self._with_holes(piece, variation).positions[start:stop]
        counted: np.ndarray = positions - positions[:1]
        return counted

    def uncounted(self, ids: np.ndarray, variation: np.ndarray) -> np.ndarray:
        """Returns which body ids of a piece do not count for the loss, bool [n]."""
        return self.tokenizer.uncounted(ids) if variation[HOLES] else np.zeros(len(ids), bool)

    def _key(self, piece: int, variation: np.ndarray) -> tuple[int, ...]:
        """The cache key of bars and features: what changes them is the merging of byte pairs, and holes."""
        return (piece, *variation[:KEPT].tolist()) if self.merges else (piece, int(variation[HOLES]))

    def bars(self, piece: int, variation: np.ndarray) -> np.ndarray:
        """Returns the indices at which the body may be cut, int64, increasing: where bars begin, outside of holes."""
        if variation[HOLES]:
            return self._with_holes(piece, variation).cuts
        return self._bars.get(
            self._key(piece, variation),
            lambda: np.asarray(self.tokenizer.bar_starts(self.body(piece, variation)), np.int64),
        )

    def features(self, piece: int, variation: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the features of each body token of the whole piece, as small integers."""
        return self._features.get(self._key(piece, variation), lambda: self._all_features(piece, variation))

    def _all_features(self, piece: int, variation: np.ndarray) -> dict[str, np.ndarray]:
        sizes = self.tokenizer.feature_sizes
        found = self.tokenizer.features(np.asarray(self.body(piece, variation)))
        return {name: values.astype(np.min_scalar_type(sizes[name])) for name, values in found.items()}

    def _map(self, variation: np.ndarray) -> np.ndarray | None:
        """Returns the map id -> id of a variation; None without augmentation."""
        options = self.augmentation
        if options.transpose is None and options.tempo_scale is None and options.velocity_shift == 0:
            return None
        key = tuple(variation[:KEPT].tolist())
        if key not in self._maps:
            shift, step, bins = key
            slow, fast = options.tempo_scale or (1.0, 1.0)
            factor = slow * (fast / slow) ** (step / (TEMPO_STEPS - 1))
            table = self._change("transposition", shift)
            for change in (self._change("tempo_scaling", factor), self._change("velocity_scaling", bins)):
                table = np.where(table >= 0, change[table], -1).astype(np.int32)
            self._maps[key] = table
        return self._maps[key]

    def _change(self, name: str, amount: float) -> np.ndarray:
        """Returns one of the tokenizer's maps, cached: there are few single maps, but many combinations."""
        if (name, amount) not in self._changes:
            self._changes[name, amount] = getattr(self.tokenizer, name)(amount)
        return self._changes[name, amount]


class Recent(Generic[Key, Value]):
    """A cache of the last `size` values, so that memory does not grow with the number of pieces."""

    def __init__(self, size: int):
        self.size, self._values = size, dict[Key, Value]()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Returns the value of `key`, computed by `make` if it is not in the cache."""
        if key not in self._values:
            if len(self._values) >= self.size:
                self._values.pop(next(iter(self._values)))
            self._values[key] = make()
        return self._values[key]

    def __getstate__(self) -> int:
        return self.size  # worker processes start with an empty cache

    def __setstate__(self, size: int) -> None:
        self.__init__(size)  # type: ignore[misc]
