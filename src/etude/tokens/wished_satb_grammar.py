"""The SATB grid within chords and registers of its voices."""

from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np

from etude.music.chords import Chord
from etude.tokens.grammar import Grammar, State, frozen
from etude.tokens.satb_grammar import SatbGrammar
from etude.tokens.satb_voices import REST
from etude.tokens.wishes import Wishes

BASS = 3  # the last voice of a frame
STEP = 2  # semitones
LOWEST = 36  # below it a bass voice is not led where it can be helped


class Frames(NamedTuple):
    """What has been written. inner: the state of the grammar. taken: body tokens so far, up to those of the prompt.

    bar: bars begun behind the prompt, 0 in it. before: pitches of the last whole frame, REST for a rest; empty at the start.
    passing: which of them are passing notes. here: pitches of this frame so far.
    """

    inner: State
    taken: int = 0
    bar: int = 0
    before: tuple[int, ...] = ()
    passing: tuple[bool, ...] = (False,) * 4
    here: tuple[int, ...] = ()


class WishedSatbGrammar(Grammar):
    """The grammar of a grid without bar tokens, within the chords and registers of `Wishes`. Its states are `Frames`.

    The rules of chords are those of `etude.tokens.chord_rules`; a beat is a strong position, the bass is the lowest voice, and a
    rest may stand for any note but a bass note. A voice whose register has no note that fits may play any of its register.

    Args:
        inner: the grammar. rest_id, low: the id of a rest, and the pitch of the id behind it. num_pitches: from there on.
        bar_steps, steps_per_beat: frames of a bar, and of a beat. free: so many body tokens at the start are a prompt.
    """

    def __init__(
        self, inner: SatbGrammar, wishes: Wishes, *, rest_id: int, low: int, num_pitches: int, bar_steps: int,
        steps_per_beat: int, free: int,
    ) -> None:  # fmt: skip
        self._inner, self._wishes, self._free = inner, wishes, free
        self._rest, self._low, self._num_pitches = rest_id, low, num_pitches
        self._bar_steps, self._beat = bar_steps, steps_per_beat
        self.vocab_size, self.feature_names = inner.vocab_size, inner.feature_names
        self._masks = lru_cache(maxsize=4096)(self._mask_of)

    def start(self, num_bars: int) -> State:
        state = Frames(self._inner.start(num_bars))
        return state if self._free else state._replace(bar=1)

    def step(self, state: State, token: int) -> State:
        now = cast(Frames, state)
        inner, taken = self._inner.step(now.inner, token), min(now.taken + 1, self._free)
        here = (*now.here, REST if token == self._rest else token - self._rest - 1 + self._low)
        if len(here) < 4:
            return now._replace(inner=inner, taken=taken, here=here)
        chord, passing = self._chord(now)[0], [False] * 4
        for voice, pitch in enumerate(here):
            passing[voice] = chord is not None and pitch != REST and pitch % 12 not in chord.pitch_classes
        bar = now.bar
        if inner[1] == 0 and taken >= self._free:  # a bar begins; the prompt's last one is not counted
            bar += 1
        return Frames(inner, taken, bar, here, tuple(passing), ())

    def key(self, state: State) -> Hashable:
        now = cast(Frames, state)
        return (self._inner.key(now.inner), *now[1:])

    def features(self, state: State) -> tuple[int, ...]:
        return self._inner.features(cast(Frames, state).inner)

    def mask(self, state: State) -> np.ndarray:
        now = cast(Frames, state)
        mask = self._inner.mask(now.inner)
        if now.taken < self._free or not mask[self._rest + 1 :].any():
            return mask
        wished: np.ndarray = mask & self._masks(*self._pitches(now))
        return frozen(wished) if wished.any() else mask

    def _mask_of(self, pitches: frozenset[int], rest: bool) -> np.ndarray:
        """The tokens of pitches, of a rest, and all that are no notes."""
        mask = np.ones(self.vocab_size, dtype=bool)
        mask[self._rest] = rest
        for offset in range(self._num_pitches):
            mask[self._rest + 1 + offset] = self._low + offset in pitches
        return mask

    def _chord(self, now: Frames) -> tuple[Chord | None, bool]:
        """The chord of the present frame, and whether it begins there."""
        if self._wishes.progression is None or now.bar < 1:
            return None, False
        frame, chords = now.inner[1], self._wishes.progression.bar(now.bar - 1)
        starts = [self._bar_steps * i // len(chords) for i in range(len(chords))]
        index = max(i for i, start in enumerate(starts) if start <= frame)
        return chords[index], frame == starts[index]

    def _register(self, voice: int) -> frozenset[int]:
        found = frozenset(range(self._low, self._low + self._num_pitches))
        for one in self._wishes.registers:
            if one.owners is None or any(part == voice for _, part in one.owners):
                found &= frozenset(range(one.low, one.high + 1))
        return found

    def _pitches(self, now: Frames) -> tuple[frozenset[int], bool]:
        """The pitches that the next voice may have, and whether it may rest."""
        voice, within, (chord, begins) = len(now.here), self._register(len(now.here)), self._chord(now)
        if chord is None:
            return within, True
        tones = frozenset(pitch for pitch in within if pitch % 12 in chord.pitch_classes)
        if begins:
            return self._at_onset(now, chord, tones, within), voice != BASS
        if not self._wishes.strict and now.inner[1] % self._beat and now.before:
            tones |= self._passing(now, chord) & within
        return tones or within, True

    def _passing(self, now: Frames, chord: Chord) -> frozenset[int]:
        voice = len(now.here)
        before = now.before[voice]
        if before == REST:
            return frozenset()
        if now.passing[voice]:
            return frozenset({before})  # it is held
        near = range(before - STEP, before + STEP + 1)
        return frozenset(pitch for pitch in near if pitch % 12 in chord.scale(self._wishes.scale))

    def _at_onset(self, now: Frames, chord: Chord, tones: frozenset[int], within: frozenset[int]) -> frozenset[int]:
        roots = frozenset(pitch for pitch in self._register(BASS) if pitch % 12 == chord.bass)
        roots = frozenset(pitch for pitch in roots if pitch >= LOWEST) or roots
        if len(now.here) < BASS:
            floor = min(roots, default=-1)
            return frozenset(pitch for pitch in tones if pitch > floor) or tones or within
        lowest = min((pitch for pitch in now.here if pitch != REST), default=128)
        return frozenset(pitch for pitch in roots if pitch < lowest) or roots or within
