"""A floor for language models of tokens: an n-gram model, which is trained in a second."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

ORDER = 4  # tokens, the predicted one included


class TokenNgrams:
    """An interpolated n-gram model of tokens with Witten and Bell's smoothing.

    p_n(x | c) = (n(c, x) + t(c) p_{n-1}(x | c')) / (n(c) + t(c)), where t(c) is the number of different tokens after the
    context c, and c' the context without its first token; p_0 is uniform. Source: Witten and Bell 1991, method C.

    Args:
        size: of the vocabulary, at least 1. order: tokens of an n-gram, at least 1.
    """

    def __init__(self, size: int, *, order: int = ORDER) -> None:
        self.size, self.order = size, order
        self.seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.totals: Counter[tuple[int, ...]] = Counter()

    def add(self, pieces: Sequence[np.ndarray]) -> "TokenNgrams":
        """Counts the n-grams of pieces, each int [tokens]; can be called several times."""
        for piece in pieces:
            ids = piece.tolist()
            for at, token in enumerate(ids):
                for length in range(min(at, self.order - 1) + 1):
                    context = tuple(ids[at - length : at])
                    self.seen[context][token] += 1
                    self.totals[context] += 1
        return self

    def nats(self, piece: np.ndarray) -> np.ndarray:
        """Returns -ln p of each token of a piece given those before it, float64 [tokens]."""
        ids, found = piece.tolist(), np.zeros(len(piece))
        for at, token in enumerate(ids):
            chance = 1.0 / self.size
            for length in range(min(at, self.order - 1) + 1):
                context = tuple(ids[at - length : at])
                if not (total := self.totals[context]):
                    break
                after = self.seen[context]
                chance = (after[token] + len(after) * chance) / (total + len(after))
            found[at] = -np.log(chance)
        return found
