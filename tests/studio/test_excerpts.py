"""Excerpts give nothing away: they have the same length, loudness and size, and begin and are rounded alike."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from etude.audio.loudness import LoudnessMeter
from etude.music.score import read_score, trim
from etude.studio.excerpts import Cutter, common_loudness, rounded
from etude.studio.pieces import Piece, constant, read_folder, sounding_seconds
from etude.studio.recordings import HeldRecording
from etude.studio.sources import Source
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.songs import song
from tests.studio.conftest import tune, write_real

DRAW = np.random.default_rng(0)
LONE = Source("run", Path("run"), [], [])


def piece_of(score: object, name: str = "a") -> Piece:
    return Piece(f"{name}.mid", name, name, None, constant(score), rate=None, seconds=sounding_seconds(score))  # type: ignore[arg-type]


def recording(samples: np.ndarray, rate: int) -> Piece:
    held = HeldRecording(torch.from_numpy(samples.astype(np.float32)), rate)
    return Piece("a.wav", "a", "a", None, constant(held), rate=rate, seconds=len(samples) / rate)


def loudness_of(wav: bytes) -> float:
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    meter = LoudnessMeter(rate)
    meter.push(torch.from_numpy(samples.T.copy()))
    return meter.loudness()


def test_all_excerpts_of_scores_have_the_same_size_and_loudness(tmp_path: Path) -> None:
    pieces = [*read_folder(write_real(tmp_path, count=2), scores=True, seed=0), piece_of(tune(9, velocity=25))]
    excerpts = [Cutter(1.5).cut(piece, LONE, real=False, draw=DRAW) for piece in pieces]
    loudness = common_loudness(excerpts)
    files = [excerpt.wav(loudness) for excerpt in excerpts]
    assert len({len(file) for file in files}) == 1 and len({file[:44] for file in files}) == 1
    assert [loudness_of(file) for file in files] == pytest.approx([loudness] * 3, abs=0.1)
    with wave.open(io.BytesIO(files[0])) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (66_150, 44_100, 2)
    samples = np.abs(soundfile.read(io.BytesIO(files[0]))[0])
    assert samples.max() < 1 and samples[-1].max() < 1e-3 < samples[:2000].max()  # faded out, and sounding from the start


def test_a_peak_that_would_clip_makes_all_softer() -> None:
    rate, draw = 8000, np.random.default_rng(1)
    clicks = draw.normal(size=2 * rate) * 0.002
    clicks[::1000] = 1.0
    steady = draw.normal(size=2 * rate) * 0.2
    excerpts = [Cutter(2, rate=rate).cut(recording(each, rate), LONE, real=False, draw=DRAW) for each in (clicks, steady)]
    loudness = common_loudness(excerpts)
    assert loudness == excerpts[0].lufs < -20
    assert [loudness_of(each.wav(loudness)) for each in excerpts] == pytest.approx([loudness] * 2, abs=0.2)


def test_excerpts_begin_with_the_bar_of_the_first_note() -> None:
    excerpt = Cutter(1.5).cut(piece_of(tune(1, first_bar=3)), LONE, real=False, draw=DRAW)
    same = Cutter(1.5).cut(piece_of(tune(1)), LONE, real=False, draw=DRAW)
    assert excerpt.start_seconds == 0 and np.array_equal(excerpt.samples, same.samples)


def test_anywhere_is_at_any_bar_line_with_enough_music_after_it() -> None:
    long = piece_of(tune(1, bars=6))  # bars begin at 0, 2, ..., 10 s; the last note ends at 11.9 s
    cutter = Cutter(5, start="anywhere")
    starts = {cutter.cut(long, LONE, real=False, draw=np.random.default_rng(seed), dry=True).start_seconds for seed in range(40)}
    assert starts == {0, 2, 4, 6}
    again = cutter.cut(long, LONE, real=False, draw=DRAW, at=4.0)
    moved = Cutter(5).cut(piece_of(trim(tune(1, bars=6), first_bar=2)), LONE, real=False, draw=DRAW)
    assert again.start_seconds == 4 and np.array_equal(again.samples, moved.samples)


def test_what_is_too_short_silent_or_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"it is 5\.9 s long, shorter than an excerpt of 8 s"):
        Cutter(8).cut(piece_of(tune(1)), LONE, real=False, draw=DRAW)
    with pytest.raises(ValueError, match="it is silent"):
        Cutter(1, rate=8000).cut(recording(np.zeros(16_000), 8000), LONE, real=False, draw=DRAW)
    with pytest.raises(ValueError, match=r"it is 1\.0 s long, shorter than an excerpt of 2 s"):
        Cutter(2, rate=8000).cut(recording(np.ones(8000), 8000), LONE, real=False, draw=DRAW)
    grid = Source("run", Path("run"), [], [], tokenizer=SatbGrid(genres=[]), tempo_bpm=120)
    five = song(1)
    five.tracks.append(tune(2, bars=6).tracks[0])
    with pytest.raises(ValueError, match=r"the tokenizer of run can't represent it \("):
        Cutter(1.5).cut(piece_of(five), grid, real=True, draw=DRAW)


def test_real_scores_are_rounded_as_the_tokenizer_writes_them(tmp_path: Path) -> None:
    loose = song(3)
    for track in loose.tracks:  # a human touch that no grid keeps
        track.notes = [
            note.shift_time(int(DRAW.integers(0, 9))).shift_velocity(int(DRAW.integers(-3, 3))) for note in track.notes
        ]
        track.notes.sort()
    path = tmp_path / "loose.mid"
    loose.dump_midi(path)
    grid = Source("run", Path("run"), [], [], tokenizer=SatbGrid(genres=[]), tempo_bpm=95.0)
    written = rounded(read_score(path), grid, seconds=None)
    assert {note.time % 120 for track in written.tracks for note in track.notes} == {0}
    assert len({note.velocity for track in written.tracks for note in track.notes}) == 1
    assert [round(mark.qpm) for mark in written.tempos] == [95]  # that of the generated music, since the grid has none
    remi = Source("run", Path("run"), [], [], tokenizer=MidiTokTokenizer(genres=[]), tempo_bpm=95.0)
    once = rounded(read_score(path), remi, seconds=None)
    twice = rounded(once, remi, seconds=None)
    assert [list(track.notes) for track in once.tracks] == [list(track.notes) for track in twice.tracks]
    assert [round(mark.qpm) for mark in once.tempos] != [95]  # REMI writes the tempo of the piece


def test_recordings_begin_with_their_first_sound_at_one_rate_with_one_channel(tmp_path: Path) -> None:
    rate, tone = 44_100, 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * 44_100) / 44_100)
    stereo = np.stack([np.concatenate([np.zeros(rate), tone])] * 2, axis=1)
    for name, data in (("late", stereo), ("exact", stereo[rate : 3 * rate])):
        soundfile.write(tmp_path / f"{name}.wav", data, rate)
    exact, late = read_folder(tmp_path, scores=False, seed=0)
    cutter = Cutter(2.0, rate=16_000)
    first, second = (cutter.cut(piece, LONE, real=False, draw=DRAW) for piece in (exact, late))
    assert first.samples.shape == second.samples.shape == (1, 32_000)
    assert (first.start_seconds, second.start_seconds) == (0, pytest.approx(1.0, abs=0.05))
    spectrum = np.abs(np.fft.rfft(second.samples[0]))
    assert np.argmax(spectrum) / 2 == pytest.approx(440, abs=1)


def test_a_missing_soundfont_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"soundfont is .*gone\.sf2, which can't be read; give an \.sf2 file"):
        Cutter(1, soundfont=tmp_path / "gone.sf2").check()
    Cutter(1).check()
