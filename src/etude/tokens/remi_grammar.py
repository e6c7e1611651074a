"""The grammar of REMI sequences."""

import numpy as np

from etude.tokens.grammar import CLOSED, EOS, UNLIMITED, Grammar, State, bars_after, frozen
from etude.tokens.miditok_timeline import VOICED
from etude.tokens.miditok_vocabulary import (
    AHEAD,
    BACK,
    BAR,
    DRUMS,
    DURATION,
    NONE,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    TEMPO,
    TIME_SIG,
    VELOCITY,
    TokenTable,
    position_feature,
)

NO_PROGRAM = -2


class RemiGrammar(Grammar):
    """Bar, TimeSig, then positions that increase within the bar, each with an optional Tempo and notes.

    A note is [Program [Part]] Pitch Velocity Duration, with the program where it changes or always, as the tokenizer is set.
    Ahead and Back (see `infilling`) are never allowed, but `step` follows them: after either, the next note names its program.
    With a fixed number of bars, one more Bar token after the last bar is allowed and ends the piece: EOS must follow, and
    decoding ignores it. So a model that would continue ends the piece instead of adding notes to its last bar.

    State: (kind of the last token, position in the bar or -1, positions per bar, denominator, program or NO_PROGRAM,
    bars left, whether there was a note, family).
    """

    feature_names = ("position", "voice")

    def __init__(self, table: TokenTable, *, program_changes: bool) -> None:
        self._table, self._program_changes = table, program_changes
        self.vocab_size = table.size
        self._masks: dict[tuple[int, ...], np.ndarray] = {}
        self._kind, self._number = table.kind.tolist(), table.number.tolist()
        self._denominator, self._family = table.denominator.tolist(), table.family.tolist()

    def start(self, num_bars: int) -> State:
        return (NONE, -1, 48, 4, NO_PROGRAM, num_bars, False, 0)

    def step(self, state: State, token: int) -> State:
        before, position, size, denominator, program, left, heard, family = state
        kind = self._kind[token]
        if kind == BAR:
            if before in (PROGRAM, PART):  # the programs behind Back
                program = NO_PROGRAM
            return (BAR, -1, size, denominator, program, bars_after(left, 1), heard, family)
        if kind == POSITION:
            position = self._number[token]
        elif kind == TIME_SIG:
            size, denominator = 12 * self._number[token], self._denominator[token]
        elif kind == PROGRAM:
            program, family = self._number[token], self._family[token]
        elif kind in (AHEAD, BACK):
            program = NO_PROGRAM
        elif kind == DURATION:
            heard = True
            if not self._program_changes:
                program = NO_PROGRAM
        return (kind, position, size, denominator, program, left, heard, family)

    def key(self, state: State) -> tuple[int, int, int, int, bool, int]:
        kind, position, size, _, program, left, heard, _ = state
        drums = program if program < 0 else 0  # which pitches may follow
        return (kind, position, size, drums, heard, min(left, 1))

    def mask(self, state: State) -> np.ndarray:
        key = self.key(state)
        if key not in self._masks:
            self._masks[key] = frozen(self._build(*key))
        return self._masks[key]

    def _build(self, kind: int, position: int, size: int, drums: int, heard: bool, left: int) -> np.ndarray:
        table = self._table
        if left == CLOSED:
            mask = table.mask()
            mask[EOS] = True
            return mask
        if kind in (NONE, AHEAD, BACK):
            return table.mask(BAR)
        if kind == BAR:
            return table.mask(TIME_SIG)
        if kind in (PITCH, PITCH_DRUM):
            return table.mask(VELOCITY)
        if kind == VELOCITY:
            return table.mask(DURATION)
        pitches = () if drums == NO_PROGRAM else (PITCH_DRUM,) if drums == DRUMS else (PITCH,)
        if kind == PROGRAM:
            return table.mask(*pitches, *(() if drums == DRUMS else (PART,)))
        if kind == PART:
            return table.mask(*pitches)
        if kind == POSITION:
            return table.mask(TEMPO, PROGRAM, *pitches)
        mask = table.mask(*(() if kind == TIME_SIG else (PROGRAM, *pitches)), *((BAR,) if left or heard else ()))
        positions = table.of_kind[POSITION]
        numbers = table.number[positions]
        mask[positions[(numbers > position) & (numbers < size)]] = True
        mask[EOS] = heard and left in (0, UNLIMITED)
        return mask

    def features(self, state: State) -> tuple[int, ...]:
        kind, position, _, denominator, _, _, _, family = state
        return (position_feature(max(position, 0) * 16 // denominator), family if kind in VOICED else 0)
