"""The streamed loudness is the recommendation's."""

import math
from pathlib import Path

import pytest
import torch
import torchaudio

from etude.audio.files import read_audio
from etude.audio.loudness import LoudnessMeter


def measured(samples: torch.Tensor, rate: int, size: int = 10_007) -> float:
    meter = LoudnessMeter(rate)
    for block in samples.split(size, dim=1):
        meter.push(block)
    return meter.loudness()


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_a_full_scale_sine_of_997_hz_has_the_recommendations_level(rate: int) -> None:
    tone = torch.sin(2 * math.pi * 997 * torch.arange(5 * rate, dtype=torch.float64) / rate).float()[None]
    assert measured(tone, rate) == pytest.approx(-3.01, abs=0.1)
    assert measured(torch.cat([tone, tone]), rate) == pytest.approx(0, abs=0.1)
    assert measured(0.1 * tone, rate) == pytest.approx(-23.01, abs=0.1)


def test_real_music_measures_as_torchaudio_does(shared_data: Path) -> None:
    for path in sorted((shared_data / "audio").glob("*.ogg")):
        samples, rate = read_audio(path)
        assert measured(samples, rate) == pytest.approx(torchaudio.functional.loudness(samples, rate).item(), abs=0.5), path


def test_the_size_of_blocks_does_not_matter() -> None:
    samples = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0))
    assert measured(samples, 16_000, 123) == pytest.approx(measured(samples, 16_000, 40_000), abs=1e-6)


def test_silent_parts_are_gated_out() -> None:
    sound = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([sound, torch.zeros(1, 320_000)], 1)
    assert measured(padded, 16_000) == pytest.approx(measured(sound, 16_000), abs=0.5)


def test_short_sounds_have_a_loudness_and_silence_has_none() -> None:
    tone = torch.sin(2 * math.pi * 997 * torch.arange(16_000) / 16_000)[None]
    assert measured(tone[:, :3000], 16_000) == pytest.approx(-3.7, abs=1)
    assert measured(torch.zeros(1, 16_000), 16_000) == -math.inf
    assert LoudnessMeter(16_000).loudness() == -math.inf


def test_the_bass_channel_does_not_count() -> None:
    samples = torch.zeros(6, 16_000)
    samples[3] = 0.5
    assert measured(samples, 16_000) == -math.inf
