"""Describes the training pieces of a datamodule of scores: their labels, and what the tokenizer changes in them."""

from collections import Counter

import numpy as np
import pyarrow as pa
from symusic import Score

from etude.data.scores.documents import TEMPO_STEPS, Augmentation
from etude.data.scores.view import View
from etude.tokens.changes import lost
from etude.tokens.requests import control_values
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import Tokenizer
from etude.wording import counted

NOTES = ("lose drums", "have repeated notes joined or notes left out", "have notes moved in time or pitch")
PIECES = 40  # number of pieces that are compared; all of a corpus would take minutes


class AboutTraining:
    """Methods of a datamodule that describe its training pieces.

    The datamodule must define `tokenizer`, `view`, `score`, `manifest`, `controls` and `augmentation`.
    """

    controls: tuple[str, ...]
    augmentation: Augmentation

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the pieces."""
        raise TypeError(f"{type(self).__name__} must define tokenizer")

    def view(self, split: str) -> View:
        """The tokenised pieces of one split."""
        raise TypeError(f"{type(self).__name__} must define view(split)")

    def score(self, split: str, index: int) -> Score:
        """The score of row `index` of the split's manifest."""
        raise TypeError(f"{type(self).__name__} must define score(split, index)")

    def manifest(self, split: str | None = None) -> pa.Table:
        """The manifest of one split."""
        raise TypeError(f"{type(self).__name__} must define manifest(split)")

    def changed_pieces(self, most: int = PIECES) -> list[tuple[str, dict[str, int]]]:
        """Compares training pieces with what the tokenizer makes of them.

        most: the largest number of pieces that are compared, evenly spaced from the first to the last.

        Returns: for each of them its name and what changes, as `tokens.changes.lost` describes it.
        """
        view, names = self.view("train"), self.manifest("train")["name"]
        chosen = np.unique(np.linspace(0, len(view) - 1, min(most, len(view))).round().astype(int))
        found = []
        for piece in chosen.tolist():
            row = int(view.table["row"][piece])
            found.append((names[row].as_py(), lost(self.score("train", row), self.tokenizer.decode(view.body(piece)))))
        return found

    def told_changes(self, found: list[tuple[str, dict[str, int]]]) -> str:
        """Returns the result of `changed_pieces` as one line of text; empty if the tokenizer changes nothing."""
        pieces, notes = Counter[str](), Counter[str]()
        for _, changes in found:
            pieces.update(changes.keys())
            notes.update(changes)
        if not pieces:
            return ""
        whole = len(self.view("train"))
        looked = f"the {whole}" if len(found) == whole else f"{len(found)} of the {whole}"
        parts = [
            f"{count} {_of(count, what)}" + (f" ({counted(notes[what], 'note')})" if what in NOTES else "")
            for what, count in pieces.most_common()
        ]
        remedy = "; tokenizer=remi keeps them" if isinstance(self.tokenizer, SatbGrid) else ""
        name = type(self.tokenizer).__name__
        return f"of {looked} training pieces, as the tokens of {name} hold them, {', '.join(parts)}{remedy}"

    def trained_labels(self) -> dict[str, list[str]]:
        """Returns the labels of the training pieces, each with its values, including those that augmentation makes."""
        tokenizer, augmentation = self.tokenizer, self.augmentation
        ids = np.unique(self.view("train").table["controls"])
        ids = ids[ids >= 0]
        if augmentation.transpose is not None:
            low, high = augmentation.transpose
            ids = np.unique([tokenizer.transposition(n)[ids] for n in range(low, high + 1)])
        if augmentation.tempo_scale is not None:
            slow, fast = augmentation.tempo_scale
            factors = slow * (fast / slow) ** (np.arange(TEMPO_STEPS) / (TEMPO_STEPS - 1))
            ids = np.unique([tokenizer.tempo_scaling(factor)[ids] for factor in factors.tolist()])
        values = control_values(tokenizer, ids.tolist())
        return {label: values[label] for label in self.controls}


def _of(count: int, what: str) -> str:
    """Returns what happens to pieces, such as `lose drums`, for one piece: `loses drums`."""
    verb, _, rest = what.partition(" ")
    return what if count > 1 else f"{'has' if verb == 'have' else f'{verb}s'} {rest}"
