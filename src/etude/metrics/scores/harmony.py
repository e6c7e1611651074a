"""Metrics of harmony: pitches that sound at the same time. Drums are left out; chords are weighted by their duration."""

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NoteArray

DISSONANT_CLASSES = (1, 2, 6)  # minor second/major seventh, major second/minor seventh, tritone


def polyphony(notes: NoteArray) -> float:
    """Mean number of different pitches that sound at a time, silence left out; >= 1, NaN without notes.

    sum over time of sounding pitches / time with a sounding pitch. Source: muspy `polyphony`.
    """
    sounding = notes.sounding
    total = sounding.ticks[sounding.polyphony > 0].sum()
    return float(sounding.ticks @ sounding.polyphony / total) if total else math.nan


def polyphony_rate(notes: NoteArray, *, threshold: int = 2) -> float:
    """Share of the piece's time in which more than `threshold` pitches sound, 0..1; NaN for an empty piece.

    Source: Dong et al., "MuseGAN", AAAI 2018 (polyphonicity); muspy `polyphony_rate`, whose code counts pitches
    above the threshold.
    """
    sounding = notes.sounding
    return float(sounding.ticks[sounding.polyphony > threshold].sum() / notes.end) if notes.end else math.nan


def interval_class_time(notes: NoteArray) -> NDArray[np.float64]:
    """Beats for which pairs of different pitches sound together, by interval class: [octave, 1, 2, 3, 4, 5, 6].

    Each pair of sounding pitches counts once for as long as both sound. Returns float64 [7].
    """
    sounding = notes.sounding
    counts = sounding.pitch_classes
    pairs = np.empty((7, len(counts)))
    pairs[0] = (counts * (counts - 1)).sum(axis=1) / 2
    for interval in range(1, 7):
        pairs[interval] = (counts * np.roll(counts, -interval, axis=1)).sum(axis=1)
    pairs[6] /= 2  # the tritone is its own inversion, so each pair was counted twice
    return pairs @ sounding.ticks / notes.ticks_per_beat


def dissonance_share(notes: NoteArray) -> float:
    """Share of simultaneous pitch pairs that are dissonant, weighted by time, 0..1; NaN if no two pitches sound together.

    Seconds, sevenths and tritones (interval classes 1, 2, 6) are dissonant. The fourth counts as consonant, since most
    fourths lie between upper voices.
    Source: Piston, "Harmony", 1941, ch. 1; the share is over time as in Harte et al.'s chord recall, not over events.
    """
    time = interval_class_time(notes)
    return float(time[list(DISSONANT_CLASSES)].sum() / time.sum()) if time.sum() > 0 else math.nan


def voice_lines(notes: NoteArray) -> NDArray[np.int64]:
    """Returns the highest sounding pitch of every pitched track in every segment: int64 [S, voices], -1 for a rest.

    Voices are the tracks that have pitched notes, in the order of the tracks.
    """
    notes, times = notes.pitched, notes.sounding.times
    voices, voice = np.unique(notes.track, return_inverse=True)
    lines = np.full((max(len(times) - 1, 0), len(voices)), -1, np.int64)
    first = np.searchsorted(times, notes.onset)
    spans = np.searchsorted(times, notes.onset + notes.duration) - first
    spans = np.where(notes.duration > 0, spans, 0)
    # One row per (note, segment): segment = first segment of the note + running index inside the note.
    within = np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
    np.maximum.at(lines, (np.repeat(first, spans) + within, np.repeat(voice, spans)), np.repeat(notes.pitch, spans))
    return lines


def parallel_share(notes: NoteArray, *, interval: int) -> float:
    """Share of simultaneous moves of two voices that are parallel fifths (7) or parallel octaves and unisons (0).

    Two voices (tracks, see `voice_lines`) move simultaneously if both change pitch at the same tick and sound before and
    after it. The move is parallel if both go in the same direction and the interval, modulo the octave, is `interval`
    before and after. Moves of all pairs of voices are pooled. 0..1; NaN if no two voices move simultaneously.

    Raises:
        ValueError: any other interval.

    Source: Fux, "Gradus ad Parnassum", 1725; counted over pairs of voices as in Huron, "Voice leading", 2016, ch. 2.
    """
    if interval not in (0, 7):
        raise ValueError(f"interval={interval} is not one of the parallels counted; give 7 (fifths) or 0 (octaves, unisons)")
    lines = voice_lines(notes)
    moves = np.diff(lines, axis=0)
    moving = (moves != 0) & (lines[1:] >= 0) & (lines[:-1] >= 0)
    joint = parallel = 0
    for one, other in combinations(range(lines.shape[1]), 2):
        both = moving[:, one] & moving[:, other]
        same_way = np.sign(moves[:, one]) == np.sign(moves[:, other])
        perfect = np.abs(lines[:, other] - lines[:, one]) % 12 == interval
        joint += int(both.sum())
        parallel += int((both & same_way & perfect[:-1] & perfect[1:]).sum())
    return parallel / joint if joint else math.nan
