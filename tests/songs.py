"""A small folder of made-up but musical scores, for tests that train on files."""

from pathlib import Path

import numpy as np
from symusic import KeySignature, Note, Score, Tempo, TimeSignature, Track

SCALE = np.array([0, 2, 4, 5, 7, 9, 11])


def song(seed: int, *, bars: int = 6, voices: int = 4) -> Score:
    """Four voices in a major key: a random walk over the scale in quarters, ending on the tonic triad."""
    rng = np.random.default_rng(seed)
    tonic = int(rng.integers(-4, 4))
    score = Score(480)
    score.tempos.append(Tempo(0, 100.0))
    score.time_signatures.append(TimeSignature(0, 4, 4))
    score.key_signatures.append(KeySignature(0, 0, 0))
    for voice, (centre, final) in enumerate(zip((72, 67, 60, 48), (12, 7, 4, 0), strict=False)):
        if voice >= voices:
            break
        track = Track(name="SATB"[voice], program=52)
        degree = 0
        for beat in range(4 * bars):
            degree = int(np.clip(degree + rng.integers(-2, 3), -5, 5))
            pitch = centre + tonic + int(SCALE[degree % 7]) + 12 * (degree // 7)
            if beat == 4 * bars - 1:
                pitch = 60 - 12 * (voice == 3) + tonic + final
            length = 480
            if rng.random() < 0.2 and beat < 4 * bars - 1:
                track.notes.append(Note(beat * 480 + 240, 240, pitch - 1 + 2 * int(rng.integers(2)), 80))
                length = 240
            track.notes.append(Note(beat * 480, length, pitch, 80))
        track.notes.sort()
        score.tracks.append(track)
    return score


def write_songs(folder: Path, *, count: int = 12, bars: int = 6) -> Path:
    """`count` MIDI files in two genres."""
    for number in range(count):
        path = folder / ("classical" if number % 2 else "folk") / f"song{number:02d}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        song(number, bars=bars).dump_midi(path)
    return folder
