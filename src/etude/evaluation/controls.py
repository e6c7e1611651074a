"""Controls that stand beside real music and samples, so that a figure means something."""

from collections.abc import Sequence

import numpy as np
from symusic import Score
from symusic.core import NoteTickList


def shuffle_onsets(score: Score, *, seed: int, grid_per_beat: int = 12) -> Score:
    """Move every note to a random onset: the same notes, durations, tracks and length, without time.

    Onsets are uniform over the positions of the grid at which the note still ends inside the piece. Whatever a metric
    says of this music it says of pitch and duration statistics alone.

    Args:
        score: any score in ticks; it is not changed.
        seed: seed of numpy's generator; the same seed gives the same music.
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
    """`shuffle_onsets` of every score, each with a seed of its own drawn from `seed` and its place in the list."""
    return [
        shuffle_onsets(score, seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0])) for i, score in enumerate(scores)
    ]
