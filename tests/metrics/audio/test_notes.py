"""Notes: what the decoder makes of posteriors, matching by hand, and that the network hears what was played."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from symusic import Note, Score, Tempo, Track

from etude.metrics.audio import note_finder
from etude.metrics.audio.note_finder import NoteFinder
from etude.metrics.audio.notes import decode_notes, note_f1
from etude.render.scores import render

RATE = 100.0


def posteriors(notes: Sequence[tuple[int, int, int]], *, frames: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Of keys that sound from one frame to another, with an onset each."""
    sounding, onsets = np.zeros((frames, 88)), np.zeros((frames, 88))
    for start, stop, key in notes:
        sounding[start:stop, key] = 0.9
        onsets[start, key] = 0.9
    return sounding, onsets


def test_notes_are_where_the_posteriors_have_them() -> None:
    sounding, onsets = posteriors([(10, 60, 40), (30, 90, 44), (60, 100, 40)])
    notes = decode_notes(sounding, onsets, frame_rate=RATE)
    np.testing.assert_allclose(notes, [[0.1, 0.6, 61], [0.3, 0.9, 65], [0.6, 1.0, 61]])


def test_gaps_are_filled_and_what_is_short_is_no_note() -> None:
    sounding, onsets = posteriors([(10, 60, 40), (100, 104, 50)])
    sounding[30:38, 40] = 0.1  # 80 ms
    np.testing.assert_allclose(decode_notes(sounding, onsets, frame_rate=RATE), [[0.1, 0.6, 61]])
    sounding[20:45, 40] = 0.1  # too long
    notes = decode_notes(sounding, onsets, frame_rate=RATE)
    np.testing.assert_allclose(notes, [[0.1, 0.2, 61], [0.45, 0.6, 61]])


def test_a_slow_attack_is_a_note_unless_a_neighbour_is_louder() -> None:
    sounding, onsets = posteriors([(10, 60, 40)])
    onsets[:] = 0
    sounding[10:60, 41] = 0.4
    np.testing.assert_allclose(decode_notes(sounding, onsets, frame_rate=RATE), [[0.1, 0.6, 61]])
    with pytest.raises(ValueError, match="shapes"):
        decode_notes(sounding, onsets[1:], frame_rate=RATE)


def test_f1_by_hand() -> None:
    truth = np.array([[0.0, 0.5, 60], [0.5, 1.0, 62], [1.0, 1.5, 64], [1.0, 1.5, 60]])
    found = np.array([[0.04, 0.1, 60], [0.56, 1.0, 62], [1.0, 1.5, 65], [1.02, 1.1, 60], [0.98, 1.1, 60]])
    assert note_f1(found, truth) == pytest.approx(2 * 2 / 9)  # 60 at 0 and at 1; one of two candidates there
    assert note_f1(found, truth, window_seconds=0.06) == pytest.approx(2 * 3 / 9)
    assert note_f1(truth, truth) == 1 and note_f1(np.empty((0, 3)), truth) == 0
    assert math.isnan(note_f1(np.empty((0, 3)), np.empty((0, 3))))


def played(program: int, pitches: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """A chord every 0.4 s: mono samples at 16 kHz, and the notes."""
    score = Score(480)
    score.tempos.append(Tempo(0, 120))
    track = Track(program=program)
    for number, chord in enumerate(pitches):
        for pitch in chord:
            track.notes.append(Note(384 * number, 360, pitch, 90))
    score.tracks.append(track)
    truth = [(0.4 * number, 0.4 * number + 0.375, pitch) for number, chord in enumerate(pitches) for pitch in chord]
    return render(score, sample_rate=16_000).mean(0), np.array(truth)


@pytest.mark.parametrize(("program", "least"), [(0, 0.75), (24, 0.9), (40, 0.9)])
def test_the_network_hears_what_is_played(program: int, least: float) -> None:
    pytest.importorskip("onnxruntime")
    samples, truth = played(program, [[60], [64], [67, 72], [65], [62, 69], [59], [60, 64], [55], [57], [60, 67]])
    notes = NoteFinder()(samples, sample_rate=16_000)
    assert note_f1(notes, truth) > least
    transposed = truth + np.array([0, 0, 1])
    assert note_f1(notes, transposed) < 0.3  # the octave above and below would do no better


def test_windows_leave_no_seam() -> None:
    """A sound later by a whole frame has the same posteriors a frame later, wherever the windows lie."""
    pytest.importorskip("onnxruntime")
    samples, _ = played(0, [[60], [64, 67], [72], [65, 69], [62], [60]])
    finder, shift = NoteFinder(), 70
    wave = np.interp(np.arange(len(samples) * 22_050 // 16_000) * 16_000 / 22_050, np.arange(len(samples)), samples)
    sounding, _ = finder.posteriors(wave, sample_rate=22_050)
    later, _ = finder.posteriors(np.pad(wave, (shift * 256, 0)), sample_rate=22_050)
    assert len(sounding) == -(-len(wave) // 256)
    np.testing.assert_allclose(later[shift + 40 : 200 + shift], sounding[40:200], atol=0.12)
    assert np.abs(later[shift + 40 : 200 + shift] - sounding[40:200]).mean() < 2e-3


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(note_finder, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps basic-pitch onnxruntime flatbuffers"):
        NoteFinder()
