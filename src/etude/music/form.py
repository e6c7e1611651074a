"""Form: which bars and sections of a piece come back, as letters in the order of their first appearance.

Two bars are alike if the cosine similarity of their onsets, counted at each (position, pitch class), is at least `ALIKE`; this is
the measure of `etude.metrics.scores.similarity.self_similarity_matrix`. So letters stay the same when a whole piece is
transposed, and octaves don't matter; a bar that comes back on another degree is another bar. Drums have no say.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from symusic import Score, TextMeta

LETTERS = string.ascii_uppercase + string.ascii_lowercase  # of the numbers 1 to 52
NONE = 0  # the number of a bar without a letter
BLANK = "-"  # how it is shown
ALIKE = Fraction(4, 5)  # of eight notes one may differ, of four none
DEFAULT_BARS = 8  # of a section that is asked for
MARK = "plan: "  # begins the marker of a bar's letter in a score


@dataclass(frozen=True)
class Form:
    """A form that is asked for.

    sections: a letter for each section, equal ones for sections that are alike. bars: of each section.
    """

    sections: str
    bars: int

    @property
    def num_bars(self) -> int:
        """The bars of all sections."""
        return len(self.sections) * self.bars

    @property
    def num_letters(self) -> int:
        """The most bars that may differ."""
        return len(set(self.sections)) * self.bars

    def source(self, bar: int) -> int:
        """The first bar that a bar has to be like, itself if its section is the first of its letter."""
        return self.sections.index(self.sections[bar // self.bars]) * self.bars + bar % self.bars

    def start(self, bar: int) -> int:
        """The first bar of a bar's section."""
        return bar - bar % self.bars

    def __str__(self) -> str:
        return f"{self.sections}, {self.bars} bars each" if self.bars != 1 else f"{self.sections}, a bar each"


def parse_form(text: object, *, bars: object = None, num_bars: int | None = None) -> Form:
    """Reads a form such as AABA.

    Args:
        bars: of a section; None for `num_bars` divided by the sections or, without `num_bars`, 8.
        num_bars: the length that is asked for, None if none is.

    Raises:
        ValueError: no letters, bars that are no whole number above 0, or another length than the one that is asked for.
    """
    sections = text.upper() if isinstance(text, str) else ""  # form=true is no form
    if not sections or any(letter not in string.ascii_uppercase for letter in sections):
        raise ValueError(f"form={text} can't be read; write one letter for each section, such as form=AABA")
    if bars is None and num_bars is not None:
        if num_bars % len(sections):
            raise ValueError(
                f"form={text} has {len(sections)} sections, which can't share num_bars={num_bars} evenly; give a multiple of "
                f"{len(sections)}, or form_bars=8 without num_bars"
            )
        bars = num_bars // len(sections)
    bars = DEFAULT_BARS if bars is None else bars
    if not isinstance(bars, int) or isinstance(bars, bool) or bars < 1:
        raise ValueError(f"form_bars is {bars}; give the bars of a section, a whole number above 0, such as form_bars=8")
    form = Form(sections, bars)
    if num_bars is not None and num_bars != form.num_bars:
        raise ValueError(
            f"form={text} with form_bars={bars} takes {form.num_bars} bars, num_bars={num_bars} asks for "
            f"{'fewer' if num_bars < form.num_bars else 'more'}; leave num_bars out, or give another form or form_bars"
        )
    if form.num_letters > len(LETTERS):
        raise ValueError(
            f"form={text} with form_bars={bars} has {form.num_letters} different bars, a plan has letters for {len(LETTERS)}; "
            "give fewer different sections, or a smaller form_bars"
        )
    return form


def shared_onsets(bar: np.ndarray, cell: np.ndarray, *, num_bars: int) -> NDArray[np.float64]:
    """Returns the dot products of the bars' counts of onsets, [num_bars, num_bars]: whole numbers.

    bar, cell: of each note [n]; a cell stands for a position in the bar and a pitch class.
    """
    cells, column = np.unique(cell, return_inverse=True)
    counts = np.zeros((num_bars, len(cells)))
    np.add.at(counts, (bar, column), 1.0)
    shared: NDArray[np.float64] = counts @ counts.T
    return shared


def alike(shared: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which bars are alike, bool [bars, bars], from `shared_onsets`, exactly; silent bars are like none."""
    size = np.diag(shared)
    least = ALIKE.numerator**2 * np.outer(size, size)
    return (ALIKE.denominator**2 * shared**2 >= least) & (least > 0)


def bar_letters(shared: NDArray[np.float64]) -> tuple[int, ...]:
    """Returns the number of each bar's letter, from 1 on in the order of first appearance, from `shared_onsets`.

    A bar has the letter of the earlier letter's first bar that it is most like, if it is alike; else a new one. Silent bars, and
    new ones beyond the 52nd letter, have `NONE`. The letters of a piece begin with those of its beginning.
    """
    close, size = alike(shared), np.diag(shared)
    firsts: list[int] = []
    found: list[int] = []
    for bar in range(len(shared)):
        near = [
            (Fraction(int(shared[bar, first]) ** 2, int(size[first])), -i) for i, first in enumerate(firsts) if close[bar, first]
        ]
        if near:
            found.append(1 - max(near)[1])
        elif size[bar] > 0 and len(firsts) < len(LETTERS):
            firsts.append(bar)
            found.append(len(firsts))
        else:
            found.append(NONE)
    return tuple(found)


def section_letters(shared: NDArray[np.float64], *, bars: int) -> str:
    """Returns a letter for each section of so many bars, from `shared_onsets`; a last, shorter section is left out.

    The similarity of two sections is the mean of the cosines of their bars in order; two silent bars have 1.
    """
    size = np.sqrt(np.diag(shared))
    norms = np.outer(size, size)
    cosine = np.where(norms > 0, shared / np.where(norms > 0, norms, 1.0), np.equal.outer(size, size))
    firsts: list[int] = []
    found = []
    for start in range(0, len(shared) - bars + 1, bars):
        near = [(float(np.mean([cosine[start + i, first + i] for i in range(bars)])), -n) for n, first in enumerate(firsts)]
        best = max(near, default=(0.0, 0))
        if best[0] >= float(ALIKE) - 1e-9:
            found.append(-best[1])
        else:
            firsts.append(start)
            found.append(len(firsts) - 1)
    return "".join(LETTERS[number] if number < len(LETTERS) else BLANK for number in found)


def shown(letters: Sequence[int]) -> str:
    """Returns the numbers of letters as text."""
    return "".join(LETTERS[number - 1] if number else BLANK for number in letters)


def mark_plan(score: Score, letters: Sequence[int], ticks: Sequence[int]) -> None:
    """Writes a marker with its letter at each bar. ticks: at which the bars begin; there may be fewer than letters."""
    for tick, letter in zip(ticks, shown(letters), strict=False):
        score.markers.append(TextMeta(int(tick), MARK + letter))


def copy_plan(source: Score, target: Score) -> None:
    """Gives a score the letters of another, in place of its own; its other markers stay."""
    kept = [mark for mark in target.markers if not mark.text.startswith(MARK)]
    new = [
        TextMeta(mark.time * target.ticks_per_quarter // source.ticks_per_quarter, mark.text)
        for mark in source.markers if mark.text.startswith(MARK)
    ]  # fmt: skip
    target.markers = sorted([*kept, *new], key=lambda mark: mark.time)


def marked_plan(score: Score) -> tuple[int, ...]:
    """Returns the numbers of the letters that `mark_plan` wrote; empty if none."""
    marks = sorted((mark.time, mark.text.removeprefix(MARK)) for mark in score.markers if mark.text.startswith(MARK))
    return tuple(1 + LETTERS.find(letter) if letter != BLANK else NONE for _, letter in marks)
