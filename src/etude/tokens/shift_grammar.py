"""The grammar of TSD and MIDILike sequences."""

from collections.abc import Hashable

import numpy as np

from etude.tokens.grammar import CLOSED, EOS, UNLIMITED, Grammar, State, bars_after, frozen
from etude.tokens.miditok_timeline import VOICED
from etude.tokens.miditok_vocabulary import (
    DRUM_OFF,
    DRUM_ON,
    DRUMS,
    DURATION,
    NONE,
    NOTE_OFF,
    NOTE_ON,
    PITCH,
    PITCH_DRUM,
    PROGRAM,
    TEMPO,
    TIME_SHIFT,
    TIME_SIG,
    UNITS_PER_QUARTER,
    VELOCITY,
    TokenTable,
    position_feature,
)
from etude.tokens.remi_grammar import NO_PROGRAM

PITCHED_STARTS, DRUM_STARTS = (PITCH, NOTE_ON), (PITCH_DRUM, DRUM_ON)
STARTS = (*PITCHED_STARTS, *DRUM_STARTS)
Counts = dict[int, int]  # program * 128 + pitch -> number of sounding notes


class ShiftGrammar(Grammar):
    """A TimeSig first, later ones only at bar lines; between time shifts an optional Tempo, then notes.

    In MIDILike a NoteOff is allowed only for a note of an earlier time, and EOS only when no note sounds, so that every note
    has an end and a duration above 0. With a fixed number of bars, the shift that reaches the end of the last bar ends the
    piece: sounding notes may end, then EOS must follow.

    State: (kind of the last token, units since the start of the bar, units per bar, denominator, program or NO_PROGRAM, bars
    left, whether there was a note, family, sounding notes, those of them that began after the last shift).
    """

    feature_names = ("position", "voice")

    def __init__(self, table: TokenTable, *, program_changes: bool) -> None:
        self._table, self._program_changes = table, program_changes
        self.vocab_size = table.size
        self._masks: dict[tuple[object, ...], np.ndarray] = {}
        self._kind, self._number = table.kind.tolist(), table.number.tolist()
        self._units, self._denominator = table.units.tolist(), table.denominator.tolist()
        self._family = table.family.tolist()
        self._program_id = {self._number[i]: i for i in table.of_kind[PROGRAM].tolist()}
        self._off_id = {(kind, self._number[i]): i for kind in (NOTE_OFF, DRUM_OFF) for i in table.of_kind[kind].tolist()}

    def start(self, num_bars: int) -> State:
        return (NONE, 0, 4 * UNITS_PER_QUARTER, 4, NO_PROGRAM, num_bars, False, 0, {}, {})

    def step(self, state: State, token: int) -> State:
        previous, units, length, denominator, program, left, heard, family, on, fresh = state
        kind = self._kind[token]
        if kind == TIME_SHIFT:
            bars, units = divmod(units + self._units[token] * 16 // denominator, length)
            left, fresh = bars_after(left, bars), {}
        elif kind == TIME_SIG:
            length, denominator = self._units[token], self._denominator[token]
            left = bars_after(left, 1) if previous == NONE else left
        elif kind == PROGRAM:
            program, family = self._number[token], self._family[token]
        elif kind in (NOTE_ON, DRUM_ON):
            note = program * 128 + self._number[token]
            on, fresh = {**on, note: on.get(note, 0) + 1}, {**fresh, note: fresh.get(note, 0) + 1}
        elif kind in (NOTE_OFF, DRUM_OFF):
            note = program * 128 + self._number[token]
            on = {key: count - (key == note) for key, count in on.items() if key != note or count > 1}
        elif kind == VELOCITY:
            heard = True
        ends_note = kind in (DURATION, NOTE_OFF, DRUM_OFF) or previous in (NOTE_ON, DRUM_ON)
        if ends_note and not self._program_changes:
            program = NO_PROGRAM
        return (kind, units, length, denominator, program, left, heard, family, on, fresh)

    def key(self, state: State) -> Hashable:
        kind, units, length, denominator, program, left, heard, _, on, fresh = state
        notes = (frozenset(on.items()), frozenset(fresh.items()))
        return (kind, units, length, denominator, program if on else min(program, 0), left, heard, *notes)

    def mask(self, state: State) -> np.ndarray:
        kind, units, length, denominator, program, left, heard, _, on, fresh = state
        drums = program if program < 0 else 0
        can_end = heard and not on and left in (0, CLOSED, UNLIMITED)
        room = 0 if heard or left == UNLIMITED else ((left + 1) * length - units) * denominator // 16
        key = (kind, kind == TIME_SHIFT and units == 0, drums, can_end, left == CLOSED, room)
        if key not in self._masks:
            self._masks[key] = frozen(self._build(*key))
        mask = self._masks[key]
        if on and kind not in (NOTE_ON, DRUM_ON):
            return self._with_offs(mask, program, on, fresh, closed=left == CLOSED, after_program=kind == PROGRAM)
        return mask

    def _build(self, kind: int, at_bar: bool, drums: int, can_end: bool, closed: bool, room: int) -> np.ndarray:
        table = self._table
        if closed:
            mask = table.mask()
            mask[EOS] = can_end
            return mask
        if kind == NONE:
            return table.mask(TIME_SIG)
        if kind in STARTS:
            return table.mask(VELOCITY)
        if kind == VELOCITY and len(table.of_kind[DURATION]):
            return table.mask(DURATION)
        notes = () if drums == NO_PROGRAM else DRUM_STARTS if drums == DRUMS else PITCHED_STARTS
        if kind == PROGRAM:
            return table.mask(*notes)
        mask = table.mask(PROGRAM, TIME_SHIFT, *notes)
        if room:
            shifts = table.of_kind[TIME_SHIFT]
            mask[shifts[table.units[shifts] >= room]] = False
        if kind in (TIME_SHIFT, TIME_SIG):
            mask |= table.mask(TEMPO)
        if at_bar:
            mask |= table.mask(TIME_SIG)
        mask[EOS] = can_end and kind != TIME_SHIFT  # a metre may change while the last note rings
        return mask

    def _with_offs(
        self, mask: np.ndarray, program: int, on: Counts, fresh: Counts, *, closed: bool, after_program: bool
    ) -> np.ndarray:
        mask = mask.copy()
        for note, count in on.items():
            if count > fresh.get(note, 0):
                owner, pitch = divmod(note, 128)
                if owner == program:
                    mask[self._off_id[DRUM_OFF if owner == DRUMS else NOTE_OFF, pitch]] = True
                elif closed and not after_program:
                    mask[self._program_id[owner]] = True
        return mask

    def features(self, state: State) -> tuple[int, ...]:
        kind, units, family = state[0], state[1], state[7]
        return (position_feature(units), family if kind in VOICED else 0)
