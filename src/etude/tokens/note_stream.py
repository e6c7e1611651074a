"""Follows a REMI sequence token by token and gives each note as soon as its last token is there."""

from __future__ import annotations

from typing import NamedTuple

from etude.tokens.grammar import EOS
from etude.tokens.miditok import TICKS_PER_QUARTER, MidiTokTokenizer
from etude.tokens.miditok_vocabulary import (
    BAR,
    DURATION,
    PART,
    PITCH,
    PITCH_DRUM,
    POSITION,
    PROGRAM,
    TEMPO,
    TIME_SIG,
    UNITS_PER_QUARTER,
    VELOCITY,
)

DEFAULT_TEMPO_BPM = 120.0
STEPS_PER_BEAT = 12  # positions and durations are in twelfths of a beat of the metre


class StreamedNote(NamedTuple):
    """A note of a sequence that is still growing.

    onset, duration: ticks, 480 to a quarter note, from the start of the sequence.
    start, seconds: the same in seconds, at the tempos of the sequence; a later change of tempo doesn't reach back.
    pitch, velocity: as in MIDI. program, part: of its track; -1 for drums.
    """

    onset: int
    duration: int
    start: float
    seconds: float
    pitch: int
    velocity: int
    program: int
    part: int


class NoteStream:
    """Takes the tokens of one sequence, one after another; the notes agree with those of `MidiTokTokenizer.decode`.

    Args:
        tokenizer: of REMI tokens without byte pairs.
        tempo_bpm: where the sequence sets none.

    Raises:
        ValueError: another tokenizer.
    """

    def __init__(self, tokenizer: object, *, tempo_bpm: float = DEFAULT_TEMPO_BPM) -> None:
        if not isinstance(tokenizer, MidiTokTokenizer) or tokenizer.scheme != "REMI" or tokenizer.bpe_vocab_size is not None:
            raise ValueError("notes can be followed one by one only with REMI tokens; take a model with tokenizer=remi")
        table = tokenizer.table
        self._kind, self._number = table.kind.tolist(), table.number.tolist()
        self._units, self._denominator = table.units.tolist(), table.denominator.tolist()
        self._vocab, self._first_body = tokenizer.vocab, tokenizer.first_body
        self._bar, self._bar_ticks, self._beat = -1, 0, TICKS_PER_QUARTER
        self._tempo = (0, 0.0, tempo_bpm)  # from this tick, at this second, so many quarter notes a minute
        self.onset = 0
        self.program, self.part = 0, 0
        self._pitch, self._velocity = 0, 0
        self.ended = False

    def push(self, token: int) -> StreamedNote | None:
        """Takes the next token; returns the note that it completes, if any. PAD and control tokens change nothing."""
        if token < self._first_body:
            self.ended = self.ended or token == EOS
            return None
        kind, number = self._kind[token], self._number[token]
        if kind == BAR:
            self._bar = 0 if self._bar < 0 else self._bar + self._bar_ticks
            self.onset = self._bar
        elif kind == TIME_SIG:
            self._bar_ticks = self._units[token] * TICKS_PER_QUARTER // UNITS_PER_QUARTER
            self._beat = TICKS_PER_QUARTER * 4 // self._denominator[token]
        elif kind == POSITION:
            self.onset = self._bar + number * self._beat // STEPS_PER_BEAT
        elif kind == TEMPO:
            self._tempo = (self.onset, self._seconds_at(self.onset), float(self._vocab[token].partition("_")[2]))
        elif kind in (PROGRAM, PART):
            self.program, self.part = (number, 0) if kind == PROGRAM else (self.program, number)
        elif kind in (PITCH, PITCH_DRUM):
            self._pitch = number
        elif kind == VELOCITY:
            self._velocity = number
        elif kind == DURATION:
            return self._note(self._units[token] * self._beat // STEPS_PER_BEAT)
        return None

    def _note(self, duration: int) -> StreamedNote:
        start = self._seconds_at(self.onset)
        seconds = self._seconds_at(self.onset + duration) - start
        return StreamedNote(
            self.onset, duration, start, seconds, self._pitch, self._velocity, self.program, self.part
        )  # fmt: skip

    def _seconds_at(self, tick: int) -> float:
        since, seconds, tempo_bpm = self._tempo
        return seconds + (tick - since) / TICKS_PER_QUARTER * 60 / tempo_bpm
