"""Control pieces with shuffled onsets, against which metrics of samples and of real music are compared."""

from collections.abc import Sequence

import numpy as np
from symusic import Score
from symusic.core import NoteTickList


def shuffle_onsets(score: Score, *, seed: int, grid_per_beat: int = 12) -> Score:
    """Moves every note to a random onset; pitches, durations, tracks and the length of the piece stay the same.

    Onsets are uniform over the grid positions at which the note still ends within the piece. A metric of the result
    depends on the statistics of pitch and duration alone.

    Args:
        score: any score in ticks; it is not changed.
        seed: the same seed gives the same result.
        grid_per_beat: positions per quarter note, >= 1. 12 holds triplets and sixteenths.

    Raises:
        ValueError: `grid_per_beat` below 1.
    """
    if grid_per_beat < 1:
        raise ValueError(f"grid_per_beat={grid_per_beat} is below 1; give positions per quarter note, for example 12")
    generator = np.random.default_rng(seed)
    shuffled, step = score.copy(), score.ticks_per_quarter / grid_per_beat
    arrays = [track.notes.numpy() for track in score.tracks]
    end = max((int((a["time"] + a["duration"]).max(initial=0)) for a in arrays), default=0)
    for track, notes in zip(shuffled.tracks, arrays, strict=True):
        places = np.maximum((end - notes["duration"]) / step, 0).astype(np.int64)
        onsets = (generator.integers(0, places + 1) * step).astype(np.int32)
        track.notes = NoteTickList.from_numpy(onsets, notes["duration"], notes["pitch"], notes["velocity"])
        track.notes.sort()
    return shuffled


def shuffled_control(scores: Sequence[Score], *, seed: int = 0) -> list[Score]:
    """Applies `shuffle_onsets` to every score, with a seed derived from `seed` and the index in the list."""
    return [
        shuffle_onsets(score, seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0])) for i, score in enumerate(scores)
    ]
