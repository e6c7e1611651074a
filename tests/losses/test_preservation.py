"""Rhythm and harmony losses: zero at equality, blind to level, gradients that mend what is out of time or tune."""

import math

import pytest
import torch
from torch import Tensor

from etude.audio.chroma import mel_chroma_filterbank
from etude.audio.mel import MelContract
from etude.losses.harmony import chroma, chroma_loss
from etude.losses.rhythm import onset_envelope, onset_loss

CONTRACT = MelContract(n_mels=128)
BANK = mel_chroma_filterbank(CONTRACT)


def clicks(frames: list[int], *, length: int = 40, level: float = 1.0) -> Tensor:
    """A mel [1, 8, f] that jumps up at the frames and decays."""
    mel = torch.full((1, 8, length), -1.0)
    for frame in frames:
        for k in range(min(4, length - frame)):
            mel[..., frame + k] = torch.maximum(mel[..., frame + k], torch.tensor(-1 + level * 0.7**k))
    return mel


def tones(pitches: list[int], *, seconds: float = 0.5, gain: float = 0.3) -> Tensor:
    """Natural-log mel [1, m, f] of harmonic tones."""
    time = torch.arange(int(seconds * CONTRACT.sample_rate)) / CONTRACT.sample_rate
    samples = torch.zeros_like(time)
    for pitch in pitches:
        for partial in (1, 2, 3):
            samples += gain / partial / len(pitches) * torch.sin(2 * math.pi * partial * 440 * 2 ** ((pitch - 69) / 12) * time)
    return CONTRACT.log_mel(samples[None])


def test_envelope_by_hand() -> None:
    mel = torch.tensor([[[0.0, 2.0, 1.0, 1.0], [0.0, 0.0, 3.0, 0.0]]])  # rises: 1, 1.5, 0 (mean of two bands)
    torch.testing.assert_close(onset_envelope(mel, smoothing_frames=1), torch.tensor([[0.0, 1.0, 1.5, 0.0]]))
    smooth = onset_envelope(mel, smoothing_frames=3)
    torch.testing.assert_close(smooth, torch.tensor([[0.25, 0.875, 1.0, 0.375]]))


def test_onset_loss_is_zero_at_equality_and_blind_to_level() -> None:
    source = clicks([5, 15, 30])
    assert onset_loss(source, source).item() == pytest.approx(0, abs=1e-5)
    assert onset_loss(clicks([5, 15, 30], level=0.4) + 0.1, source).item() == pytest.approx(0, abs=1e-3)


def test_onset_loss_grows_with_displacement() -> None:
    source = clicks([10, 20])
    off = [onset_loss(clicks([10 + d, 20 + d]), source).item() for d in (0, 1, 2, 5)]
    assert off == sorted(off) and off[3] > 1 > off[1] > 0.1


def test_onset_loss_without_onsets_is_zero_for_the_source_and_one_for_the_fake_with_finite_gradients() -> None:
    silent, music = torch.full((1, 8, 40), -1.0), clicks([5, 15])
    assert onset_loss(music, silent).item() == 0
    fake = silent.clone().requires_grad_()
    loss = onset_loss(fake, music)
    loss.backward()
    assert loss.item() == pytest.approx(1) and torch.isfinite(fake.grad).all()  # type: ignore[arg-type]
    one_frame = torch.zeros(1, 8, 1)
    assert onset_loss(one_frame, one_frame).item() == 0


def test_descending_the_onset_loss_moves_a_late_onset() -> None:
    source, fake = clicks([10]), (clicks([11]) + 0.05 * torch.randn(1, 8, 40)).requires_grad_()
    optimizer = torch.optim.Adam([fake], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        onset_loss(fake, source).backward()
        optimizer.step()
    assert onset_loss(fake, source).item() < 0.05
    assert onset_envelope(fake).argmax().item() == onset_envelope(source).argmax().item()


def test_onset_gradient_does_not_enter_the_source() -> None:
    source = clicks([10]).requires_grad_()
    assert not onset_loss(clicks([12]), source).requires_grad


def test_smoothing_must_be_odd() -> None:
    with pytest.raises(ValueError, match="smoothing_frames is 2"):
        onset_envelope(torch.zeros(1, 2, 3), smoothing_frames=2)


@pytest.mark.parametrize("pitch", [72, 76, 79, 82])
def test_a_tone_is_heard_in_its_class(pitch: int) -> None:
    found = chroma(tones([pitch]), BANK)[0].mean(dim=-1)
    assert found.argmax().item() == pitch % 12


def test_chroma_loss_is_zero_at_equality_and_blind_to_level_and_octave_rises_with_wrong_notes() -> None:
    chord = tones([72, 76, 79])
    assert chroma_loss(chord, chord, filterbank_12m=BANK).item() == pytest.approx(0, abs=1e-5)
    assert chroma_loss(chord - 2, chord, filterbank_12m=BANK).item() == pytest.approx(0, abs=1e-5)
    octave = chroma_loss(tones([84, 88, 91]), chord, filterbank_12m=BANK).item()
    wrong = chroma_loss(tones([73, 78, 81]), chord, filterbank_12m=BANK).item()
    assert octave < 0.4 < 0.8 < wrong


def test_chroma_loss_survives_silence_and_wild_generators() -> None:
    silent = torch.full((1, 128, 6), math.log(CONTRACT.floor))
    fake = torch.full((1, 128, 6), 1000.0, requires_grad=True)
    for source in (silent, tones([72])[..., :6]):
        loss = chroma_loss(fake, source, filterbank_12m=BANK)
        (gradient,) = torch.autograd.grad(loss, fake)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_descending_the_chroma_loss_mends_a_wrong_note() -> None:
    source, fake = tones([72, 76]), tones([72, 78]).requires_grad_()
    before = chroma_loss(fake, source, filterbank_12m=BANK).item()
    optimizer = torch.optim.Adam([fake], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        chroma_loss(fake, source, filterbank_12m=BANK).backward()
        optimizer.step()
    after = chroma_loss(fake, source, filterbank_12m=BANK).item()
    assert after < 0.2 * before
