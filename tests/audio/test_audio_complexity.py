"""Difficulties of audio: nothing in silence, more where more happens, whatever the loudness."""

import numpy as np
import pytest

from etude.audio.complexity import complexity
from etude.audio.mel import MelContract

CONTRACT = MelContract()
RATE = CONTRACT.sample_rate / CONTRACT.hop_length


def notes(pitches: list[int], seconds: float = 0.5) -> np.ndarray:
    """A band for each note, one after the other, each dying away: log mels [f, m]."""
    frames = round(seconds * RATE)
    mel_fm = np.full((frames * len(pitches), CONTRACT.n_mels), np.log(CONTRACT.floor))
    for place, pitch in enumerate(pitches):
        part = mel_fm[place * frames : (place + 1) * frames]
        part[:, pitch] = -np.arange(frames) / frames * 3
    return mel_fm


def test_silence_and_a_lasting_sound_are_easy() -> None:
    silence = np.full((300, CONTRACT.n_mels), np.log(CONTRACT.floor))
    assert set(complexity(silence, CONTRACT).values()) == {0}
    tone = silence.copy()
    tone[:, 20] = 0.0
    found = complexity(tone, CONTRACT)
    for name in ("rhythmic_flux", "rhythmic_irregularity", "melodic_motion", "structural_novelty", "harmonic_change"):
        assert found[f"complexity_{name}"] == pytest.approx(0, abs=1e-9), name
    assert all(np.isfinite(value) for value in [*found.values(), *complexity(tone[:1], CONTRACT).values()])


def test_each_axis_rises_with_what_it_is_named_after() -> None:
    random = np.random.default_rng(0)
    steady, busy = notes([20] * 24), notes([20] * 96, seconds=0.125)
    scale = notes([20, 24, 28, 32] * 6)
    wild = notes(random.integers(10, 50, 24).tolist())
    uneven = np.concatenate([notes([20], seconds=s) for s in random.uniform(0.15, 0.9, 24)])
    order = {
        "rhythmic_flux": (steady, busy), "rhythmic_irregularity": (steady, uneven), "harmonic_entropy": (steady, scale),
        "harmonic_change": (steady, wild), "melodic_motion": (steady, wild), "structural_novelty": (scale, wild),
    }  # fmt: skip
    for name, (easy, hard) in order.items():
        assert complexity(easy, CONTRACT)[f"complexity_{name}"] < complexity(hard, CONTRACT)[f"complexity_{name}"], name


def test_louder_is_not_harder() -> None:
    wild = notes(np.random.default_rng(1).integers(10, 50, 24).tolist()) + 1
    quiet, loud = complexity(wild, CONTRACT), complexity(wild + 2, CONTRACT)
    assert quiet == pytest.approx(loud)
