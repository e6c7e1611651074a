"""A passage of a score in four voices as cells of the grid that are missing, and back."""

from dataclasses import dataclass

import numpy as np
from symusic import Note, Score, Track

from etude.music.passages import END, Passage
from etude.tokens.satb import SatbGrid
from etude.tokens.satb_voices import on_grid, runs, voice_tracks


@dataclass(frozen=True)
class GridPassage:
    """The grid of a score whose passage is to be filled in.

    frames: MIDI pitches or -1 for a rest, int16 [f, 4]; those of missing and held cells are the old ones.
    missing: cells of which nothing is known, bool [f, 4].
    held: cells that go on with the cell before them, behind the passage's end, where the old note rang on, bool [f, 4].
    tracks: the score's track of each voice, soprano to bass.
    """

    frames: np.ndarray
    missing: np.ndarray
    held: np.ndarray
    tracks: tuple[int, ...]


def grid_passage(tokenizer: SatbGrid, score: Score, passage: Passage) -> GridPassage:
    """Returns the grid of a score with the cells of a passage missing.

    Raises: ValueError if the score is not in four voices within the tokenizer's range, or nothing sounds in the passage's bars.
    """
    try:
        frames = tokenizer.decode_frames(tokenizer.encode(score))
    except ValueError as error:
        raise ValueError(f"infill: {error}") from None
    missing, held = np.zeros(frames.shape, dtype=bool), np.zeros(frames.shape, dtype=bool)
    low_tick, high_tick = passage.span(score)
    steps = tokenizer.steps_per_beat
    low = on_grid(low_tick, score.ticks_per_quarter, steps)
    high = len(frames) if high_tick == END else min(on_grid(high_tick, score.ticks_per_quarter, steps), len(frames))
    tracks = voice_tracks(score)
    for voice, index in enumerate(tracks):
        if passage.tracks is not None and index not in passage.tracks:
            continue
        missing[low:high, voice] = True
        for note in score.tracks[index].notes:
            start, end = (on_grid(tick, score.ticks_per_quarter, steps) for tick in (note.time, note.time + note.duration))
            if note.time < low_tick:
                missing[low:end, voice] &= frames[low:end, voice] != note.pitch
            elif note.time < high_tick and end > high:
                held[high:end, voice] = frames[high:end, voice] == note.pitch
            elif note.time >= high_tick:
                held[start:end, voice] = False
    if not missing.any():
        raise ValueError("infill: no note can begin in these bars; choose others")
    return GridPassage(frames, missing, held, tracks)


def tracks_filled(tokenizer: SatbGrid, score: Score, passage: Passage, grid: GridPassage, frames: np.ndarray) -> dict[int, Track]:
    """Returns the notes that filled frames [f, 4] put into the passage: index of a track -> its notes, from the passage's start.

    They have the median velocity of the track.
    """
    low, _ = passage.span(score)
    step = score.ticks_per_quarter / tokenizer.steps_per_beat
    found = {}
    for voice, index in enumerate(grid.tracks):
        if passage.tracks is not None and index not in passage.tracks:
            continue
        track = Track()
        velocity = int(np.median(score.tracks[index].notes.numpy()["velocity"]))
        written = grid.missing[:, voice] | grid.held[:, voice]
        edges = np.flatnonzero(np.diff(written.astype(np.int8), prepend=0, append=0))
        for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            for start, end, pitch in runs(frames[first:stop, voice]):
                begin, over = (round((first + frame) * step) for frame in (start, end))
                track.notes.append(Note(max(0, begin - low), over - max(begin, low), pitch, velocity))
        found[index] = track
    return found
