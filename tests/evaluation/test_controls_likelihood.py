"""Controls keep what they promise; likelihoods convert as arithmetic says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.evaluation.controls import shuffle_onsets, shuffled_control
from etude.evaluation.likelihood import likelihood, sixteenths
from etude.metrics.scores import rhythm
from etude.metrics.scores.notes import NoteArray
from tests.metrics.scores.scores import build, scores


@settings(max_examples=50, deadline=None)
@given(scores(), st.integers(0, 5))
def test_shuffling_moves_onsets_alone(score, seed):
    before = NoteArray.from_score(score)
    shuffled = shuffle_onsets(score, seed=seed)
    after = NoteArray.from_score(shuffled)
    assert NoteArray.from_score(score).onset.tolist() == before.onset.tolist()
    kept = [sorted(zip(n.track, n.pitch, n.duration, n.velocity, strict=True)) for n in (before, after)]
    assert kept[0] == kept[1]
    assert after.end <= before.end
    assert np.array_equal(NoteArray.from_score(shuffle_onsets(score, seed=seed)).onset, after.onset)


def test_shuffled_onsets_are_on_the_grid_and_groove_falls():
    bars = build([[(480 * 4 * bar + 480 * beat, 480, 60) for bar in range(30) for beat in range(4)]], ticks_per_quarter=480)
    other = shuffled_control([bars, bars], seed=3)
    onsets = [NoteArray.from_score(score).onset for score in other]
    assert all(np.all(onset % 40 == 0) for onset in onsets)
    assert onsets[0].tolist() != onsets[1].tolist()
    real, shuffled = (rhythm.groove_consistency(NoteArray.from_score(s).resample(12)) for s in (bars, other[0]))
    assert real > 0.99 > 0.9 > shuffled
    with pytest.raises(ValueError, match="grid_per_beat=0"):
        shuffle_onsets(bars, seed=0, grid_per_beat=0)


def test_rates_divide_the_same_sum():
    rates = likelihood([10.0, 30.0], tokens_p=[20, 60], frames_p=[5, 15], notes_p=[4, 6])
    assert rates["nats_per_token"] == 0.5
    assert rates["nats_per_frame"] == 2.0
    assert rates["bits_per_note"] == pytest.approx(4 / math.log(2))
    assert rates["nats_per_token_stderr"] == pytest.approx(0.0)


def test_pieces_of_one_length_have_the_ordinary_standard_error():
    nats = np.array([1.0, 2.0, 4.0])
    rates = likelihood(nats, tokens_p=[2, 2, 2], frames_p=[1, 1, 1], notes_p=[1, 1, 1])
    assert rates["nats_per_token_stderr"] == pytest.approx((nats / 2).std(ddof=1) / math.sqrt(3))
    assert math.isnan(likelihood([1.0], tokens_p=[1], frames_p=[1], notes_p=[1])["nats_per_token_stderr"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_p": [1]}, "tokens_p has 1 entries, nats_p has 2"),
        ({"notes_p": [0, 0]}, "notes_p sums to 0"),
    ],
)
def test_refusals(change, message):
    units = {"tokens_p": [1, 1], "frames_p": [1, 1], "notes_p": [1, 1]} | change
    with pytest.raises(ValueError, match=message):
        likelihood([1.0, 1.0], **units)
    with pytest.raises(ValueError, match="nats_p is empty"):
        likelihood([], tokens_p=[], frames_p=[], notes_p=[])


@pytest.mark.parametrize(("beats", "frames"), [(4.0, 16), (0.26, 2), (0.25, 1), (0.0, 1)])
def test_sixteenths(beats, frames):
    assert sixteenths(beats) == frames
