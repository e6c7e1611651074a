"""Random pieces for property tests: several tracks with drums, metre and tempo changes, triplets, off-grid times."""

import numpy as np
from symusic import Note, Score, Tempo, TimeSignature, Track

METRES = ((4, 4), (3, 4), (6, 8), (2, 2), (5, 8), (7, 16), (12, 8))


def random_score(seed: int) -> Score:
    """A piece of 1-3 sections in different metres."""
    rng = np.random.default_rng(seed)
    score = Score(480)
    end = 0
    for _ in range(rng.integers(1, 4)):
        numerator, denominator = METRES[rng.integers(len(METRES))]
        score.time_signatures.append(TimeSignature(end, numerator, denominator))
        end += int(rng.integers(1, 4)) * 1920 * numerator // denominator
    for time in sorted(rng.choice(end // 120, size=rng.integers(0, 3), replace=False).tolist()):
        score.tempos.append(Tempo(time * 120, qpm=float(rng.integers(40, 200))))
    for _ in range(rng.integers(1, 4)):
        drums = bool(rng.random() < 0.25)
        track = Track(program=0 if drums else int(rng.integers(128)), is_drum=drums)
        step = int(rng.choice([120, 160, 97]))
        for _ in range(rng.integers(1, 25)):
            time = int(rng.integers(end // step + 1)) * step
            duration = int(rng.choice([120, 160, 240, 480, 960, 6000]))
            track.notes.append(Note(time, duration, int(rng.integers(40, 80)), int(rng.integers(1, 128))))
        track.notes.sort()
        score.tracks.append(track)
    return score


def notes_of(score: Score) -> list[tuple[int, ...]]:
    """(program or -1, onset, pitch) of every note, sorted."""
    return sorted(
        (-1 if track.is_drum else track.program, note.time, note.pitch) for track in score.tracks for note in track.notes
    )


def tune(bars: str, *, metre: tuple[int, int] = (4, 4), program: int = 40) -> Score:
    """A tune of a letter for each bar: bars of one letter are equal, others share no note, and "-" is silent."""
    score, length = Score(480), 1920 * metre[0] // metre[1]
    score.time_signatures.append(TimeSignature(0, *metre))
    score.tempos.append(Tempo(0, qpm=120.0))
    score.tracks.append(Track(program=program))
    for number, letter in enumerate(bars):
        for beat in range(4 if letter != "-" else 0):
            pitch = 60 + (5 * (ord(letter) - ord("A")) + (beat * (ord(letter) - ord("A") + 2))) % 12
            score.tracks[0].notes.append(Note(number * length + beat * length // 4, length // 4, pitch, 64))
    return score
