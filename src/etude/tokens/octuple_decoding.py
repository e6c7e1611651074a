"""Octuple's rows to a score.

MidiTok 3.1 places the first note after a change of metre with the beat of the metre before, so that it may fall bars later.
"""

import numpy as np
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.tokens.miditok_vocabulary import DRUMS, TokenTable
from etude.tokens.octuple_grammar import NAMES

TICKS_PER_QUARTER = 480
DEFAULT_TEMPO = 120.0


def decode_rows(rows: np.ndarray, *, table: TokenTable, tempos: np.ndarray) -> Score:
    """The score of notes given as base ids [n, 8], fields in the order of `NAMES`, n at least 1; 480 ticks per quarter.

    A metre begins with the bar of the first note that names it, a tempo with the first note that does.

    Args:
        table: of the vocabulary that the ids belong to.
        tempos: beats per minute of each id [V]; of Tempo tokens alone they are read.
    """
    fields = {name: rows[:, i] for i, name in enumerate(NAMES)}
    number = {name: table.number[ids].tolist() for name, ids in fields.items()}
    denominators, lengths = table.denominator[fields["TimeSig"]].tolist(), table.units[fields["Duration"]].tolist()
    score, tracks = Score(TICKS_PER_QUARTER), dict[int, Track]()
    metre, start, bar = (0, 4), 0, 0  # the metre, the tick and the number of its first bar
    for i, tempo in enumerate(tempos[fields["Tempo"]].tolist()):
        if (number["TimeSig"][i], denominators[i]) != metre:
            if i:
                start += (number["Bar"][i] - bar) * _bar_length(metre)
                bar = number["Bar"][i]
            metre = number["TimeSig"][i], denominators[i]
            score.time_signatures.append(TimeSignature(start, *metre))
        step = 4 * TICKS_PER_QUARTER // (12 * metre[1])
        tick = start + (number["Bar"][i] - bar) * _bar_length(metre) + number["Position"][i] * step
        program = number["Program"][i]
        if program not in tracks:
            tracks[program] = _track(program)
        tracks[program].notes.append(Note(tick, max(1, lengths[i] * step), number["Pitch"][i], number["Velocity"][i]))
        if not len(score.tempos) or tempo != round(score.tempos[-1].qpm, 2):
            score.tempos.append(Tempo(tick, qpm=tempo))
    if round(score.tempos[0].qpm, 2) == DEFAULT_TEMPO:
        score.tempos[0].time = 0
    elif score.tempos[0].time:
        score.tempos.insert(0, Tempo(0, qpm=DEFAULT_TEMPO))
    score.tracks = list(tracks.values())
    return score


def _bar_length(metre: tuple[int, int]) -> int:
    return metre[0] * 4 * TICKS_PER_QUARTER // metre[1]


def _track(program: int) -> Track:
    from miditok.constants import MIDI_INSTRUMENTS

    drums = program == DRUMS
    return Track(name="Drums" if drums else MIDI_INSTRUMENTS[program]["name"], program=0 if drums else program, is_drum=drums)
