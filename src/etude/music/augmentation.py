"""Augmentation of scores: each change moves the notes and the marks that name it (key, tempo) together.

Every function returns a new score and leaves its argument as it was.
"""

import numpy as np
from symusic import Score, Tempo
from symusic.core import NoteTickList

from etude.music.instruments import INSTRUMENT_RANGES
from etude.music.score import DEFAULT_TEMPO_BPM
from etude.music.theory import Key

MIDI_MAX = 127


def transpose(score: Score, semitones: int) -> Score:
    """The score `semitones` higher (negative: lower), with its key signatures; drum tracks stay as they are.

    Raises:
        ValueError: a pitch would leave 0..127.
    """
    pitches = [track.notes.numpy()["pitch"].astype(np.int64) for track in score.tracks if not track.is_drum and len(track.notes)]
    if pitches:
        lowest, highest = -min(int(p.min()) for p in pitches), MIDI_MAX - max(int(p.max()) for p in pitches)
        if not lowest <= semitones <= highest:
            raise ValueError(
                f"semitones is {semitones}, must be {lowest} to {highest} for this score's pitches to "
                "stay within 0..127; give one of these"
            )
    moved = score.copy()
    for track in moved.tracks:
        if not track.is_drum:
            track.shift_pitch(semitones, inplace=True)
    moved.key_signatures = [Key.from_signature(mark).transposed(semitones).signature(mark.time) for mark in score.key_signatures]
    return moved


def transposition_range(score: Score) -> tuple[int, int]:
    """The least and greatest `semitones` that keep every part playable on its instrument: (<= 0, >= 0).

    The range of a part is its instrument's (see `instruments`), widened to what the part already plays.
    """
    lowest, highest = -MIDI_MAX, MIDI_MAX
    for track in score.tracks:
        if track.is_drum or not len(track.notes):
            continue
        pitches = track.notes.numpy()["pitch"]
        low, high = INSTRUMENT_RANGES[track.program]
        lowest = max(lowest, min(0, low - int(pitches.min())))
        highest = min(highest, max(0, high - int(pitches.max())))
    return (lowest, highest) if lowest > -MIDI_MAX or highest < MIDI_MAX else (0, 0)


def scale_tempo(score: Score, factor: float) -> Score:
    """The score played `factor` times as fast: its tempo marks are multiplied, its ticks stay.

    Where no mark holds at the start, the default of 120 quarters a minute is written out and scaled.

    Raises:
        ValueError: factor not above 0.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor is {factor}, must be above 0; 1.1 plays 10 % faster")
    scaled = score.copy()
    marks = [(mark.time, mark.mspq) for mark in score.tempos]
    if not marks or marks[0][0] > 0:
        marks.insert(0, (0, round(60e6 / DEFAULT_TEMPO_BPM)))
    # MIDI keeps a tempo as whole microseconds per quarter, in 24 bits
    scaled.tempos = [Tempo(time, mspq=min(2**24 - 1, max(1, round(mspq / factor)))) for time, mspq in marks]
    return scaled


def scale_velocity(score: Score, delta: int) -> Score:
    """The score with `delta` added to every velocity, kept within 1..127 (0 would end a note)."""
    changed = score.copy()
    for track in changed.tracks:
        notes = track.notes.numpy()
        velocities = np.clip(notes["velocity"].astype(np.int64) + delta, 1, MIDI_MAX).astype(np.int8)
        track.notes = NoteTickList.from_numpy(notes["time"], notes["duration"], notes["pitch"], velocities)
    return changed
