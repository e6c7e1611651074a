"""Which pitches may begin where, and how long they may sound, so that given chords are heard.

On strong positions, where a chord begins, and for notes that go on beyond the next strong position, a note belongs to the chord.
In between a passing note of the scale may stand: a step from the track's note before, never two in a row. A note ends at the
latest where a chord begins that it does not belong to. Where a chord begins, the bass plays its bass note, and nothing is lower.
"""

from collections.abc import Callable
from functools import lru_cache

from etude.music.chords import Chord, Progression
from etude.music.instruments import INSTRUMENT_RANGES
from etude.music.theory import Key
from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import DRUMS
from etude.tokens.written import Written, pulse

BASSES = (*range(32, 40), 43)  # programs that are the bass even where no other track plays
STEP = 2  # semitones
FOREVER = 10**6
BARS_AHEAD = 40  # a note is at most 32 beats long

Pitches = frozenset[int]
EVERYTHING: Pitches = frozenset(range(128))


class ChordRules:
    """The rules for one progression, whose first bar is the first one behind the prompt.

    Args:
        progression: the chords. key: passing notes belong to its scale. strict: whether there are none.
        players: the tracks that may play; None if any may. register: the pitches that a track may play.
    """

    def __init__(
        self, progression: Progression, *, key: Key, strict: bool, players: frozenset[Owner] | None,
        register: Callable[[Owner], Pitches],
    ) -> None:  # fmt: skip
        self._progression, self._key, self._strict, self._register = progression, key, strict, register
        self._players = frozenset(owner for owner in players or () if owner[0] != DRUMS)
        self.span = lru_cache(maxsize=4096)(self._span)
        self._bass_notes = lru_cache(maxsize=1024)(self._find_bass_notes)

    def onsets(self, bar: int, size: int) -> tuple[int, ...]:
        """The positions at which chords begin in a bar, counted from 1; none in the prompt's bars and where there is no chord."""
        chords = self._progression.bar(bar - 1) if bar > 0 else ()
        return tuple(size * i // len(chords) for i, chord in enumerate(chords) if chord is not None)

    def next_onset(self, now: Written) -> int | None:
        """The position at which the next chord begins, beyond the bar's size if that is in the next bar; None if none does."""
        inside = [onset for onset in self.onsets(now.bar, now.size) if onset > now.position]
        return next(iter([*inside, *(now.size + onset for onset in self.onsets(now.bar + 1, now.size))]), None)

    def chord(self, bar: int, size: int, position: int) -> Chord | None:
        """The chord at a position of a bar, which may lie in a later one; None where anything may be played."""
        return self.span(bar + position // size, size, position % size)[0]

    def _span(self, bar: int, size: int, position: int) -> tuple[Chord | None, int]:
        """The chord at a position, and the position at which the next one begins."""
        if bar < 1:
            return None, size
        chords = self._progression.bar(bar - 1)
        starts = [size * i // len(chords) for i in range(len(chords) + 1)]
        index = max(i for i, start in enumerate(starts[:-1]) if start <= position)
        return chords[index], starts[index + 1]

    def bass(self, now: Written) -> Owner | None:
        """The track that plays the bass notes: one with the lowest instrument, of those the one that has played lowest.

        None where a single track plays that is no bass, or where it is not known yet what plays.
        """
        heard = dict(now.known)
        playing = sorted(self._players | {owner for owner in heard if owner[0] != DRUMS})
        if len(playing) < 2 and not (playing and playing[0][0] in BASSES):
            return None
        lowest = min(INSTRUMENT_RANGES[program][0] for program, _ in playing)
        lowest_ones = [owner for owner in playing if INSTRUMENT_RANGES[owner[0]][0] == lowest]
        if all(owner in heard for owner in lowest_ones):
            return min(lowest_ones, key=lambda owner: heard[owner].mean)
        return lowest_ones[-1]  # scores have their lowest part last

    def writes(self, owner: Owner) -> bool:
        """Whether a track may write notes, rather than only having been heard in the prompt."""
        return not self._players or owner in self._players

    # --- pitches ---

    def pitches(self, now: Written, owner: Owner) -> Pitches:
        """The pitches that a note of a track may have at the present position, within its register."""
        chord, within = self.chord(now.bar, now.size, now.position), self._register(owner)
        if chord is None or owner[0] == DRUMS:
            return within
        tones = _of(chord.pitch_classes) & within
        if now.position in self.onsets(now.bar, now.size):
            return self._at_onset(now, owner, chord, tones)
        if self._strict or now.position % pulse(now.size, now.denominator) == 0:
            return tones
        return tones | (self._passing(now, owner, chord) & within)

    def _passing(self, now: Written, owner: Owner, chord: Chord) -> Pitches:
        before = dict(now.heard).get(owner)
        if before is None or before.passing:
            return frozenset()
        return _of(chord.scale(self._key)) & frozenset(range(before.pitch - STEP, before.pitch + STEP + 1))

    def _at_onset(self, now: Written, owner: Owner, chord: Chord, tones: Pitches) -> Pitches:
        """Chord tones with which the lowest note is the bass note, as far as the register has any."""
        bass, struck = self.bass(now), [pitch for who, pitch in now.here if who[0] != DRUMS]
        if bass is None or not self.writes(bass):
            if not struck or bass is not None:
                return tones
            low = min(struck)
            roots = _of(frozenset({chord.bass})) & tones
            return _above(tones, low) if low % 12 == chord.bass else _below(roots, low)
        mine = [pitch for who, pitch in now.here if who == bass]
        if owner == bass and not mine:
            ringing = [pitch for _, who, pitch in now.sounding if who[0] != DRUMS]
            roots = self._bass_notes(bass, chord)
            return (
                _below(roots, min([*struck, *ringing], default=128)) or _below(roots, min(struck, default=128)) or roots or tones
            )
        return _above(tones, min(mine or self._bass_notes(bass, chord), default=-1))

    def _find_bass_notes(self, bass: Owner, chord: Chord) -> Pitches:
        """The pitches of a chord's bass note that a track may play, within the range of its instrument where it has any there."""
        notes = _of(frozenset({chord.bass})) & self._register(bass)
        low, high = INSTRUMENT_RANGES[bass[0]]
        return frozenset(pitch for pitch in notes if low <= pitch <= high) or notes

    def is_passing(self, now: Written, pitch: int) -> bool:
        """Whether a note at the present position is a passing note."""
        chord = self.chord(now.bar, now.size, now.position)
        return chord is not None and pitch % 12 not in chord.pitch_classes

    # --- durations ---

    def longest(self, now: Written, owner: Owner) -> int:
        """How long the present note may sound, in positions."""
        if owner[0] == DRUMS:
            return FOREVER
        start, size = now.position, now.size
        if self.is_passing(now, now.pitch):
            strong = pulse(size, now.denominator)
            following = [p for p in (*self.onsets(now.bar, size), size, (start // strong + 1) * strong) if p > start]
            return min(following) - start
        bass = self.bass(now)
        for bar in range(now.bar, now.bar + BARS_AHEAD):
            position, base = (start if bar == now.bar else 0), (bar - now.bar) * size
            while position < size:
                chord, end = self.span(bar, size, position)
                if base + position > start and not self._goes_on(now.pitch, owner, chord, bass):
                    return base + position - start
                position = end
        return FOREVER

    def _goes_on(self, pitch: int, owner: Owner, chord: Chord | None, bass: Owner | None) -> bool:
        """Whether a note may ring on into a chord: it belongs to it, and leaves the bass its note below."""
        if chord is None:
            return True
        if owner == bass or pitch % 12 not in chord.pitch_classes:
            return False
        return bass is None or not self.writes(bass) or pitch > min(self._bass_notes(bass, chord), default=-1)


@lru_cache(maxsize=4096)
def _of(pitch_classes: frozenset[int]) -> Pitches:
    return frozenset(pitch for pitch in range(128) if pitch % 12 in pitch_classes)


def _above(pitches: Pitches, low: int) -> Pitches:
    return frozenset(pitch for pitch in pitches if pitch > low)


def _below(pitches: Pitches, high: int) -> Pitches:
    return frozenset(pitch for pitch in pitches if pitch < high)
