"""The meaning of each token of a tokenizer as numbers: its class, pitch, position in the bar and duration."""

from dataclasses import dataclass

import numpy as np

from etude.tokens import miditok_vocabulary as tokens
from etude.tokens.miditok_vocabulary import TokenTable
from etude.tokens.tokenizer import Tokenizer

CLASSES = ("control", "pitch", "time", "duration", "velocity", "other")
CONTROL, PITCH, TIME, DURATION, VELOCITY, OTHER = range(len(CLASSES))
TWELFTHS = 12  # units of positions and durations per quarter note
_KINDS = {
    PITCH: (tokens.PITCH, tokens.PITCH_DRUM, tokens.NOTE_ON, tokens.DRUM_ON, tokens.NOTE_OFF, tokens.DRUM_OFF),
    TIME: (tokens.BAR, tokens.POSITION, tokens.TIME_SHIFT),
    DURATION: (tokens.DURATION,),
    VELOCITY: (tokens.VELOCITY,),
}


@dataclass(frozen=True)
class TokenClasses:
    """Arrays over ids [V].

    kind: index into CLASSES. Special and control tokens have the class control, the rest of a grid has the class pitch.
    pitch: MIDI pitch, -1 for tokens without one and for drums.
    onset: whether the token begins a note of this pitch (a NoteOff ends one).
    position: of a time token, the position in its bar in twelfths of a quarter, -1 for others.
    units: of a time shift or a duration, its length in twelfths of a quarter, -1 for others.
    """

    kind: np.ndarray
    pitch: np.ndarray
    onset: np.ndarray
    position: np.ndarray
    units: np.ndarray


def token_classes(tokenizer: Tokenizer) -> TokenClasses:
    """Derives the arrays from the vocabulary of a tokenizer; a merged token has the values of its first base token."""
    size = tokenizer.base_size
    kind = np.full(size, OTHER)
    kind[: tokenizer.first_body] = CONTROL
    pitch, position, units = (np.full(size, -1) for _ in range(3))
    onset = np.zeros(size, bool)
    table = getattr(tokenizer, "table", None)
    if isinstance(table, TokenTable):
        for name, kinds in _KINDS.items():
            kind[table.mask(*kinds)] = name
        pitched = table.mask(*tokens.PITCHED)
        pitch[pitched] = table.number[pitched]
        onset = table.mask(tokens.PITCH, tokens.NOTE_ON)
        position[table.of_kind[tokens.POSITION]] = table.number[table.of_kind[tokens.POSITION]]
        timed = table.mask(tokens.TIME_SHIFT, tokens.DURATION)
        units[timed] = table.units[timed]
    else:  # a grid: every token except Bar is the pitch or rest of a voice
        for i, token in enumerate(tokenizer.vocab[tokenizer.first_body :], tokenizer.first_body):
            kind[i] = TIME if token == "Bar" else PITCH
            if token.startswith("Pitch_"):
                pitch[i], onset[i] = int(token.removeprefix("Pitch_")), True
    first = np.arange(len(tokenizer))
    if len(tokenizer) != size:
        first[size:] = [int(tokenizer.expand(np.array([i], np.int32))[0]) for i in range(size, len(tokenizer))]
    return TokenClasses(*(values[first] for values in (kind, pitch, onset, position, units)))
