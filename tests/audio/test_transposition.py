"""Transposing mels: tones move to where a transposed tone is, nothing moves at 0, and gradients flow."""

import math

import pytest
import torch

from etude.audio.mel import MelContract
from etude.audio.transposition import band_centres, transpose_bands

CONTRACT = MelContract(n_mels=128)
CENTRES = band_centres(CONTRACT)


def tone(hertz: float) -> torch.Tensor:
    """Natural-log mels [1, m, f] of half a second of a sine."""
    time = torch.arange(8000) / CONTRACT.sample_rate
    return CONTRACT.log_mel(0.5 * torch.sin(2 * math.pi * hertz * time))[None]


def test_centres_rise_within_the_range() -> None:
    assert (CENTRES.diff() > 0).all() and CENTRES[0] > CONTRACT.f_min - 20 and CENTRES[-1] < CONTRACT.f_max


@pytest.mark.parametrize("semitones", [-7.0, -2.5, 0.0, 4.0, 12.0])
def test_a_tone_moves_to_where_the_transposed_tone_is(semitones: float) -> None:
    moved = transpose_bands(tone(880.0), torch.tensor([semitones]), centres_m=CENTRES)
    true = tone(880.0 * 2 ** (semitones / 12))
    highest = [int(mel.exp().mean(-1).argmax()) for mel in (moved, true)]
    assert abs(highest[0] - highest[1]) <= 1


def test_rows_have_their_own_intervals_and_zero_changes_nothing() -> None:
    mel = torch.randn(3, 128, 5)
    moved = transpose_bands(mel, torch.tensor([0.0, 3.0, -3.0]), centres_m=CENTRES)
    assert torch.allclose(moved[0], mel[0], atol=1e-5) and not torch.allclose(moved[1], mel[1], atol=0.1)
    alone = transpose_bands(mel[2:], torch.tensor([-3.0]), centres_m=CENTRES)
    assert torch.equal(moved[2:], alone)


def test_a_spectrum_that_is_linear_in_frequency_is_transposed_exactly_within_the_centres() -> None:
    line = CENTRES[None, :, None].expand(1, -1, 2) / 1000
    moved = transpose_bands(line, torch.tensor([5.0]), centres_m=CENTRES)
    wanted = (CENTRES / 2 ** (5 / 12)).clamp(min=float(CENTRES[0])) / 1000
    assert torch.allclose(moved[0, :, 0], wanted, atol=1e-4)


def test_gradients_flow_and_one_band_stays() -> None:
    mel = torch.randn(2, 128, 4, requires_grad=True)
    transpose_bands(mel, torch.tensor([2.0, -2.0]), centres_m=CENTRES).sum().backward()
    assert mel.grad is not None and float(mel.grad.sum()) == pytest.approx(2 * 128 * 4, rel=1e-4)  # weights sum to 1
    one = torch.randn(1, 1, 3)
    assert torch.equal(transpose_bands(one, torch.tensor([4.0]), centres_m=torch.tensor([500.0])), one)
