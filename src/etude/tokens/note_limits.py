"""Where notes may begin, so that there are neither too many at a time, nor too many or too few in a bar."""

from functools import lru_cache

import numpy as np

from etude.tokens.chord_rules import EVERYTHING, FOREVER, Pitches
from etude.tokens.miditok_parts import Owner
from etude.tokens.wishes import NO_MOST, Range, Wishes
from etude.tokens.written import Written, pulse

SIXTEENTH = 3  # positions
FULL = 10**9  # a time that is never reached


class NoteLimits:
    """The limits of registers, of simultaneous notes and of notes in a bar.

    players: the tracks that may play; None if any may.
    """

    def __init__(self, wishes: Wishes, *, players: frozenset[Owner] | None = None) -> None:
        self._wishes, self._players = wishes, players
        self.asks_density = any(one.low for one in wishes.density)
        self.register = lru_cache(maxsize=1024)(self._register)
        self.enough_before = lru_cache(maxsize=1024)(self._enough_before)

    def _register(self, owner: Owner) -> Pitches:
        """The pitches that a track may play."""
        found = EVERYTHING
        for one in self._wishes.registers:
            if one.covers(owner):
                found &= frozenset(range(one.low, one.high + 1))
        return found

    def free_from(self, now: Written, owner: Owner) -> int:
        """The first position of the bar, from the present one on, at which a note of a track may begin; FULL if there is none."""
        if any(one.covers(owner) and count >= one.high for one, count in zip(self._wishes.density, now.begun, strict=True)):
            return FULL
        time = 0
        for one in self._wishes.polyphony:
            if one.covers(owner):
                ends = sorted(end for end, who, _ in now.sounding if one.covers(who))
                if len(ends) >= one.high:
                    time = max(time, ends[len(ends) - one.high])
        return max(now.position_of(time), now.position, 0)

    def kept_for(self, now: Written, bass: Owner, owner: Owner, *, at_once: bool, later: int) -> bool:
        """Whether the last place is kept for bass notes that have yet to come, so that a track may not begin a note now.

        at_once: one is due at the present position. later: how many are due later in the bar.
        """
        mine = owner == bass and at_once
        for one, count in zip(self._wishes.density, now.begun, strict=True):
            if one.covers(owner) and one.covers(bass) and count + at_once + later - mine >= one.high:
                return True
        return at_once and not mine and any(self._last_place(now, one, bass, owner, 0) for one in self._wishes.polyphony)

    def crosses(self, now: Written, bass: Owner, owner: Owner, onset: int) -> bool:
        """Whether the present note has to end before a bass note, to leave it a place. onset: its position, as `next_onset`."""
        time = now.time(onset)
        return any(self._last_place(now, one, bass, owner, time) for one in self._wishes.polyphony)

    def _last_place(self, now: Written, one: Range, bass: Owner, owner: Owner, time: int) -> bool:
        ringing = sum(one.covers(who) and end > time for end, who, _ in now.sounding)
        return one.covers(owner) and one.covers(bass) and ringing + 1 >= one.high

    def _enough_before(self, begun: tuple[int, ...], size: int, denominator: int) -> np.ndarray:
        """Whether enough notes have begun in the bar if no more do before each position of it: bool [size + 1], the last its end.

        Notes may be late by one beat, and what is missing must fit into the rest of the bar, in sixteenths.
        """
        position, found = np.arange(size + 1), np.ones(size + 1, dtype=bool)
        late = np.maximum(0, position - pulse(size, denominator))
        for one, count in zip(self._wishes.density, begun, strict=True):
            if count < one.low:
                slot = min(SIXTEENTH, size / one.low)
                found &= (count * size >= one.low * late) & ((one.low - count) * slot <= size - position)
        return found

    def longest(self, now: Written, owner: Owner) -> int:
        """How long the present note may sound, in positions, so that later notes of the bar are not kept from beginning."""
        if not self.asks_density or now.bar < 1 or not (self._would_fill(now, owner) or self._alone(now, owner)):
            return FOREVER
        begun = tuple(count + one.covers(owner) for one, count in zip(self._wishes.density, now.begun, strict=True))
        beyond = np.flatnonzero(~self.enough_before(begun, now.size, now.denominator)[now.position + 1 :])
        if len(beyond):
            return max(1, int(beyond[0]))
        room = min(now.size - one.low * min(SIXTEENTH, now.size / max(1, one.low)) for one in self._wishes.density)
        return now.size + int(min(room, pulse(now.size, now.denominator))) - now.position  # into the next bar

    def waits(self, now: Written, owner: Owner) -> bool:
        """Whether a track that plays one note at a time has one here, so that it does not add others to have enough in a bar."""
        if not self.asks_density or now.bar < 1 or all(who != owner for who, _ in now.here):
            return False
        if any(one.low > now.size for one in self._wishes.density):  # more than there are positions
            return False
        return self._single(now, owner) and not self.enough_before(now.begun, now.size, now.denominator).all()

    def _single(self, now: Written, owner: Owner) -> bool:
        heard = dict(now.heard).get(owner)
        return heard is None or not heard.several

    def _alone(self, now: Written, owner: Owner) -> bool:
        """Whether a track that plays one note at a time is the only one from which enough notes in a bar are asked for."""
        playing = self._players if self._players is not None else {who for who, _ in now.heard} | {owner}
        needed = [one for one in self._wishes.density if one.low and one.covers(owner)]
        return self._single(now, owner) and any({who for who in playing if one.covers(who)} == {owner} for one in needed)

    def _would_fill(self, now: Written, owner: Owner) -> bool:
        """Whether no note more could begin while the present one sounds."""
        return any(
            one.covers(owner) and 1 + sum(one.covers(who) for _, who, _ in now.sounding) >= one.high
            for one in self._wishes.polyphony
        )


def impossible(wishes: Wishes, sixteenths: int) -> str | None:
    """Why a number of notes can't be reached in a bar of so many sixteenths, None where it can be."""
    for most in wishes.polyphony:
        for one in wishes.density:
            if most.owners == one.owners and one.low > most.high * sixteenths:
                upper = "" if one.high >= NO_MOST else f" to {one.high}"
                return (
                    f"density asks for {one.low}{upper} notes in a bar, and with polyphony={most.high} at most "
                    f"{most.high * sixteenths} sixteenths fit into it; ask for fewer, or for more at a time"
                )
    return None
