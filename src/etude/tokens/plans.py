"""A plan in front of a REMI sequence: one Form token for each bar, and at each bar the bar's Form token once more.

    Form_1 Form_2 Form_1 Form_3   Bar Form_1 TimeSig ...  Bar Form_2 TimeSig ...  Bar Form_1 TimeSig ...  Bar Form_3 TimeSig ...

Bars with the same Form token are alike, see `etude.music.form`: so the token at a bar says which earlier bars it may copy.
Numbers follow the order of first appearance; Form_0 stands for a bar without a letter. The plan of the beginning of a piece is
the beginning of its plan, so that a plan can be continued.
"""

import numpy as np

from etude.music.form import LETTERS, bar_letters, shared_onsets
from etude.tokens.miditok_timeline import last
from etude.tokens.miditok_vocabulary import BAR, FORM, PITCH, POSITION, TIME_SIG, TokenTable

FORM_TOKENS = tuple(f"Form_{number}" for number in range(len(LETTERS) + 1))
UNITS_PER_CELL = 4  # a cell of the comparison is a twelfth of a quarter
TICKS_PER_UNIT = 10  # at 480 ticks to a quarter


def letters_of(ids: np.ndarray, table: TokenTable) -> tuple[int, ...]:
    """Returns the number of the letter of each bar, from the notes of base ids."""
    kind, number = table.kind[ids], table.number[ids]
    denominator = last(table.denominator[ids], kind == TIME_SIG, 4)
    position = last(np.where(kind == POSITION, number * 16 // denominator, 0), (kind == POSITION) | (kind == BAR), 0)
    notes = kind == PITCH
    bar = (np.cumsum(kind == BAR) - 1)[notes]
    cell = (position[notes] + UNITS_PER_CELL // 2) // UNITS_PER_CELL * 12 + number[notes] % 12
    return bar_letters(shared_onsets(bar, cell, num_bars=int((kind == BAR).sum())))


def with_plan(ids: np.ndarray, table: TokenTable, *, plan: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns base ids with a plan, int32.

    ids: without one. plan: begins with the letters of the bars, and may go on; None for the letters of the notes.
    """
    plan = letters_of(ids, table) if plan is None else plan
    tokens = table.of_kind[FORM][list(plan)].astype(np.int32)
    bars = np.flatnonzero(table.kind[ids] == BAR)
    return np.concatenate([tokens, np.insert(np.asarray(ids, np.int32), bars + 1, tokens[: len(bars)])])


def without_plan(ids: np.ndarray, table: TokenTable) -> np.ndarray:
    """Returns the ids without Form tokens."""
    ids = np.asarray(ids)
    kept: np.ndarray = ids[table.kind[ids] != FORM]
    return kept


def plan_of(ids: np.ndarray, table: TokenTable) -> tuple[int, ...]:
    """Returns the plan in front of base ids: the number of each bar's letter; empty if there is none."""
    kind = table.kind[ids]
    bars = np.flatnonzero(kind == BAR)
    front = np.asarray(ids)[: bars[0] if len(bars) else len(ids)]
    return tuple(table.number[front][table.kind[front] == FORM].tolist())


def written_letters(ids: np.ndarray, table: TokenTable) -> tuple[tuple[int, ...], list[int]]:
    """Returns the letters that stand at the bars of base ids, and the ticks at which these bars begin."""
    kind = table.kind[ids]
    bars = np.flatnonzero(kind == BAR)
    marked = bars[np.append(kind, 0)[bars + 1] == FORM]
    length = last(table.units[ids], kind == TIME_SIG, 0)  # a bar's own TimeSig stands behind its Bar token
    ends = length[np.append(bars[1:], len(ids)) - 1] * TICKS_PER_UNIT if len(bars) else length
    starts = np.cumsum(ends) - ends
    return tuple(table.number[ids][marked + 1].tolist()), starts[np.isin(bars, marked)].tolist()
