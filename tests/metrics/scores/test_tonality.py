"""Keys, endings and what lies outside, against values worked out by hand."""

import math

import numpy as np
import pytest

from etude.metrics.scores import tonality
from etude.metrics.scores.notes import NoteArray
from etude.music.theory import MAJOR_PROFILE, Key
from tests.metrics.scores.scores import build

C_MAJOR, A_MINOR = Key(0, "major"), Key(9, "minor")


def notes_of(*tracks, **options):
    return NoteArray.from_score(build(list(tracks), **options))


def ends(*pitches, key=C_MAJOR):
    return tonality.ends_on_tonic_triad(notes_of([(0, 48, 55), *((48, 48, pitch) for pitch in pitches)]), key=key)


def test_out_of_key():
    notes = notes_of([(0, 1, p) for p in (60, 62, 66, 68)], [(0, 1, 61)], drums={1})
    assert tonality.out_of_key_share(notes, key=C_MAJOR) == 0.5
    assert tonality.out_of_key_share(notes, key=A_MINOR) == 0.5
    assert math.isnan(tonality.out_of_key_share(notes_of([]), key=C_MAJOR))


def test_endings():
    assert ends(48, 55, 64, 72)
    assert ends(48, 64, 72)  # the fifth may be missing
    assert ends(45, 60, 64, key=A_MINOR)
    assert ends(45, 61, 64, key=A_MINOR)  # the Picardy third
    assert not ends(48, 55, 72)  # no third
    assert not ends(52, 60, 67)  # first inversion
    assert not ends(47, 55, 62)  # the dominant
    assert not ends(48, 55, 64, 70)  # a seventh
    assert not tonality.ends_on_tonic_triad(notes_of([]), key=C_MAJOR)


def test_the_last_chord_is_what_sounds_at_the_end():
    held = notes_of([(0, 48, 48), (0, 24, 65), (24, 24, 64)], [(47, 1, 36)], drums={1})
    assert tonality.last_chord(held).tolist() == [48, 64]


def test_clarity_of_a_profile_of_a_cluster_and_of_nothing():
    profile = [(0, int(100 * weight), 60 + i) for i, weight in enumerate(np.roll(MAJOR_PROFILE, 4))]
    assert tonality.key_clarity(notes_of(profile)) == pytest.approx(1.0)
    assert tonality.key_clarity(notes_of([(0, 12, 60 + i) for i in range(12)])) == 0.0
    assert math.isnan(tonality.key_clarity(notes_of([])))
