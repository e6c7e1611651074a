"""Onsets are where they were put, matches are the most there can be, pitch classes are those played."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from etude.audio.mel import MelContract
from etude.evaluation.style_comparison import COLUMNS, compare_mels
from etude.metrics.audio.mel_features import (
    chroma_correlation,
    chroma_similarity,
    count_matches,
    onset_agreement,
    onset_strength,
    pick_onsets,
    segment_features,
    waveform_chroma,
    waveform_chroma_correlation,
    waveform_chroma_similarity,
)

CONTRACT = MelContract(n_mels=128)
RATE = CONTRACT.sample_rate / CONTRACT.hop_length
TIMES = [0.5, 0.9, 1.3, 1.5, 1.7, 2.3]


def song(times: list[float], pitches: list[int], *, seconds: float = 3.0, decay: float = 0.3) -> np.ndarray:
    """Plucked tones with three partials, float64 [n]."""
    time = np.arange(int(seconds * CONTRACT.sample_rate)) / CONTRACT.sample_rate
    samples = np.zeros_like(time)
    for start, pitch in zip(times, pitches, strict=True):
        since = np.maximum(time - start, 0)
        envelope = (time >= start) * np.minimum(since / 0.005, 1) * np.exp(-since / decay)
        for partial in (1, 2, 3):
            samples += 0.2 / partial * envelope * np.sin(2 * np.pi * partial * 440 * 2 ** ((pitch - 69) / 12) * since)
    return samples * np.clip((seconds - time) / 0.4, 0, 1)  # a tone cut off would be a click, that is an onset


def mel(samples: np.ndarray) -> np.ndarray:
    return CONTRACT.log_mel(torch.from_numpy(samples).float()).double().numpy()


PITCHES = [60, 64, 67, 72, 67, 64]
MEL = mel(song(TIMES, PITCHES))


def test_segment_features_by_hand() -> None:
    values = np.array([[0.0, 2, 4, 4, 9], [1, 1, 3, 5, 9]])
    np.testing.assert_allclose(segment_features(values, segment_frames=2), [[1, 1, 1, 0], [4, 4, 0, 1]])
    assert segment_features(values, segment_frames=99).shape == (1, 4)


def test_onsets_are_where_they_were_put() -> None:
    found = pick_onsets(onset_strength(MEL), frame_rate=RATE)
    assert len(found) == len(TIMES)
    np.testing.assert_allclose(found, TIMES, atol=0.04)


def test_silence_has_no_onsets() -> None:
    silent = np.full((128, 100), math.log(1e-5))
    assert len(pick_onsets(onset_strength(silent), frame_rate=RATE)) == 0
    assert math.isnan(onset_agreement(silent, silent, frame_rate=RATE))
    assert onset_agreement(silent, MEL[:, :100], frame_rate=RATE) == 0


@settings(max_examples=60)
@given(a=st.lists(st.floats(0, 2), max_size=8), b=st.lists(st.floats(0, 2), max_size=8))
def test_matches_are_the_most_there_can_be(a: list[float], b: list[float]) -> None:
    first, second = np.array(sorted(a)), np.array(sorted(b))
    near = np.abs(first[:, None] - second[None]) <= 0.2 + 1e-9
    expected = int((maximum_bipartite_matching(csr_matrix(near)) >= 0).sum()) if near.size else 0
    assert count_matches(first, second, window=0.2) == expected


def test_agreement_by_hand() -> None:
    assert onset_agreement(MEL, MEL, frame_rate=RATE) == 1
    assert onset_agreement(MEL + 0.7, MEL, frame_rate=RATE) == 1  # blind to level
    moved = mel(song([0.5, 0.9, 1.3 + 0.1, 1.5, 1.7, 2.3], PITCHES))
    assert onset_agreement(moved, MEL, frame_rate=RATE) == pytest.approx(2 * 5 / 12)
    fewer = mel(song(TIMES[:3], PITCHES[:3]))
    assert onset_agreement(fewer, MEL, frame_rate=RATE) == pytest.approx(2 * 3 / 9)
    assert onset_agreement(MEL, fewer, frame_rate=RATE) == onset_agreement(fewer, MEL, frame_rate=RATE)


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
@pytest.mark.parametrize("pitch", [57, 64, 69, 83])
def test_waveform_chroma_hears_the_tone(pitch: int, sample_rate: int) -> None:
    time = np.arange(sample_rate) / sample_rate
    found = waveform_chroma(0.5 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time), sample_rate=sample_rate).mean(axis=1)
    assert found.argmax() == pitch % 12 and found.max() > 0.6 * found.sum()


def test_chroma_similarity_is_one_for_the_same_notes_however_loud_and_less_for_others() -> None:
    same, other = song(TIMES, PITCHES), song(TIMES, [p + 1 for p in PITCHES])
    octave = song(TIMES, [p + 12 for p in PITCHES])
    for similarity in (
        lambda x: chroma_similarity(mel(x), MEL, contract=CONTRACT),
        lambda x: waveform_chroma_similarity(x, song(TIMES, PITCHES), sample_rate=16_000),
    ):
        assert similarity(same) == pytest.approx(1, abs=1e-6)
        assert similarity(0.3 * same) == pytest.approx(1, abs=1e-3)
        assert similarity(other) + 0.1 < similarity(octave)
    assert waveform_chroma_similarity(other, same, sample_rate=16_000) < 0.5


def test_chroma_correlation_is_blind_to_level_and_colour_and_zero_for_strangers() -> None:
    rng = np.random.default_rng(0)
    melodies = [song(list(np.arange(10) * 0.3), rng.integers(60, 84, 10).tolist()) for _ in range(12)]
    colour = np.linspace(-1, 1, 128)[:, None]
    expected = [chroma_correlation(mel(x) - 0.7 + colour, mel(x), contract=CONTRACT) for x in melodies]
    other = [chroma_correlation(mel(x), mel(y), contract=CONTRACT) for x, y in pairwise(melodies)]
    assert min(expected) > 0.95 and abs(np.mean(other)) < 0.1
    heard = [waveform_chroma_correlation(x, y, sample_rate=16_000) for x, y in pairwise(melodies)]
    assert abs(np.mean(heard)) < 0.1
    assert waveform_chroma_correlation(0.1 * melodies[0], melodies[0], sample_rate=16_000) == pytest.approx(1, abs=1e-4)
    still = np.tile(MEL[:, 40:41], (1, 50))
    assert math.isnan(chroma_correlation(still, still, contract=CONTRACT))


def test_chroma_counts_frames_in_which_the_truth_sounds() -> None:
    quiet = np.full((128, 188), math.log(1e-5))
    assert chroma_similarity(quiet, MEL, contract=CONTRACT) < 1
    assert math.isnan(waveform_chroma_similarity(np.ones(9000), np.zeros(9000), sample_rate=16_000))
    assert waveform_chroma_similarity(np.zeros(9000), np.ones(9000), sample_rate=16_000) in (0, pytest.approx(0))


def test_a_row_holds_the_metrics_of_its_parts() -> None:
    fake = mel(song(TIMES[:4], PITCHES[:4]))
    row = compare_mels([(fake, MEL), (MEL, MEL)], contract=CONTRACT, segment_frames=64)
    assert row.keys() == COLUMNS.keys()
    assert row["l1_nats"] == pytest.approx(np.abs(fake - MEL).mean() / 2)
    assert row["onset_f"] == pytest.approx((2 * 4 / 10 + 1) / 2)
    assert row["frechet_bel2"] > 0 and 0 < row["chroma"] < 1


def test_the_truth_scores_perfectly_and_a_song_without_onsets_is_left_out_of_their_mean() -> None:
    silent = np.full((128, 188), math.log(1e-5))
    row = compare_mels([(MEL, MEL), (silent, silent)], contract=CONTRACT, segment_frames=64)
    assert row["l1_nats"] == row["mcd_db"] == 0 and row["onset_f"] == 1 and row["chroma_r"] == pytest.approx(1)
    assert row["frechet_bel2"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no song"):
        compare_mels([], contract=CONTRACT)
