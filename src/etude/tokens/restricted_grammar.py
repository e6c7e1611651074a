"""REMI with only some programs, metres and tempos, so that what is asked for is what comes out."""

from collections.abc import Hashable

import numpy as np

from etude.tokens.grammar import UNLIMITED, Grammar, State, frozen
from etude.tokens.miditok_vocabulary import BACK, BAR, DRUMS, PART, PITCH, PROGRAM, TEMPO, TIME_SIG, TokenTable
from etude.tokens.remi_grammar import NO_PROGRAM, RemiGrammar
from etude.tokens.restrictions import Restrictions


class RestrictedGrammar(Grammar):
    """The grammar of REMI within `Restrictions`.

    State: (state of REMI, body tokens so far up to `free`, bars begun since then, bars asked for).
    """

    def __init__(self, base: RemiGrammar, table: TokenTable, restrictions: Restrictions) -> None:
        self._base, self._table, self._restrictions = base, table, restrictions
        self.vocab_size, self.feature_names = base.vocab_size, base.feature_names
        self._anything = frozen(np.ones(table.size, dtype=bool))
        self._masks: dict[Hashable, np.ndarray] = {}
        self._banned = self._never()

    def _never(self) -> np.ndarray:
        """The tokens that are not allowed anywhere: programs without a track, and tempos."""
        banned = np.zeros(self._table.size, dtype=bool)
        wanted = self._restrictions
        if wanted.owners is not None:
            programs = {program for program, _ in wanted.owners}
            for token in self._table.of_kind[PROGRAM].tolist():
                banned[token] = int(self._table.number[token]) not in programs
        if wanted.tempos is not None:
            banned[self._table.of_kind[TEMPO]] = True
            banned[sorted(wanted.tempos)] = False
        return banned

    def start(self, num_bars: int) -> State:
        wanted = self._restrictions
        state = (self._base.start(UNLIMITED if wanted.hole else num_bars), 0, 0, num_bars)
        return self._entered(state) if wanted.free == 0 else state

    def _entered(self, state: State) -> State:
        """The state behind the prompt."""
        base, taken, bars, num_bars = state
        if self._restrictions.hole:
            _, position, size, denominator, _, _, _, family = base
            base = (
                BACK,
                position,
                size,
                denominator,
                NO_PROGRAM,
                num_bars,
                True,
                family,
            )  # the programs behind Back play nothing
        return (base, taken, bars, num_bars)

    def step(self, state: State, token: int) -> State:
        base, taken, bars, num_bars = state
        base = self._base.step(base, token)
        if taken < self._restrictions.free:
            state = (base, taken + 1, bars, num_bars)
            return self._entered(state) if taken + 1 == self._restrictions.free else state
        begun = min(bars + int(base[0] == BAR), len(self._restrictions.metres))
        return (base, taken, begun, num_bars)

    def key(self, state: State) -> Hashable:
        base, taken, bars, _ = state
        open_program = base[4] if base[0] == PROGRAM else 0
        return (self._base.key(base), taken < self._restrictions.free, bars if base[0] == BAR else 0, open_program)

    def mask(self, state: State) -> np.ndarray:
        if state[1] < self._restrictions.free:
            return self._anything
        key = self.key(state)
        if key not in self._masks:
            self._masks[key] = frozen(self._build(state))
        return self._masks[key]

    def _build(self, state: State) -> np.ndarray:
        base, _, bars, _ = state
        mask: np.ndarray = self._base.mask(base) & ~self._banned
        wanted, kind = self._restrictions, base[0]
        if kind == BAR and wanted.metres and mask[self._table.of_kind[TIME_SIG]].any():  # not at the end, where only EOS is left
            only = np.zeros_like(mask)
            only[wanted.metres[bars - 1]] = True
            return only
        if kind == PROGRAM and wanted.owners is not None and base[4] != DRUMS:
            parts = {part for program, part in wanted.owners if program == base[4]}
            for token in self._table.of_kind[PART].tolist():
                mask[token] &= int(self._table.number[token]) in parts
            if 0 not in parts:
                mask[self._table.of_kind[PITCH]] = False
        return mask

    def features(self, state: State) -> tuple[int, ...]:
        return self._base.features(state[0])
