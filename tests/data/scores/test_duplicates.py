"""Duplicates are found whatever key, tempo and instrument."""

import numpy as np
import pytest
from symusic import Score

from etude.data.scores.duplicates import content_hash, groups, melody, sketch
from tests.data.scores.pieces import melody as tune
from tests.data.scores.pieces import quartet


def group_of(scores: list[Score]) -> list[int]:
    return groups(np.array([content_hash(s) for s in scores]), np.stack([sketch(s) for s in scores])).tolist()


def disguised(score: Score, semitones: int) -> Score:
    """Another key, tempo, instrument and dynamics, and the note values doubled."""
    copy = score.shift_pitch(semitones).shift_velocity(-20)
    copy.tempos[0].qpm = 171.0
    for track in copy.tracks:
        track.program = 73
        for note in track.notes:
            note.time *= 2
            note.duration *= 2
    return copy


@pytest.mark.parametrize("make", [tune, quartet])
@pytest.mark.parametrize("semitones", [-7, 1, 5])
def test_a_disguised_copy_lands_with_its_original(make: object, semitones: int) -> None:
    scores = [make(seed) for seed in range(30)]  # type: ignore[operator]
    scores.append(disguised(scores[11], semitones))
    group = group_of(scores)
    assert group[30] == group[11] == 11
    assert len(set(group)) == 30


def test_a_varied_copy_is_near_enough() -> None:
    scores = [tune(seed, notes=80) for seed in range(20)]
    varied = tune(4, notes=80)
    for at in (13, 50):
        varied.tracks[0].notes[at].pitch += 1
    group = group_of([*scores, varied])
    assert group[20] == 4


def test_groups_are_transitive() -> None:
    base = np.arange(64, dtype=np.uint32)
    near = np.where(np.arange(64) < 32, base, base + 1000).astype(np.uint32)
    far = np.where(np.arange(64) < 32, base + 5000, base + 1000).astype(np.uint32)
    assert groups(np.array(["a", "b", "c"]), np.stack([base, near, far])).tolist() == [0, 0, 0]
    assert groups(np.array(["a", "c"]), np.stack([base, far])).tolist() == [0, 1]


def test_equal_content_unites_without_sketches() -> None:
    unlike = np.random.default_rng(0).integers(0, 2**32, (3, 64), dtype=np.uint32)
    assert groups(np.array(["x", "y", "x"]), unlike).tolist() == [0, 1, 0]


def test_the_melody_is_the_highest_voice() -> None:
    score = quartet(3)
    onsets, pitches = melody(score)
    top = score.tracks[0].notes.numpy()
    assert np.array_equal(onsets, top["time"])
    assert np.array_equal(pitches, top["pitch"])
