"""Laws of the mel contract."""

import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.audio.mel import MelContract

CONTRACT = MelContract()


def noise(length: int, *, channels: int = 1) -> Tensor:
    return 0.1 * torch.randn(channels, length, generator=torch.Generator().manual_seed(length))


@given(length=st.integers(1, 5000))
@settings(max_examples=30, deadline=None)
def test_frames_are_samples_over_hop_rounded_up(length: int) -> None:
    frames = math.ceil(length / 256)
    assert CONTRACT.num_frames(length) == frames
    assert CONTRACT.log_mel(noise(length, channels=2)).shape == (2, 64, frames)
    assert CONTRACT.spectrum(noise(length)).shape == (1, 513, frames)


@pytest.mark.parametrize("contract", [CONTRACT, MelContract(n_mels=80, norm=None, mel_scale="htk", hop_length=200, n_fft=800)])
def test_values_are_torchaudios(contract: MelContract) -> None:
    samples = noise(20 * contract.hop_length)
    padding = (contract.n_fft - contract.hop_length) // 2
    reference = torchaudio.transforms.MelSpectrogram(
        contract.sample_rate, contract.n_fft, hop_length=contract.hop_length, f_min=contract.f_min, f_max=contract.f_max,
        n_mels=contract.n_mels, power=1.0, center=False, norm=contract.norm, mel_scale=contract.mel_scale,
    )  # fmt: skip
    expected = reference(torch.nn.functional.pad(samples, (padding, padding), mode="reflect")).clamp(min=contract.floor).log()
    torch.testing.assert_close(contract.log_mel(samples), expected, atol=1e-4, rtol=0)


def test_silence_is_the_floor() -> None:
    mel = CONTRACT.log_mel(torch.zeros(1, 3000))
    assert torch.equal(mel, torch.full_like(mel, CONTRACT.floor).log())
    torch.testing.assert_close(CONTRACT.normalise(mel), -torch.ones_like(mel))


def test_the_affine_map_has_its_inverse() -> None:
    values = torch.linspace(-14, 4, 50)
    torch.testing.assert_close(CONTRACT.denormalise(CONTRACT.normalise(values)), values)
    assert CONTRACT.normalise(torch.tensor(CONTRACT.ceiling)).item() == pytest.approx(1)
    one_unit = CONTRACT.denormalise(torch.tensor(1.0)) - CONTRACT.denormalise(torch.tensor(0.0))
    assert one_unit.item() == pytest.approx(CONTRACT.scale, rel=1e-5)


@given(first=st.integers(0, 20), count=st.integers(5, 20))
@settings(max_examples=20, deadline=None)
def test_frames_of_a_chunk_are_the_whole_files_but_for_two_at_each_edge(first: int, count: int) -> None:
    samples = noise(256 * 40)
    whole = CONTRACT.log_mel(samples)[..., first : first + count]
    chunk = CONTRACT.log_mel(samples[:, 256 * first : 256 * (first + count)])
    torch.testing.assert_close(chunk[..., 2:-2], whole[..., 2:-2], atol=1e-4, rtol=0)


def test_leading_dimensions_are_kept() -> None:
    samples = noise(1000, channels=6)
    together = CONTRACT.log_mel(samples.reshape(2, 3, 1000))
    torch.testing.assert_close(together.reshape(6, 64, -1), CONTRACT.log_mel(samples))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_fft": 1023}, {"hop_length": 0}, {"hop_length": 600}, {"hop_length": 255}, {"f_max": 8001.0}, {"f_min": -1.0},
        {"f_min": 8000.0}, {"n_mels": 0}, {"norm": "area"}, {"mel_scale": "bark"}, {"floor": 0.0}, {"floor": float("nan")},
        {"ceiling": -12.0},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MelContract(**wrong)  # type: ignore[arg-type]


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        CONTRACT.log_mel(torch.zeros(1, 0))


def test_a_contract_is_known_by_its_fields() -> None:
    other = MelContract(n_mels=128)
    assert MelContract(**CONTRACT.to_dict()) == CONTRACT
    assert MelContract().fingerprint == CONTRACT.fingerprint != other.fingerprint
    assert CONTRACT.difference(other) == "n_mels 64, here 128"
    assert CONTRACT.difference(MelContract()) == ""


def test_what_an_evaluation_computed_first_serves_training() -> None:
    contract = MelContract(sample_rate=8000, n_fft=256, hop_length=64, n_mels=19, f_min=40.0, f_max=3900.0)
    with torch.inference_mode():
        contract.log_mel(torch.randn(1, 1024))
    samples = torch.randn(1, 1024, requires_grad=True)
    contract.log_mel(samples).sum().backward()
    assert samples.grad is not None and samples.grad.abs().sum() > 0
