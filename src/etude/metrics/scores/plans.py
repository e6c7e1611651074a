"""Whether a piece keeps to a plan of its bars, read off its notes alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.similarity import bars_of
from etude.music.form import NONE, alike, shared_onsets


class Agreement(NamedTuple):
    """Pairs of bars of a piece beside its plan.

    same, different: pairs with the same letter in the plan, and with different ones. same_alike, different_alike: how many of
    them are alike in the notes.
    """

    same: int
    same_alike: int
    different: int
    different_alike: int

    @property
    def kept(self) -> float:
        """The share of the pairs with the same letter that are alike, 0..1; NaN without any."""
        return self.same_alike / self.same if self.same else float("nan")

    @property
    def strayed(self) -> float:
        """The share of the pairs with different letters that are alike, 0..1; NaN without any."""
        return self.different_alike / self.different if self.different else float("nan")

    @property
    def rand_index(self) -> float:
        """The share of all pairs on which plan and notes agree, 0..1; NaN without pairs. Source: Rand 1971."""
        pairs = self.same + self.different
        return (self.same_alike + self.different - self.different_alike) / pairs if pairs else float("nan")


def bar_similarities(notes: NoteArray, *, num_bars: int) -> NDArray[np.float64]:
    """Returns `etude.music.form.shared_onsets` of the first bars of a piece, silent ones included: [num_bars, num_bars]."""
    notes, bar, position = bars_of(notes.pitched)
    inside = bar < num_bars
    cell = position * 12 + notes.pitch % 12
    return shared_onsets(bar[inside], cell[inside], num_bars=num_bars)


def agreement(plan: Sequence[int], shared: NDArray[np.float64], *, first: int = 0) -> Agreement:
    """Compares a plan with the notes.

    Args:
        plan: the number of each bar's letter; bars with `NONE` are left out.
        shared: of as many bars, see `bar_similarities`.
        first: only pairs whose later bar is this one or a later one count, as behind a prompt.
    """
    letters, close = np.asarray(plan, dtype=np.int64), alike(shared)
    earlier, later = np.triu_indices(len(letters), 1)
    counted = (letters[earlier] != NONE) & (letters[later] != NONE) & (later >= first)
    earlier, later = earlier[counted], later[counted]
    same, near = letters[earlier] == letters[later], close[earlier, later]
    return Agreement(int(same.sum()), int((same & near).sum()), int((~same).sum()), int((~same & near).sum()))
