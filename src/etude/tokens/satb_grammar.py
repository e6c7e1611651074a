"""The grammar of the SATB grid."""

from collections.abc import Hashable

import numpy as np

from etude.tokens.grammar import EOS, UNLIMITED, Grammar, State, frozen

ALL_VOICES = 0b1111


class SatbGrammar(Grammar):
    """Complete frames of four tokens, with at least one note in each voice, and bars as the tokenizer encodes them.

    State: (next voice, frames so far in the bar, bars left, which voices have had a note (bits), whether there was a token,
    features).

    Args:
        rest_id: id of Rest; the pitches follow it.
        bar_id: id of Bar, the last of the vocabulary, or -1 without bar tokens.
        vocab_size: V.
        bar_steps: frames per bar; with bar tokens the largest number of them.
    """

    feature_names = ("position", "voice")

    def __init__(self, *, rest_id: int, bar_id: int, vocab_size: int, bar_steps: int) -> None:
        self._rest, self._bar, self.vocab_size, self._bar_steps = rest_id, bar_id, vocab_size, bar_steps
        self._masks: dict[tuple[bool, bool, bool, bool], np.ndarray] = {}

    def start(self, num_bars: int) -> State:
        return (0, 0, num_bars, 0, False, (0, 0))

    def step(self, state: State, token: int) -> State:
        voice, frame, left, heard, _, _ = state
        if token == self._bar:
            return (0, 0, left if left == UNLIMITED else left - 1, heard, True, (1, 0))
        heard |= (token != self._rest) << voice
        features = (frame + 1, voice + 1)
        if voice < 3:
            return (voice + 1, frame, left, heard, True, features)
        frame += 1
        if self._bar < 0 and frame == self._bar_steps:
            return (0, 0, left if left == UNLIMITED else left - 1, heard, True, features)
        return (0, frame, left, heard, True, features)

    def mask(self, state: State) -> np.ndarray:
        voice, frame, left, heard, started, _ = state
        bars, full = self._bar >= 0, frame == self._bar_steps
        boundary = voice == 0
        if bars:
            notes = started and not full
            bar = boundary and (frame > 0 or not started) and left != 0
            end = boundary and frame > 0 and left in (0, UNLIMITED)
        else:
            notes, bar = left != 0, False
            end = boundary and started and left in (0, UNLIMITED)
        # each voice needs a note, or the piece could not be encoded again: a voice without one may not rest in the last
        # possible frame
        last = frame == self._bar_steps - 1 and left == (0 if bars else 1)
        return self._build(notes, notes and (bool(heard >> voice & 1) or not last), bar, end and heard == ALL_VOICES)

    def _build(self, notes: bool, rest: bool, bar: bool, end: bool) -> np.ndarray:
        key = (notes, rest, bar, end)
        if key not in self._masks:
            mask = np.zeros(self.vocab_size, dtype=bool)
            mask[self._rest + 1 : self._bar if self._bar >= 0 else self.vocab_size] = notes
            mask[self._rest] = rest
            mask[EOS] = end
            if self._bar >= 0:
                mask[self._bar] = bar
            self._masks[key] = frozen(mask)
        return self._masks[key]

    def key(self, state: State) -> Hashable:
        return state[:-1]

    def features(self, state: State) -> tuple[int, ...]:
        features: tuple[int, ...] = state[-1]
        return features
