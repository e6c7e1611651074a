"""The grammar of flattened Octuple sequences."""

from collections.abc import Hashable

import numpy as np

from etude.tokens.grammar import EOS, UNLIMITED, Grammar, State, frozen
from etude.tokens.miditok_timeline import VOICED
from etude.tokens.miditok_vocabulary import (
    BAR,
    DRUMS,
    DURATION,
    NONE,
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

FIELDS = (BAR, TIME_SIG, TEMPO, POSITION, PROGRAM, PITCH, VELOCITY, DURATION)  # the order within a note
NAMES = ("Bar", "TimeSig", "Tempo", "Position", "Program", "Pitch", "Velocity", "Duration")


class OctupleGrammar(Grammar):
    """Eight fields per note; bars never decrease, nor positions within a bar; the metre changes only with the bar.

    With a fixed number of bars n, Bar_n ends the piece: EOS must follow, and decoding drops this incomplete note.

    State: (index of the next field, bar, TimeSig token, positions per bar, denominator, position, whether the bar is
    that of the previous note, program, number of bars or UNLIMITED, whether there was a note, kind of the last token,
    family).
    """

    feature_names = ("position", "voice")

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self.vocab_size = table.size
        self._masks: dict[tuple[object, ...], np.ndarray] = {}
        self._kind, self._number = table.kind.tolist(), table.number.tolist()
        self._denominator, self._family = table.denominator.tolist(), table.family.tolist()
        self._max_bars = len(table.of_kind[BAR])

    def start(self, num_bars: int) -> State:
        if num_bars > self._max_bars:
            raise ValueError(f"num_bars is {num_bars}, this tokenizer holds up to {self._max_bars}; give fewer bars")
        return (0, -1, -1, 0, 4, 0, False, 0, num_bars, False, NONE, 0)

    def step(self, state: State, token: int) -> State:
        field, bar, sig, size, denominator, position, same, program, limit, heard, _, family = state
        kind, number = self._kind[token], self._number[token]
        if kind == BAR:
            same, bar = number == bar, number
        elif kind == TIME_SIG:
            sig, size, denominator = token, 12 * number, self._denominator[token]
        elif kind == POSITION:
            position = number
        elif kind == PROGRAM:
            program, family = number, self._family[token]
        heard = heard or kind == DURATION
        return ((field + 1) % 8, bar, sig, size, denominator, position, same, program, limit, heard, kind, family)

    def key(self, state: State) -> Hashable:
        return (*state[:4], *state[5:7], state[7] == DRUMS, *state[8:10])

    def mask(self, state: State) -> np.ndarray:
        field, bar, sig, size, _, position, same, program, limit, heard, _, _ = state
        kind = FIELDS[field]
        key: tuple[object, ...]
        if field == 0:
            key = (kind, bar, limit, heard)
        elif kind == TIME_SIG:
            key = (kind, sig if same else -1, bar == limit)
        elif kind == POSITION:
            key = (kind, size, position if same else 0)
        else:
            key = (kind, program == DRUMS) if kind == PITCH else (kind,)
        if key not in self._masks:
            self._masks[key] = frozen(self._build(*key))
        return self._masks[key]

    def _build(self, kind: int, *args: int) -> np.ndarray:
        table = self._table
        if kind == BAR:
            bar, limit, heard = args
            mask, bars = table.mask(), table.of_kind[BAR]
            numbers = table.number[bars]
            last_bar = bool(heard) and bar == limit - 1
            mask[bars] = (numbers >= bar) & ((limit == UNLIMITED) | (numbers < limit + last_bar))
            mask[EOS] = last_bar or (bool(heard) and limit == UNLIMITED)
            return mask
        if kind == TIME_SIG:
            sig, closed = args
            mask = table.mask() if closed or sig >= 0 else table.mask(TIME_SIG)
            if closed:
                mask[EOS] = True
            elif sig >= 0:
                mask[sig] = True
            return mask
        if kind == POSITION:
            size, position = args
            mask, positions = table.mask(), table.of_kind[POSITION]
            numbers = table.number[positions]
            mask[positions] = (numbers >= position) & (numbers < size)
            return mask
        if kind == PITCH:
            return table.mask(PITCH_DRUM if args[0] else PITCH)
        return table.mask(kind)

    def features(self, state: State) -> tuple[int, ...]:
        _, _, _, _, denominator, position, _, _, _, _, kind, family = state
        units = 0 if kind in (BAR, TIME_SIG, TEMPO) else position * 16 // denominator
        return (position_feature(units), family if kind in VOICED else 0)
