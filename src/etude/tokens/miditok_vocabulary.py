"""Look-up tables of the body tokens of MidiTok's schemes: the kind and value of each id."""

from collections.abc import Sequence

import numpy as np

from etude.tokens.tokenizer import program_family

KINDS = (
    "none", "Bar", "Position", "TimeSig", "Tempo", "TimeShift", "Program", "Pitch", "PitchDrum",
    "NoteOn", "DrumOn", "NoteOff", "DrumOff", "Velocity", "Duration", "Part", "Ahead", "Back",
    "Form",
)  # fmt: skip
(
    NONE, BAR, POSITION, TIME_SIG, TEMPO, TIME_SHIFT, PROGRAM, PITCH, PITCH_DRUM,
    NOTE_ON, DRUM_ON, NOTE_OFF, DRUM_OFF, VELOCITY, DURATION, PART, AHEAD, BACK,
    FORM,
) = range(len(KINDS))  # fmt: skip
PITCHED = (PITCH, NOTE_ON, NOTE_OFF)
DRUMS = -1
UNITS_PER_QUARTER = 48  # units of positions: a twelfth of a sixteenth
MAX_POSITIONS = 12 * 15  # twelfths of a quarter in bars of up to 15 quarters


class TokenTable:
    """Arrays over ids [V]; 0 where a kind of token has no such value.

    kind: index into KINDS.
    number: the pitch, program, position, bar or velocity; of a Part, which track of its program, from 1 on (0 has no token);
        of a Form, which letter, see `plans`.
    units: of a TimeShift or Duration, twelfths of a beat; of a TimeSig, the length of the bar in units.
    denominator: of a TimeSig.
    family: of a Program, the program family + 1, 17 for drums.
    """

    def __init__(self, vocab: Sequence[str], *, first_body: int) -> None:
        size = len(vocab)
        self.size = size
        self.kind = np.zeros(size, dtype=np.int64)
        self.number = np.zeros(size, dtype=np.int64)
        self.units = np.zeros(size, dtype=np.int64)
        self.denominator = np.zeros(size, dtype=np.int64)
        self.family = np.zeros(size, dtype=np.int64)
        for i, token in enumerate(vocab[first_body:], first_body):
            kind, _, value = token.partition("_")
            self.kind[i] = KINDS.index(kind)
            if kind == "TimeSig":
                numerator, denominator = map(int, value.split("/"))
                self.denominator[i] = denominator
                self.units[i] = numerator * 4 * UNITS_PER_QUARTER // denominator
                self.number[i] = numerator
            elif kind in ("TimeShift", "Duration"):
                beats, position, resolution = map(int, value.split("."))
                self.units[i] = (beats * resolution + position) * 12 // resolution
            elif kind == "Program":
                self.number[i] = int(value)
                self.family[i] = program_family(int(value)) + 1
            elif kind == "Tempo":
                self.number[i] = round(float(value))
            elif value != "None":
                self.number[i] = int(value)
        self.of_kind = [np.flatnonzero(self.kind == k) for k in range(len(KINDS))]
        self.of_kind[NONE] = np.empty(0, dtype=np.int64)

    def mask(self, *kinds: int) -> np.ndarray:
        """Returns which tokens are of one of the kinds: bool [V]."""
        mask = np.zeros(self.size, dtype=bool)
        for kind in kinds:
            mask[self.of_kind[kind]] = True
        return mask


def position_feature(units: int) -> int:
    """Returns 1 + twelfths of a quarter since the start of the bar, at most MAX_POSITIONS."""
    return min(units * 12 // UNITS_PER_QUARTER + 1, MAX_POSITIONS)
