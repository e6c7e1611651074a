"""Rolls are aligned with frames: a note at t seconds lights the frame of t, and sustains to the frame of its end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, Tempo, Track

from etude.audio.mel import MelContract
from etude.music.roll import DRUMS, frames_of, instruments_of, note_table, piano_roll, played_by, stand_in

CONTRACT = MelContract()
FRAME = CONTRACT.hop_length / CONTRACT.sample_rate


def table(*rows: tuple[float, float, int, int, int]) -> np.ndarray:
    return np.array(rows, np.float64)


@settings(max_examples=60)
@given(onset=st.floats(0, 3), length=st.floats(0.001, 2), pitch=st.integers(0, 127), velocity=st.integers(1, 127))
def test_a_note_lights_the_frame_of_its_onset_and_all_up_to_its_end(
    onset: float, length: float, pitch: int, velocity: int
) -> None:
    roll = piano_roll(table((onset, onset + length, 40, pitch, velocity)), (25, 40), start=0, num_frames=400, frame_seconds=FRAME)
    lit = np.argwhere(roll[0])
    assert lit.shape == (1, 3) and lit[0, :2].tolist() == [1, pitch]
    assert lit[0, 2] * FRAME <= onset + 1e-6 and onset < (lit[0, 2] + 1) * FRAME
    sounding = np.flatnonzero(roll[1, 1, pitch])
    assert sounding[0] == lit[0, 2] and (np.diff(sounding) == 1).all()
    assert sounding[-1] * FRAME < onset + length <= (sounding[-1] + 1) * FRAME + 1e-6
    assert roll.max() == pytest.approx(velocity / 127) and roll[:, 0].max() == 0


def test_the_frame_is_where_the_mel_is_loudest() -> None:
    """A click at t is in the middle of the frame that a note at t lights."""
    for frame in (5, 20):
        samples = np.zeros(40 * CONTRACT.hop_length, np.float32)
        at = frame * CONTRACT.hop_length + CONTRACT.hop_length // 2
        samples[at] = 1.0
        loudest = int(CONTRACT.log_mel(torch.from_numpy(samples)).mean(0).argmax())
        first, _ = frames_of(table((at / CONTRACT.sample_rate, 9.0, 0, 60, 64)), frame_seconds=FRAME)
        assert loudest == frame == first[0]


def test_a_roll_of_a_part_is_a_part_of_the_roll() -> None:
    rng = np.random.default_rng(0)
    onsets = rng.uniform(0, 4, 60)
    notes = np.stack([onsets, onsets + rng.uniform(0.05, 1, 60), rng.choice([0, 32], 60), rng.integers(40, 80, 60),
                      rng.integers(1, 128, 60)], axis=1)  # fmt: skip
    whole = piano_roll(notes, (0, 32), start=0, num_frames=320, frame_seconds=FRAME)
    part = piano_roll(notes, (0, 32), start=101, num_frames=90, frame_seconds=FRAME)
    np.testing.assert_array_equal(part, whole[..., 101:191])


def test_of_two_notes_in_a_frame_the_louder_counts() -> None:
    both = piano_roll(table((0, 1, 0, 60, 50), (0, 1, 0, 60, 100)), (0,), start=0, num_frames=9, frame_seconds=FRAME)
    assert both.max() == pytest.approx(100 / 127) and both[0, 0, 60, 0] == both.max()


def test_the_table_of_a_score_has_its_seconds_instruments_and_drums() -> None:
    score = Score(480)
    score.tempos = [Tempo(0, 60.0), Tempo(480, 120.0)]
    for program, drums, onset in ((40, False, 960), (0, True, 0)):
        track = Track(program=program, is_drum=drums)
        track.notes.append(Note(onset, 480, 60, 90))
        score.tracks.append(track)
    np.testing.assert_allclose(note_table(score), [[0.0, 1.0, DRUMS, 60, 90], [1.5, 2.0, 40, 60, 90]], atol=1e-6)
    assert instruments_of([note_table(score)]) == (40, DRUMS)


def test_a_score_without_notes_is_told() -> None:
    with pytest.raises(ValueError, match="the score has no notes"):
        note_table(Score(480))


@pytest.mark.parametrize(
    ("instrument", "known", "expected"),
    [
        (40, (40, 41), 40),
        (42, (0, 41, 47), 41),
        (52, (0, 40), 40),
        (DRUMS, (0, 40), None),
        (7, (DRUMS,), None),
        (30, (25, 66), 25),
    ],
)
def test_a_stand_in_is_of_the_family_or_the_nearest(instrument: int, known: tuple[int, ...], expected: int | None) -> None:
    assert stand_in(instrument, known) == expected


def test_what_is_played_by_others_is_said() -> None:
    notes = table((0, 1, 41, 60, 90), (0, 1, DRUMS, 36, 90), (0, 1, 40, 62, 90))
    found, told = played_by(notes, (40,))
    assert told == ["Viola played by Violin", "Drums left out"] and found[:, 2].tolist() == [40, 40] and notes[0, 2] == 41
    assert played_by(notes[2:], (40,))[1] == []
