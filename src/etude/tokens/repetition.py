"""Keeps samples from repeating themselves, note by note rather than token by token.

Shapes: b rows, v tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etude.tokens.grammar import Decoder, JoinedDecoder
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_parts import Owner
from etude.tokens.miditok_vocabulary import DRUMS, PITCH
from etude.tokens.note_stream import NoteStream

Passage = tuple[tuple[int, int], ...]  # the notes before a note: (ticks before it, pitch)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """How much a track may repeat itself. Drums may always.

    no_repeat_ngram: no track plays the same so many notes twice: the same pitches at the same distances in time; at least 2.
        None for no limit. Durations and velocities may differ.
    pitch_penalty: the probabilities of the pitches among the last `pitch_window` notes of the track are divided by it before
        they are normalised; at least 1, which changes nothing.
    pitch_window: at least 1.

    Source: n-grams after Paulus et al. 2018 (of words there), the penalty after Keskar et al. 2019, which divides logits, so that
    its effect depends on their sign.
    """

    no_repeat_ngram: int | None = None
    pitch_penalty: float = 1.0
    pitch_window: int = 16

    def __post_init__(self) -> None:
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 2:
            raise ValueError(f"no_repeat_ngram={self.no_repeat_ngram} must be at least 2 notes; use null for no limit")
        if not 1 <= self.pitch_penalty < math.inf:
            raise ValueError(f"pitch_penalty={self.pitch_penalty} must be finite and at least 1, which changes nothing")
        if self.pitch_window < 1:
            raise ValueError(f"pitch_window={self.pitch_window} must be at least 1 note")

    @property
    def is_free(self) -> bool:
        """Whether nothing is limited."""
        return self.no_repeat_ngram is None and self.pitch_penalty == 1.0


class _Track:
    """The notes of one track so far."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, int]] = []  # onset, pitch
        self.followed: dict[Passage, frozenset[int]] = {}  # by which pitches

    def copied(self) -> _Track:
        track = _Track()
        track.notes, track.followed = self.notes.copy(), self.followed.copy()
        return track

    def passage(self, onset: int, length: int) -> Passage | None:
        """The last `length` notes before `onset`; None if there are fewer."""
        if len(self.notes) < length:
            return None
        return tuple((onset - before, pitch) for before, pitch in self.notes[-length:])


class _Memory:
    """What one row has played so far."""

    def __init__(self, tokenizer: object) -> None:
        self.stream = NoteStream(tokenizer)
        self.tracks: dict[Owner, _Track] = defaultdict(_Track)

    @property
    def track(self) -> _Track:
        """That of the next note, as far as it is known."""
        return self.tracks[self.stream.program, self.stream.part]

    def push(self, token: int, ngram: int | None) -> None:
        note = self.stream.push(token)
        if note is None or note.program == DRUMS:
            return
        track = self.tracks[note.program, note.part]
        if ngram is not None and (before := track.passage(note.onset, ngram - 1)) is not None:
            track.followed[before] = track.followed.get(before, frozenset()) | {note.pitch}
        track.notes.append((note.onset, note.pitch))

    def copied(self) -> _Memory:
        memory = copy.copy(self)
        memory.stream = copy.copy(self.stream)  # its tables are shared
        memory.tracks = defaultdict(_Track, {owner: track.copied() for owner, track in self.tracks.items()})
        return memory

    def repeating(self, ngram: int) -> frozenset[int]:
        """The pitches of which the next note would repeat a passage, and those below the last one of the same chord.

        Training music has its chords from low to high; another order would be a way to play a passage again.
        """
        if self.stream.program == DRUMS:
            return frozenset()
        onset, track = self.stream.onset, self.track
        before = track.passage(onset, ngram - 1)
        found = frozenset() if before is None else track.followed.get(before, frozenset())
        if track.notes and track.notes[-1][0] == onset:
            found |= frozenset(range(track.notes[-1][1] + 1))
        return found

    def recent(self, window: int) -> set[int]:
        """The pitches of the last notes of the track of the next note."""
        return set() if self.stream.program == DRUMS else {pitch for _, pitch in self.track.notes[-window:]}


class RestrainedDecoder:
    """A decoder that also forbids or penalises repetition.

    A pitch that would repeat a passage is forbidden, unless nothing else may follow; `unavoidable` counts how often that was so.
    The notes of a chord must come from low to high, as in training music.

    Args:
        decoder: a new one; it says what the grammar allows.
        tokenizer: of REMI tokens without byte pairs.
        repetition: what is limited.

    Raises:
        ValueError: another tokenizer.
    """

    def __init__(self, decoder: Decoder | JoinedDecoder, tokenizer: object, repetition: Repetition) -> None:
        self._decoder, self._repetition = decoder, repetition
        self._rows = [_Memory(tokenizer) for _ in decoder.finished]
        assert isinstance(tokenizer, MidiTokTokenizer)  # `NoteStream` has refused any other
        tokens = tokenizer.table.of_kind[PITCH]
        self._token = {int(tokenizer.table.number[token]): int(token) for token in tokens}
        self._size = len(tokenizer)
        self.unavoidable = 0

    @property
    def finished(self) -> np.ndarray:
        """Which rows have ended with EOS: bool [b]."""
        return self._decoder.finished

    def push(self, ids_b: Sequence[int] | np.ndarray) -> None:
        """Appends one token to each row. Raises: ValueError for a body token that the grammar does not allow in its row."""
        self._decoder.push(ids_b)
        for memory, token in zip(self._rows, np.asarray(ids_b).tolist(), strict=True):
            memory.push(token, self._repetition.no_repeat_ngram)

    def allowed(self) -> np.ndarray:
        """Returns which tokens may come next in each row: bool [b, v]."""
        allowed, ngram = self._decoder.allowed(), self._repetition.no_repeat_ngram
        if ngram is None:
            return allowed
        for mask, memory in zip(allowed, self._rows, strict=True):
            banned = [token for pitch in memory.repeating(ngram) if (token := self._token.get(pitch)) is not None and mask[token]]
            if not banned:
                continue
            mask[banned] = False
            if not mask.any():
                mask[banned] = True
                self.unavoidable += 1
        return allowed

    def penalties(self) -> np.ndarray:
        """Returns what is subtracted from the logits of the next tokens, float64 [b, v], at least 0."""
        found = np.zeros((len(self._rows), self._size))
        for row, memory in enumerate(self._rows):
            for pitch in memory.recent(self._repetition.pitch_window):
                if pitch in self._token:
                    found[row, self._token[pitch]] = math.log(self._repetition.pitch_penalty)
        return found

    def features(self) -> dict[str, np.ndarray]:
        """Returns the features of the last token of each row: name -> int64 [b]."""
        return self._decoder.features()

    def fork(self) -> RestrainedDecoder:
        """Returns an independent copy."""
        twin = copy.copy(self)
        twin._decoder, twin._rows = self._decoder.fork(), [memory.copied() for memory in self._rows]
        return twin

    def select(self, rows: Sequence[int]) -> None:
        """Continues with copies of these rows, as many as there are, in this order."""
        self._decoder.select(rows)
        self._rows = [self._rows[row].copied() for row in rows]
