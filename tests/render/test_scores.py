"""Rendering: what is played is heard, at its time and pitch, on its channel; pictures and files come out whole."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread
from symusic import ControlChange, Note, Score, Tempo, TimeSignature, Track

from etude.render.scores import MAX_RENDER_SECONDS, PEAK, piano_roll, render, write_audio

SAMPLE_RATE = 22050


def make(*tracks: tuple[int, bool, list[tuple[int, int, int]]]) -> Score:
    """Tracks as (program, is drum, notes as (onset, duration, pitch) in ticks of 480 a quarter)."""
    score = Score(480)
    for program, is_drum, notes in tracks:
        track = Track(program=program, is_drum=is_drum)
        track.notes.extend([Note(onset, duration, pitch, 100) for onset, duration, pitch in notes])
        score.tracks.append(track)
    return score


def loudness(samples: np.ndarray, start: float, stop: float) -> float:
    return float(np.sqrt((samples[:, round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)] ** 2).mean()))


def pitch_hz(samples: np.ndarray, start: float, stop: float) -> float:
    """The strongest frequency between two times."""
    part = samples[:, round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)].sum(axis=0)
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), n=8 * len(part)))
    return float(spectrum.argmax() * SAMPLE_RATE / (8 * len(part)))


def test_notes_sound_at_their_time_and_pitch() -> None:
    score = make((73, False, [(480, 480, 69), (1440, 480, 81)]))  # a flute, at 120 quarters a minute
    samples = render(score, sample_rate=SAMPLE_RATE)
    assert samples.dtype == np.float32 and samples.shape[0] == 2
    assert 1.9 < samples.shape[1] / SAMPLE_RATE < 1.9 + 4.2
    assert np.abs(samples).max() == pytest.approx(PEAK, rel=1e-5)
    assert loudness(samples, 0, 0.49) == 0 and loudness(samples, 0.6, 0.9) > 0.05 and loudness(samples, 1.6, 1.9) > 0.05
    assert pitch_hz(samples, 0.6, 0.95) == pytest.approx(440, rel=0.01)
    assert pitch_hz(samples, 1.6, 1.95) == pytest.approx(880, rel=0.01)


def test_tempo_marks_move_the_notes() -> None:
    score = make((73, False, [(480, 480, 69)]))
    score.tempos.append(Tempo(0, 60))
    samples = render(score, sample_rate=SAMPLE_RATE)
    assert loudness(samples, 0, 0.99) == 0 and loudness(samples, 1.2, 1.9) > 0.05


def test_rendering_is_reproducible_and_the_tail_is_silent() -> None:
    score = make((0, False, [(0, 480, 60)]), (40, False, [(0, 480, 67)]))
    first, second = render(score, sample_rate=SAMPLE_RATE), render(score, sample_rate=SAMPLE_RATE)
    assert np.array_equal(first, second)
    assert np.abs(first[:, -100:]).max() < 0.01


def test_programs_and_drums_sound_different() -> None:
    sounds = [
        render(make((program, is_drum, [(0, 480, 60)])), sample_rate=SAMPLE_RATE)[:, :8000]
        for program, is_drum in ((0, False), (40, False), (0, True))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(sounds[one] - sounds[other]).max() > 0.1


def test_every_one_of_forty_tracks_is_heard() -> None:
    score = make(*((73, False, [(240 * i, 200, 60 + i % 24)]) for i in range(40)))
    samples = render(score, sample_rate=SAMPLE_RATE)
    assert all(loudness(samples, 0.25 * i + 0.1, 0.25 * i + 0.2) > 0.02 for i in range(40))


def test_a_note_shorter_than_a_sample_ends() -> None:
    score = make((73, False, [(0, 1, 69), (4800, 480, 69)]))
    score.tempos.append(Tempo(0, mspq=10000))
    score.tempos.append(Tempo(2, mspq=500000))
    samples = render(score, sample_rate=SAMPLE_RATE)
    assert loudness(samples, 3, 4) < 0.01 < loudness(samples, 5.2, 5.4)


def test_controls_are_obeyed() -> None:
    score = make((73, False, [(0, 960, 69), (960, 960, 69)]))
    score.tracks[0].controls.append(ControlChange(960, 7, 10))  # channel volume
    samples = render(score, sample_rate=SAMPLE_RATE)
    assert loudness(samples, 1.4, 1.9) < 0.2 * loudness(samples, 0.4, 0.9)


def test_what_cannot_be_rendered_is_refused(tmp_path: Path) -> None:
    score = make((0, False, [(0, 480, 60)]))
    with pytest.raises(ValueError, match="no notes"):
        render(Score(480))
    with pytest.raises(ValueError, match="sample_rate is 100, must be 8000 to 192000"):
        render(score, sample_rate=100)
    with pytest.raises(ValueError, match=f"at most {MAX_RENDER_SECONDS}; trim"):
        render(make((0, False, [(480 * 4000, 480, 60)])))
    (tmp_path / "bad.sf2").write_bytes(b"not a soundfont")
    with pytest.raises(ValueError, match=r"bad.sf2, which can't be read; give an .sf2 file"):
        render(score, soundfont=tmp_path / "bad.sf2")


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 1e-4), (".flac", 1e-4), (".mp3", 0.1), (".ogg", 0.1)])
def test_audio_files_hold_what_was_written(tmp_path: Path, suffix: str, tolerance: float) -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    samples = 0.5 * np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 330 * time)]).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    write_audio(path, samples, SAMPLE_RATE)
    read, sample_rate = soundfile.read(path, always_2d=True)
    assert sample_rate == SAMPLE_RATE and read.shape[1] == 2
    assert np.abs(np.abs(np.fft.rfft(read[:, 0]))[400:480].argmax() + 400 - 440) <= 2
    assert np.abs(np.abs(read[5000:15000]).max() - 0.5) < tolerance


def test_audio_that_clips_or_has_another_suffix_is_refused(tmp_path: Path) -> None:
    for samples in (np.full((2, 10), 1.5), np.full((2, 10), np.nan)):
        with pytest.raises(ValueError, match=r"within \[-1, 1\]"):
            write_audio(tmp_path / "a.wav", samples, SAMPLE_RATE)
    with pytest.raises(ValueError, match=r"suffix must be \.wav"):
        write_audio(tmp_path / "a.aiff", np.zeros((2, 10)), SAMPLE_RATE)


def test_piano_roll_shows_the_colour_of_every_track(tmp_path: Path) -> None:
    score = make((0, False, [(0, 1920, 60), (1920, 1920, 64)]), (40, False, [(0, 3840, 72)]), (0, True, [(0, 960, 36)]))
    score.time_signatures.append(TimeSignature(0, 4, 4))
    for track in score.tracks:
        track.notes = type(track.notes)([Note(n.time, n.duration, n.pitch, 127) for n in track.notes])
    path = tmp_path / "roll.png"
    piano_roll(score, path, title="two bars of $5")
    pixels = (imread(path)[:, :, :3].reshape(-1, 3) * 255).round().astype(int)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    found = {tuple(colour): count for colour, count in zip(colours.tolist(), counts.tolist(), strict=True)}
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert found.get(colour, 0) > 500


def test_piano_roll_of_a_long_piece_stays_a_page_and_of_none_is_refused(tmp_path: Path) -> None:
    piano_roll(make((0, False, [(1920 * bar, 480, 60) for bar in range(400)])), tmp_path / "long.png")
    height, width, _ = imread(tmp_path / "long.png").shape
    assert 1000 < width < 2000 and height < 5000
    with pytest.raises(ValueError, match="no notes"):
        piano_roll(Score(480), tmp_path / "none.png")
