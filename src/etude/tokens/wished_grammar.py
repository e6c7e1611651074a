"""REMI within what is asked of its notes: chords, registers, simultaneous notes, notes in a bar."""

from collections.abc import Hashable
from functools import lru_cache
from typing import cast

import numpy as np

from etude.tokens.chord_rules import FOREVER, ChordRules, Pitches
from etude.tokens.grammar import EOS, Grammar, State, frozen
from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import (
    BAR,
    DRUMS,
    DURATION,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    VELOCITY,
    TokenTable,
)
from etude.tokens.note_limits import FULL, NoteLimits
from etude.tokens.remi_grammar import RemiGrammar
from etude.tokens.restricted_grammar import RestrictedGrammar
from etude.tokens.restrictions import Restrictions
from etude.tokens.wishes import Wishes
from etude.tokens.written import Written, follows

REMEMBERED = 512  # masks
CROWD = 6  # notes that begin together
ANYONE = (0, -1)  # a pitched track that has not played yet


class WishedGrammar(Grammar):
    """The grammar of REMI within `Restrictions` and `Wishes`. Its states are `Written`.

    A token is left out if it breaks a wish now, or leads where a wish must be broken: a position at which no note may begin, a
    program that may play none. Where wishes contradict each other, first those that ask for notes give way (bass notes, the
    fewest of a bar), then all: a sequence never gets stuck.
    """

    def __init__(self, inner: RestrictedGrammar, table: TokenTable, restrictions: Restrictions, wishes: Wishes) -> None:
        self._inner, self._table, self._restrictions, self._wishes = inner, table, restrictions, wishes
        self.vocab_size, self.feature_names = inner.vocab_size, inner.feature_names
        self._limits = NoteLimits(wishes, players=restrictions.owners)
        self._rules = None
        if wishes.progression is not None:
            self._rules = ChordRules(
                wishes.progression, key=wishes.scale, strict=wishes.strict, players=restrictions.owners,
                register=self._limits.register,
            )  # fmt: skip
        self._of_pitch = {int(table.number[i]): int(i) for i in table.of_kind[PITCH]}
        self._positions, self._durations = table.of_kind[POSITION], table.of_kind[DURATION]
        self._parts = [0, *table.number[table.of_kind[PART]].tolist()]
        self._tokens = lru_cache(maxsize=1024)(self._tokens_of)
        self._masks: dict[State, np.ndarray] = {}

    def start(self, num_bars: int) -> State:
        return Written(self._inner.start(num_bars), begun=(0,) * len(self._wishes.density))

    def step(self, state: State, token: int) -> State:
        before = cast(Written, state)
        free = before.inner[1] < self._restrictions.free
        inner = self._inner.step(before.inner, token)
        now = follows(before, token, inner, table=self._table, free=free, ranges=self._wishes.density)
        kind = self._table.kind[token]
        if kind == DURATION and before.owner is not None and self._rules is not None and not free:
            heard = dict(now.heard)
            passing = self._rules.is_passing(before, before.pitch)
            heard[before.owner] = heard[before.owner]._replace(passing=passing)
            now = now._replace(heard=tuple(sorted(heard.items())))
        if free and inner[1] == self._restrictions.free and self._restrictions.hole:  # what rings on is in other bars
            now = now._replace(sounding=(), here=(), begun=(0,) * len(self._wishes.density), part=0)
        return now

    def key(self, state: State) -> Hashable:
        now = cast(Written, state)
        return (self._inner.key(now.inner), *now[1:])

    def features(self, state: State) -> tuple[int, ...]:
        return self._inner.features(cast(Written, state).inner)

    def mask(self, state: State) -> np.ndarray:
        if state not in self._masks:
            if len(self._masks) >= REMEMBERED:
                self._masks.clear()
            self._masks[state] = frozen(self._build(cast(Written, state)))
        return self._masks[state]

    def _build(self, now: Written) -> np.ndarray:
        mask = self._inner.mask(now.inner)
        kind = now.inner[0][0]
        if now.inner[1] < self._restrictions.free or kind in (BAR, PITCH, PITCH_DRUM) or not self._wish_matters(mask):
            return mask.copy()
        if kind == VELOCITY:
            return self._shortened(now, mask)
        possible = self._with_notes(now, mask)
        late, ends = self._owed(now)
        for wished in (possible & ~late & ~ends, possible & ~ends, possible):
            if wished.any():
                return wished
        return mask.copy()

    def _wish_matters(self, mask: np.ndarray) -> bool:
        """Whether anything but the end, a first bar or a metre may follow."""
        return bool(mask[self._positions].any() or mask[self._durations].any() or mask[self._table.of_kind[PITCH]].any()
                    or mask[self._table.of_kind[PITCH_DRUM]].any() or mask[self._table.of_kind[PROGRAM]].any())  # fmt: skip

    def _shortened(self, now: Written, mask: np.ndarray) -> np.ndarray:
        """The durations that a note may have."""
        owner = now.owner
        assert owner is not None  # a note names its program
        longest = self._limits.longest(now, owner)
        if self._rules is not None:
            longest = min(longest, self._rules.longest(now, owner))
            bass = self._writing_bass(now)
            onset = self._rules.next_onset(now)
            if bass is not None and onset is not None and self._limits.crosses(now, bass, owner, onset):
                longest = min(longest, onset - now.position)
        if longest >= FOREVER:
            return mask.copy()
        short: np.ndarray = mask & (self._table.units <= max(1, longest))
        return short if short.any() else mask.copy()

    # --- which notes may begin ---

    def _with_notes(self, now: Written, mask: np.ndarray) -> np.ndarray:
        """The mask without notes, programs and positions that no note may follow."""
        found, table = mask.copy(), self._table
        if now.owner is not None and (mask[table.of_kind[PITCH]].any() or mask[table.of_kind[PITCH_DRUM]].any()):
            found[table.of_kind[PITCH]] &= self._pitches(now, now.owner)[table.of_kind[PITCH]]
            found[table.of_kind[PITCH_DRUM]] &= self._may_begin(now, now.owner)
        if now.inner[0][0] == PROGRAM and now.owner is not None:
            for token in table.of_kind[PART].tolist():
                found[token] &= self._pitches(now, (now.owner[0], int(table.number[token]))).any()
        elif mask[table.of_kind[PROGRAM]].any():
            found[table.of_kind[PROGRAM]] &= self._programs(now)
        if mask[self._positions].any():
            found[self._positions] &= self._starts(now)
        return found

    def _players(self) -> list[Owner]:
        """The tracks that may play; where any may, one stands for all pitched ones."""
        owners = self._restrictions.owners
        return [ANYONE, (DRUMS, 0)] if owners is None else sorted(owners)

    def _may_begin(self, now: Written, owner: Owner) -> bool:
        if self._limits.free_from(now, owner) > now.position or self._limits.waits(now, owner):
            return False
        return not self._kept(now, owner)

    def _kept(self, now: Written, owner: Owner) -> bool:
        """Whether a track has to leave its place to a bass note, or has to wait for it among many that begin together."""
        bass, due = self._writing_bass(now), self._due(now)
        if bass is None or not due:
            return False
        at_once = due[0] == now.position
        if at_once and owner != bass and len(now.here) >= CROWD:
            return True
        return self._limits.kept_for(now, bass, owner, at_once=at_once, later=len(due) - at_once)

    def _pitches(self, now: Written, owner: Owner) -> np.ndarray:
        """The Pitch tokens that a track may play at the present position, bool [V]."""
        if not self._may_begin(now, owner):
            return self._tokens(frozenset())
        return self._tokens(self._limits.register(owner) if self._rules is None else self._rules.pitches(now, owner))

    def _tokens_of(self, pitches: Pitches) -> np.ndarray:
        found = np.zeros(self._table.size, dtype=bool)
        found[[self._of_pitch[pitch] for pitch in pitches]] = True
        return frozen(found)

    def _programs(self, now: Written) -> np.ndarray:
        """The programs of which a note may begin at the present position, bool, for each Program token."""
        numbers = self._table.number[self._table.of_kind[PROGRAM]]
        bass = None if self._rules is None else self._rules.bass(now)
        playing = {
            owner
            for owner in {*self._players(), *([bass] if bass is not None and self._restrictions.owners is None else [])}
            if (self._may_begin(now, owner) if owner[0] == DRUMS else self._pitches(now, owner).any())
        }
        programs = {owner[0] for owner in playing if owner != ANYONE}
        found: np.ndarray = np.isin(numbers, sorted(programs))
        return found | ((numbers != DRUMS) & (ANYONE in playing)) if self._restrictions.owners is None else found

    def _starts(self, now: Written) -> np.ndarray:
        """Which positions are ones at which some track may begin a note: bool, for each Position token."""
        numbers, due = self._table.number[self._positions], self._due(now)
        later = [position for position in due if position > now.position]
        bass = self._writing_bass(now)
        first = FULL
        for owner in self._players():
            kept = bass is not None and self._limits.kept_for(now, bass, owner, at_once=False, later=len(later))
            first = min(first, FULL if kept else self._limits.free_from(now, owner))
        found: np.ndarray = (numbers >= first) | np.isin(numbers, later)
        return found

    # --- which notes must begin ---

    def _owed(self, now: Written) -> tuple[np.ndarray, np.ndarray]:
        """The tokens with which a bass note or too many notes of a bar would be missing: later positions, and the bar's end."""
        late, ends = (np.zeros(self._table.size, dtype=bool) for _ in range(2))
        if now.bar < 1:
            return late, ends
        numbers = self._table.number[self._positions]
        if self._limits.asks_density:
            enough = self._limits.enough_before(now.begun, now.size, now.denominator)
            late[self._positions] = ~enough[np.minimum(numbers, now.size)]
            ends[self._table.of_kind[BAR]] = ends[EOS] = not enough[-1]
        if due := self._due(now):
            late[self._positions] |= numbers > due[0]
            ends[self._table.of_kind[BAR]] = ends[EOS] = True
        return late, ends

    def _writing_bass(self, now: Written) -> Owner | None:
        """The track that plays bass notes, None if there is none or it does not write."""
        bass = None if self._rules is None else self._rules.bass(now)
        return bass if bass is not None and self._rules is not None and self._rules.writes(bass) else None

    def _due(self, now: Written) -> list[int]:
        """The positions of the bar, from the present one on, at which the bass has yet to play and can."""
        bass = self._writing_bass(now)
        if self._rules is None or bass is None:
            return []
        played = any(who == bass for who, _ in now.here)
        first, free = now.position + played, self._limits.free_from(now, bass)
        return [onset for onset in self._rules.onsets(now.bar, now.size) if onset >= max(first, free)]


def restricted(
    table: TokenTable, restrictions: Restrictions, *, program_changes: bool, wishes: Wishes | None = None
) -> RestrictedGrammar | WishedGrammar:
    """Returns the grammar of REMI within restrictions and wishes. program_changes: as the tokenizer is set."""
    inner = RestrictedGrammar(RemiGrammar(table, program_changes=program_changes), table, restrictions)
    return inner if wishes is None else WishedGrammar(inner, table, restrictions, wishes)
