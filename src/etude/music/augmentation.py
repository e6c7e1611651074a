"""Augmentation of scores: transposition, tempo and velocity. Key signatures and tempo marks change with the notes.

Every function returns a new score and does not change its argument.
"""

from __future__ import annotations

import numpy as np
from symusic import Score, Tempo
from symusic.core import NoteTickList

from etude.music.instruments import INSTRUMENT_RANGES
from etude.music.score import DEFAULT_TEMPO_BPM, num_notes
from etude.music.theory import Key, estimate_key

MIDI_MAX = 127


def transpose(score: Score, semitones: int) -> Score:
    """Returns the score transposed by `semitones`, key signatures included; drum tracks stay the same.

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


def transposed_to(score: Score, key: Key) -> Score | None:
    """Returns the score transposed the shorter way, so that `key` is its estimated key.

    None if its estimated mode is the other one, if a pitch would leave 0..127, if it has no notes or no unique key.
    """
    found = estimate_key(score)
    if found.mode != key.mode or num_notes(score) == 0:
        return None
    semitones = (key.tonic - found.tonic + 5) % 12 - 5  # -5 .. 6
    try:
        moved = transpose(score, semitones)
    except ValueError:
        return None
    return moved if estimate_key(moved) == key else None


def transposition_range(score: Score) -> tuple[int, int]:
    """Returns the lowest and highest transposition that keeps every part in the range of its instrument: (<= 0, >= 0).

    The range of a part is that of its instrument (see `instruments`), extended to the notes that the part already has.
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
    """Returns the score played `factor` times as fast: tempo marks are multiplied, ticks stay the same.

    If there is no tempo mark at the start, the default of 120 quarters per minute is scaled and written there.

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
    """Returns the score with `delta` added to every velocity, limited to 1..127 (0 would mean note-off)."""
    changed = score.copy()
    for track in changed.tracks:
        notes = track.notes.numpy()
        velocities = np.clip(notes["velocity"].astype(np.int64) + delta, 1, MIDI_MAX).astype(np.int8)
        track.notes = NoteTickList.from_numpy(notes["time"], notes["duration"], notes["pitch"], velocities)
    return changed
