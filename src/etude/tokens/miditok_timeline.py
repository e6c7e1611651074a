"""Metrical positions, voices and bar lines of whole token sequences of MidiTok's schemes, vectorised."""

from collections.abc import Mapping

import numpy as np

from etude.tokens.miditok_vocabulary import (
    BAR,
    DRUM_OFF,
    DRUM_ON,
    DURATION,
    MAX_POSITIONS,
    NOTE_OFF,
    NOTE_ON,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    TIME_SHIFT,
    TIME_SIG,
    UNITS_PER_QUARTER,
    VELOCITY,
    TokenTable,
)

VOICED = (PROGRAM, PART, PITCH, PITCH_DRUM, NOTE_ON, DRUM_ON, NOTE_OFF, DRUM_OFF, VELOCITY, DURATION)


def last(values: np.ndarray, where: np.ndarray, initial: int) -> np.ndarray:
    """Returns for each index the value at the latest index up to it at which `where` is true, `initial` before the first."""
    index = np.maximum.accumulate(np.where(where, np.arange(len(values)), -1))
    return np.where(index >= 0, values[index], initial)


def features(ids: np.ndarray, table: TokenTable, *, by_shift: bool) -> dict[str, np.ndarray]:
    """Returns the features of base ids.

    position: 1 + twelfths of a quarter since the start of the bar. voice, for note tokens: 1 + program family, 17 for drums.

    Args:
        by_shift: time is given by TimeShift tokens (TSD, MIDILike), not by Bar and Position tokens (REMI, Octuple).
    """
    kind = table.kind[ids]
    if len(ids) == 0:
        return {"position": kind, "voice": kind}
    units = shift_time(ids, table)[0] if by_shift else _position_units(ids, table)
    position = np.minimum(units * 12 // UNITS_PER_QUARTER + 1, MAX_POSITIONS)
    program = last(table.family[ids], kind == PROGRAM, 0)
    return {"position": np.where(kind > 0, position, 0), "voice": np.where(np.isin(kind, VOICED), program, 0)}


def _position_units(ids: np.ndarray, table: TokenTable) -> np.ndarray:
    kind = table.kind[ids]
    denominator = last(table.denominator[ids], kind == TIME_SIG, 4)
    units = np.where(kind == POSITION, table.number[ids] * 16 // denominator, 0)
    return last(units, (kind == POSITION) | (kind == BAR), 0)


def shift_time(ids: np.ndarray, table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns the units since the start of the bar, and the index of the bar, after each token."""
    kind = table.kind[ids]
    is_sig = kind == TIME_SIG
    denominator = last(table.denominator[ids], is_sig, 4)
    length = last(table.units[ids], is_sig, 4 * UNITS_PER_QUARTER)
    tick = np.cumsum(np.where(kind == TIME_SHIFT, table.units[ids] * 16 // denominator, 0))
    since = tick - last(tick, is_sig, 0)
    marks = np.flatnonzero(is_sig)
    spans = np.diff(np.append(0, tick[marks]))
    lengths = np.append(4 * UNITS_PER_QUARTER, table.units[ids][marks])[:-1]
    before = np.zeros(len(ids), dtype=np.int64)
    before[marks] = np.cumsum(-(-spans // lengths))
    return since % length, last(before, is_sig, 0) + since // length


def bar_starts(ids: np.ndarray, table: TokenTable, *, by_shift: bool) -> np.ndarray:
    """Returns the indices at which bars begin: the Bar token, or the token after the TimeShift that reaches a bar line.

    With TimeShift tokens, bars without any token are left out.
    """
    kind = table.kind[ids]
    if by_shift:
        body = np.flatnonzero(kind > 0)
        if len(body) == 0:
            return body
        changed = np.flatnonzero(np.diff(shift_time(ids, table)[1], prepend=0)) + 1
        return np.append(body[:1], changed[changed < len(ids)])
    bars = np.flatnonzero(kind == BAR)
    numbers = table.number[ids][bars]
    return bars[np.append(True, np.diff(numbers) != 0)[: len(bars)] | (len(table.of_kind[BAR]) == 1)]


def missing_offs(body: np.ndarray, table: TokenTable, ids: Mapping[str, int]) -> list[int]:
    """Returns what ends the notes that a broken-off MIDILike sequence leaves on: a shift, then NoteOffs. ids: of the tokens."""
    kind, number = table.kind[body].tolist(), table.number[body].tolist()
    program = 0
    on: dict[tuple[int, int], int] = {}
    for k, n in zip(kind, number, strict=True):
        if k == PROGRAM:
            program = n
        elif k in (NOTE_ON, DRUM_ON):
            on[program, n] = on.get((program, n), 0) + 1
        elif k in (NOTE_OFF, DRUM_OFF):
            on[program, n] = on.get((program, n), 1) - 1
    ends: list[int] = []
    for (owner, pitch), count in on.items():
        name = f"DrumOff_{pitch}" if owner < 0 else f"NoteOff_{pitch}"
        ends += [ids[f"Program_{owner}"], ids[name]] * count
    return [int(table.of_kind[TIME_SHIFT][0]), *ends] if ends else []
