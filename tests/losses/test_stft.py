"""Multi-resolution STFT: zero at equality, the formula by numpy, gradients at silence."""

import numpy as np
import pytest
import torch

from etude.losses.stft import magnitude, multi_resolution_stft


def test_magnitude_is_numpys() -> None:
    samples = torch.randn(600)
    found = magnitude(samples[None], window=64, hop=16, n_fft=64)[0].numpy()
    padded = np.pad(samples.numpy(), 32, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    for frame in (0, 1, 17, found.shape[1] - 1):
        expected = np.abs(np.fft.rfft(padded[frame * 16 : frame * 16 + 64] * hann))
        np.testing.assert_allclose(found[:, frame], np.maximum(expected, 10**-3.5), rtol=1e-3, atol=1e-4)


def test_zero_at_equality_and_by_hand_for_a_gain() -> None:
    real = torch.randn(2, 4000)
    assert multi_resolution_stft(real, real).item() == 0
    # half the amplitude: convergence 1/2, log distance ln 2, at every resolution
    found = multi_resolution_stft(real / 2, real).item()
    assert found == pytest.approx(0.5 + np.log(2), abs=1e-3)


def test_each_sample_has_a_norm_of_its_own() -> None:
    real, fake = torch.randn(2, 4000) * torch.tensor([[1.0], [1e-1]]), torch.randn(2, 4000)
    alone = torch.stack([multi_resolution_stft(fake[i : i + 1], real[i : i + 1]) for i in range(2)]).mean()
    torch.testing.assert_close(multi_resolution_stft(fake, real), alone)


def test_gradient_is_finite_at_silence_and_leaves_the_real_alone() -> None:
    fake, real = torch.zeros(1, 4000, requires_grad=True), torch.randn(1, 4000, requires_grad=True)
    multi_resolution_stft(fake + 1e-3 * torch.randn(1, 4000), real).backward()
    assert torch.isfinite(fake.grad).all() and fake.grad.abs().sum() > 0 and real.grad is None  # type: ignore[arg-type, union-attr]
    silent = torch.zeros(1, 4000, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(multi_resolution_stft(silent, torch.zeros(1, 4000)), silent)[0]).all()


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="crop them"):
        multi_resolution_stft(torch.zeros(1, 4000), torch.zeros(1, 3000))
    with pytest.raises(ValueError, match="more than 1024"):
        multi_resolution_stft(torch.zeros(1, 1000), torch.zeros(1, 1000))
