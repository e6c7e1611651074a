"""Changes of the sound keep level, length and onsets, depend on the generator alone, and are what they say."""

import numpy as np
import pytest

from etude.audio.degradations import Samples, normalise_level
from etude.audio.recolouring import CHANGES, amplifier, chorus, equaliser, recolour, room

RATE = 16_000


def music(seconds: float = 2.0) -> Samples:
    """Chords of decaying partials, twice a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * time) / place for place, hertz in enumerate((220, 277, 330, 880, 2640), 1))
    return normalise_level((tones * np.exp(-(time % 0.5) * 4)).astype(np.float32))


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_recoloured_audio_has_its_level_length_and_generator() -> None:
    clean, kept = music(), music()
    changed = [recolour(clean, draws(seed), RATE) for seed in range(20)]
    assert np.array_equal(clean, kept) and np.array_equal(changed[3], recolour(clean, draws(3), RATE))
    assert all(one.shape == clean.shape and one.dtype == np.float32 and np.isfinite(one).all() for one in changed)
    level = np.sqrt(np.mean(np.square(clean, dtype=np.float64)))
    assert np.allclose([np.sqrt(np.mean(np.square(one, dtype=np.float64))) for one in changed], level, rtol=1e-3)
    assert sum(np.array_equal(one, clean) for one in changed) < 5  # one in 16 on average


@pytest.mark.parametrize("change", CHANGES)
def test_silence_stays_silence(change) -> None:  # type: ignore[no-untyped-def]
    assert np.abs(change(np.zeros(RATE, np.float32), draws(), RATE)).max() < 1e-9
    assert not recolour(np.zeros(RATE, np.float32), draws(), RATE).any()


def test_an_equaliser_changes_gains_and_no_phases() -> None:
    before, after = np.fft.rfft(music()), np.fft.rfft(equaliser(music(), draws(), RATE))
    loud = np.abs(before) > 1
    assert np.allclose(np.angle(after[loud] / before[loud]), 0, atol=1e-4)
    assert np.std(20 * np.log10(np.abs(after[loud] / before[loud]))) > 1


def test_a_room_lasts_and_begins_nothing_earlier() -> None:
    click = np.zeros(RATE, np.float32)
    click[4000] = 1
    after = room(click, draws(), RATE)
    assert not np.abs(after[:3999]).max() > 1e-6 and np.abs(after[4100:6000]).max() > 1e-4


def test_a_chorus_is_linear_and_moves_by_milliseconds() -> None:
    a, b = music(), draws(1).standard_normal(2 * RATE).astype(np.float32)
    together = chorus(a + b, draws(5), RATE)
    assert np.allclose(together, chorus(a, draws(5), RATE) + chorus(b, draws(5), RATE), atol=1e-5)
    click = np.zeros(RATE, np.float32)
    click[4000] = 1
    assert not chorus(click, draws(5), RATE)[4000 + round(0.035 * RATE) :].any()


def test_an_amplifier_is_odd_rising_and_flat_nowhere() -> None:
    ramp = np.linspace(-1, 1, 2001).astype(np.float32)
    after = amplifier(ramp, draws(), RATE)
    assert np.allclose(after, -after[::-1], atol=1e-6) and (np.diff(after) > 0).all()
