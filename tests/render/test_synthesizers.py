"""FluidSynth, the system's program, plays what tinysoundfont plays; where it is not installed, the error says so."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from symusic import ControlChange, Score

from etude.audio.mel import MelContract
from etude.metrics.audio.mel_features import onset_strength, waveform_chroma_correlation, waveform_chroma_similarity
from etude.render.scores import PEAK, render
from etude.render.synthesizers import (
    TAIL_SECONDS,
    _channel_groups,
    check_synthesizer,
    default_soundfont,
    synthesizer_version,
)
from tests.render.test_scores import SAMPLE_RATE, loudness, make, pitch_hz

with_fluidsynth = pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="needs the program fluidsynth")


def chorale() -> Score:
    """Eight chords in four voices, of uneven lengths, with an upbeat of silence, on piano."""
    chords = [(60, 55, 52, 48), (62, 57, 53, 50), (64, 60, 55, 48), (65, 60, 57, 53),
              (67, 62, 59, 43), (65, 60, 57, 41), (62, 59, 55, 43), (60, 55, 52, 36)]  # fmt: skip
    lengths = [480, 480, 720, 240, 960, 240, 480, 1440]
    starts = 240 + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    voices = [[(int(at), length, chord[v]) for at, length, chord in zip(starts, lengths, chords, strict=True)] for v in range(4)]
    return make(*((0, False, voice) for voice in voices))


def both(score: Score, **options: Any) -> list[np.ndarray]:
    return [render(score, sample_rate=SAMPLE_RATE, synthesizer=s, **options) for s in ("tinysoundfont", "fluidsynth")]


def without(program: tuple[int, int], folder: Path) -> Path:
    """The default soundfont with the preset (bank, program) moved to another bank."""
    data = bytearray(default_soundfont().read_bytes())
    start = data.index(b"phdr") + 8
    for record in range(start, start + int.from_bytes(data[start - 4 : start], "little"), 38):  # its headers are 38 bytes long
        number, bank = (int.from_bytes(data[record + at : record + at + 2], "little") for at in (20, 22))
        if (bank, number) == program:
            data[record + 22] = 5
    path = folder / "less.sf2"
    path.write_bytes(data)
    return path


# --- everywhere ---


def test_without_the_program_the_error_names_it_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for act in (lambda: check_synthesizer("fluidsynth"), lambda: render(chorale(), synthesizer="fluidsynth")):
        with pytest.raises(ValueError, match=r"needs the program fluidsynth.*install it.*synthesizer=tinysoundfont") as caught:
            act()
        assert "\n" not in str(caught.value)
    check_synthesizer("tinysoundfont")
    assert render(chorale(), sample_rate=8000).any()


def test_another_synthesizer_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="synthesizer=timidity is not one of tinysoundfont, fluidsynth"):
        render(chorale(), synthesizer="timidity")  # type: ignore[arg-type]


def test_a_program_that_fails_is_an_error_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fluidsynth"
    for script, says in (("echo no disk >&2; exit 3", r"ended with 3 \(no disk\)"), ("exit 0", "wrote no sound")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ValueError, match=says):
            render(chorale(), synthesizer="fluidsynth")


def test_every_part_has_a_channel_and_drums_the_tenth() -> None:
    parts = [(0, i in (3, 20)) for i in range(40)]
    rounds = _channel_groups(parts)
    assert sorted(part for channels in rounds for part in channels) == list(range(40))
    for channels in rounds:
        assert len(set(channels.values())) == len(channels) and max(channels.values()) < 16
        assert all((channel == 9) == parts[part][1] for part, channel in channels.items())


# --- where the program is installed ---


@with_fluidsynth
def test_onsets_line_up_with_tinysoundfonts() -> None:
    contract = MelContract(sample_rate=SAMPLE_RATE, n_fft=512, hop_length=128, n_mels=40)
    mels = [contract.log_mel(torch.from_numpy(samples[:, : 5 * SAMPLE_RATE])).mean(0) for samples in both(chorale())]
    rises = [onset_strength(mel) - onset_strength(mel).mean() for mel in mels]
    lag = int(np.correlate(*rises, mode="full").argmax()) - (len(rises[1]) - 1)
    assert abs(lag) * contract.hop_length / SAMPLE_RATE < 0.02


@with_fluidsynth
def test_harmony_is_tinysoundfonts() -> None:
    one, other = (samples[:, : 5 * SAMPLE_RATE].mean(0) for samples in both(chorale()))
    assert waveform_chroma_similarity(one, other, sample_rate=SAMPLE_RATE) > 0.9
    assert waveform_chroma_correlation(one, other, sample_rate=SAMPLE_RATE) > 0.8


@with_fluidsynth
def test_the_contract_is_tinysoundfonts() -> None:
    score = make((73, False, [(480, 480, 69), (1440, 480, 81)]))  # a flute, at 120 quarters a minute
    samples = both(score)[1]
    assert samples.dtype == np.float32 and samples.shape[0] == 2 and samples.flags.c_contiguous
    assert 2.0 < samples.shape[1] / SAMPLE_RATE <= 2.0 + TAIL_SECONDS + 0.01
    assert np.abs(samples).max() == pytest.approx(PEAK, rel=1e-5)
    assert np.abs(samples[:, -100:]).max() < 0.01
    assert loudness(samples, 0, 0.49) < 1e-5 and loudness(samples, 0.6, 0.9) > 0.05 and loudness(samples, 1.6, 1.9) > 0.05
    assert pitch_hz(samples, 0.6, 0.95) == pytest.approx(440, rel=0.01)
    assert pitch_hz(samples, 1.6, 1.95) == pytest.approx(880, rel=0.01)


@with_fluidsynth
def test_fluidsynth_is_reproducible_and_has_a_version() -> None:
    first, second = (both(chorale())[1] for _ in range(2))
    assert np.array_equal(first, second)
    assert synthesizer_version("fluidsynth")[0].isdigit()


@with_fluidsynth
def test_drums_programs_and_controls_arrive() -> None:
    notes = [(0, 960, 60), (960, 960, 60)]
    flute, violin, drums = (
        both(make((program, is_drum, notes)))[1] for program, is_drum in ((73, False), (40, False), (73, True))
    )
    for one, other in ((flute, violin), (flute, drums), (violin, drums)):
        assert np.abs(one[:, :8000] - other[:, :8000]).max() > 0.1
    score = make((73, False, notes))
    score.tracks[0].controls.append(ControlChange(960, 7, 10))  # channel volume
    quieter = both(score)[1]
    assert loudness(quieter, 1.4, 1.9) < 0.2 * loudness(quieter, 0.4, 0.9)


@with_fluidsynth
def test_a_held_pedal_ends_with_the_score() -> None:
    score = make((19, False, [(0, 480, 60)]))  # an organ: with the pedal it sounds for ever
    score.tracks[0].controls.append(ControlChange(0, 64, 127))
    samples = both(score)[1]
    assert loudness(samples, 0.1, 0.4) > 0.05
    assert np.abs(samples[:, -100:]).max() < 0.01


@with_fluidsynth
def test_every_one_of_forty_tracks_is_heard_with_its_program() -> None:
    score = make(*((73 if i % 2 else 56, i in (5, 25), [(240 * i, 200, 60 + i % 24)]) for i in range(40)))
    samples = both(score)[1]
    assert all(loudness(samples, 0.25 * i + 0.05, 0.25 * i + 0.2) > 0.005 for i in range(40))
    assert all(
        pitch_hz(samples, 0.25 * i + 0.06, 0.25 * i + 0.22) == pytest.approx(440 * 2 ** ((60 + i % 24 - 69) / 12), rel=0.03)
        for i in range(1, 40, 2)
        if i not in (5, 25)
    )


@with_fluidsynth
def test_a_soundfont_that_is_damaged_or_lacks_a_program_is_refused(tmp_path: Path) -> None:
    for content in (b"not a soundfont", default_soundfont().read_bytes()[:1_000_000]):
        (tmp_path / "bad.sf2").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.sf2, which can't be read; give an .sf2 file"):
            render(chorale(), soundfont=tmp_path / "bad.sf2", synthesizer="fluidsynth")
    with pytest.raises(ValueError, match=r"can't be read"):
        render(chorale(), soundfont=tmp_path / "nowhere.sf2", synthesizer="fluidsynth")
    less = without((0, 40), tmp_path)
    for synthesizer in ("tinysoundfont", "fluidsynth"):
        with pytest.raises(ValueError, match="lacks program 40; give a General-MIDI one"):
            render(make((40, False, [(0, 480, 60)])), soundfont=less, synthesizer=synthesizer)  # type: ignore[arg-type]
    assert render(make((41, False, [(0, 480, 60)])), soundfont=less, synthesizer="fluidsynth").any()


@with_fluidsynth
def test_a_rate_that_fluidsynth_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_rate is 192000, with synthesizer=fluidsynth it must be 8000 to 96000"):
        render(chorale(), sample_rate=192000, synthesizer="fluidsynth")
