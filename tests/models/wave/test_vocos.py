"""The iSTFT vocoder network: exact inverse, exact lengths, exact reach; and its discriminator.

Shapes: b rows, m mel bands, f frames, n samples.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.audio.mel import MelContract
from etude.models.wave.discriminators import MultiResolutionDiscriminator
from etude.models.wave.vocos import MAX_LOG_MAGNITUDE, Vocos, inverse_stft

CONTRACT = MelContract()
SMALL = MelContract(sample_rate=8000, n_fft=64, hop_length=16, n_mels=8, f_max=4000.0)


def network(contract: MelContract = SMALL, **options: int) -> Vocos:
    torch.manual_seed(0)
    return Vocos(contract=contract, **{"dim": 16, "num_layers": 2, "hidden_dim": 16, **options}).eval()


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 40), hop=st.sampled_from([6, 16, 20, 32]))
def test_the_inverse_transform_inverts_the_contracts_spectrum(frames: int, hop: int) -> None:
    contract = MelContract(sample_rate=8000, n_fft=64, hop_length=hop, n_mels=8, f_max=4000.0)
    samples_bn = torch.randn(2, frames * hop, generator=torch.Generator().manual_seed(frames))
    found = inverse_stft(contract.spectrum(samples_bn), n_fft=64, hop_length=hop)
    assert torch.allclose(found, samples_bn, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 50])
def test_true_magnitude_and_phase_give_back_the_samples(frames: int) -> None:
    """The network's own way from (log magnitude, phase) to samples, at the default contract."""
    samples_bn = 0.3 * torch.randn(1, frames * 256, generator=torch.Generator().manual_seed(0))
    spectrum = CONTRACT.spectrum(samples_bn)
    net = network(CONTRACT)
    net.polar = lambda mel: (spectrum.abs().log(), spectrum.angle())  # type: ignore[method-assign]
    assert torch.allclose(net(torch.zeros(1, 64, frames)), samples_bn, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 70))
def test_a_hop_of_samples_for_every_frame(frames: int) -> None:
    with torch.no_grad():
        assert network()(torch.zeros(2, 8, frames)).shape == (2, 16 * frames)


@pytest.mark.parametrize(("num_layers", "kernel_size", "hop"), [(1, 3, 16), (2, 7, 16), (3, 5, 32), (2, 3, 6)])
def test_the_reach_is_exact(num_layers: int, kernel_size: int, hop: int) -> None:
    contract = MelContract(sample_rate=8000, n_fft=64, hop_length=hop, n_mels=8, f_max=4000.0)
    net = network(contract, num_layers=num_layers, kernel_size=kernel_size)
    middle, reach = 40, net.context_frames
    mel = torch.randn(1, 8, 81, generator=torch.Generator().manual_seed(1)).requires_grad_()
    net(mel)[0, middle * hop : (middle + 1) * hop].square().sum().backward()
    touched = mel.grad.abs().sum(dim=(0, 1)).nonzero().flatten()  # type: ignore[union-attr]
    assert touched.min() == middle - reach and touched.max() == middle + reach


def test_a_chunk_with_its_context_equals_the_whole() -> None:
    net = network(CONTRACT)
    mel = torch.randn(1, 64, 100, generator=torch.Generator().manual_seed(1)) * 0.3
    start, stop, reach = 45, 60, net.context_frames
    with torch.no_grad():
        whole = net(mel)[..., start * 256 : stop * 256]
        chunk = net(mel[..., start - reach : stop + reach])[..., reach * 256 : -reach * 256]
    assert whole.abs().max() > 1e-3
    assert torch.allclose(chunk, whole, atol=1e-6)


def test_magnitudes_start_from_those_of_the_mel() -> None:
    """Without the head's say the bands of the magnitudes are the mel's, where the mel can be had from magnitudes."""
    net = network(CONTRACT)
    torch.nn.init.zeros_(net.head.weight)
    mags = 0.05 + torch.rand(1, CONTRACT.num_bins, 5, generator=torch.Generator().manual_seed(0))
    mags = CONTRACT.filterbank().T @ (CONTRACT.filterbank() @ mags)  # in the span of the bands
    log_mel = CONTRACT.bands(mags).clamp(min=CONTRACT.floor).log()
    with torch.no_grad():
        log_magnitude, phase = net.polar(CONTRACT.normalise(log_mel))
    assert torch.allclose(CONTRACT.bands(log_magnitude.exp()).log(), log_mel, atol=1e-2)
    assert torch.allclose(phase.cos(), (-1.0) ** torch.arange(CONTRACT.num_bins)[:, None].expand_as(phase[0]), atol=1e-5)


def test_any_input_gives_finite_samples() -> None:
    net = network()
    with torch.no_grad():
        assert net(torch.full((1, 8, 9), 100.0)).isfinite().all()
        assert net(torch.full((1, 8, 9), -100.0)).isfinite().all()
        assert net.polar(torch.full((1, 8, 9), 100.0))[0].max() <= MAX_LOG_MAGNITUDE


def test_the_default_size() -> None:
    assert 600_000 <= sum(p.numel() for p in Vocos(contract=CONTRACT).parameters()) <= 1_700_000
    assert Vocos(contract=CONTRACT).context_frames == 7 * 3 + math.ceil(384 / 256)


@pytest.mark.parametrize("options", [{"kernel_size": 4}, {"num_layers": 0}])
def test_impossible_sizes_are_told(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))}={next(iter(options.values()))}"):
        Vocos(contract=SMALL, **options)


def test_the_discriminator_sees_a_phase_and_takes_silence() -> None:
    """One score map for each resolution; it is not blind to a change that leaves every magnitude as it was."""
    torch.manual_seed(0)
    discriminator = MultiResolutionDiscriminator(n_ffts=(64, 128), channels=4)
    x = torch.randn(2, 1024)
    (one, other), (upside_down, _) = discriminator(x)[0], discriminator(-x)[0]
    assert one.shape[0] == 2 and one.shape != other.shape
    assert not torch.allclose(one, upside_down, atol=1e-4)
    silence = torch.zeros(1, 1024, requires_grad=True)
    sum(s.sum() for s in discriminator(silence)[0]).backward()
    assert silence.grad.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize("n_ffts", [[], [62], [0]])
def test_impossible_resolutions_are_told(n_ffts: list[int]) -> None:
    with pytest.raises(ValueError, match="n_ffts"):
        MultiResolutionDiscriminator(n_ffts=n_ffts)
