"""What a representation must beat: simple statistics of the pieces, without any training of networks.

Shapes: n pieces, v features, m mel bands, f frames.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from etude.evaluation.classes import bodies, ngram_features


@runtime_checkable
class HasTokens(Protocol):
    """A data module of scores."""

    def view(self, split: str) -> Any:
        """Returns the tokenised pieces of a split."""
        ...


def floor_features(data: Any, split: str, train: np.ndarray, held_out: np.ndarray) -> tuple[str, Any, Any]:
    """Returns the name of the floor, and its features of training and held-out pieces, given as rows of the manifest.

    Of scores these are n-grams of tokens; of audio mean and deviation of each band's log mels, and of their change, [n, 4 m].
    """
    if isinstance(data, HasTokens):
        return "n-grams", *ngram_features(bodies(data, "train", train), bodies(data, split, held_out))
    return "band statistics", _bands(data, "train", train), _bands(data, split, held_out)


def _bands(data: Any, split: str, rows: np.ndarray) -> np.ndarray:
    ends = np.cumsum([data.num_pieces(split, style) for style in data.styles])
    found = []
    for row in rows.tolist():
        style = int(np.searchsorted(ends, row, side="right"))
        mel_mf = data.log_mel(split, data.styles[style], row - (ends[style - 1] if style else 0)).double().numpy()
        change = np.diff(mel_mf, axis=1)
        found.append(np.concatenate([mel_mf.mean(1), mel_mf.std(1), change.mean(1), change.std(1)]))
    return np.stack(found)
