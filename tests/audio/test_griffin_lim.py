"""Laws of Griffin-Lim from a source."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchaudio
from torch import Tensor

from etude.audio.files import read_audio
from etude.audio.griffin_lim import GriffinLim
from etude.audio.mel import MelContract

CONTRACT = MelContract()


@pytest.fixture(scope="module")
def music(shared_data: Path) -> Tensor:
    path = next((shared_data / "audio").glob("*Sugar_Plum*.ogg"))
    return read_audio(path, sample_rate=16_000, mono=True)[0][:, 160_000:240_128]


def chirp(seconds: float = 2.0) -> Tensor:
    time = torch.arange(int(16_000 * seconds) // 256 * 256) / 16_000
    return 0.3 * torch.sin(2000 * time + 800 * time**2) + 0.01 * torch.randn(
        len(time), generator=torch.Generator().manual_seed(0)
    ).expand(2, -1)


def mel_error(samples: Tensor, log_mel: Tensor) -> float:
    return (CONTRACT.log_mel(samples) - log_mel).abs().mean().item()


def test_an_unchanged_mel_gives_the_source_back() -> None:
    samples = chirp()
    found = GriffinLim(CONTRACT)(CONTRACT.log_mel(samples), source=CONTRACT.spectrum(samples))
    torch.testing.assert_close(found, samples, atol=1e-4, rtol=0)


def test_silence_stays_silent() -> None:
    samples = torch.zeros(1, 5120)
    found = GriffinLim(CONTRACT)(CONTRACT.log_mel(samples), source=CONTRACT.spectrum(samples))
    assert found.abs().max() < 1e-5


def test_louder_mels_give_a_louder_source() -> None:
    samples = chirp()
    found = GriffinLim(CONTRACT)(CONTRACT.log_mel(samples) + 0.5, source=CONTRACT.spectrum(samples))
    level = (found[:, 2000:-2000].square().mean() / samples[:, 2000:-2000].square().mean()).sqrt().log()
    assert level.item() == pytest.approx(0.5, abs=0.02)


def test_updates_never_raise_the_divergence() -> None:
    vocoder, generator = GriffinLim(CONTRACT), torch.Generator().manual_seed(0)
    mel = torch.rand(1, 64, 10, generator=generator) + 0.01
    start = torch.rand(1, 513, 10, generator=generator)

    def divergence(magnitudes: Tensor) -> float:
        found = CONTRACT.bands(magnitudes)
        return (mel * (mel / found).log() - mel + found).sum().item()

    steps = [divergence(vocoder.fit_magnitudes(mel, start, n)) for n in (0, 1, 2, 4, 8, 16, 64)]
    assert all(after <= before * (1 + 1e-4) for before, after in pairwise(steps))
    assert steps[-1] < 0.01 * steps[0]


def test_bins_without_energy_can_grow() -> None:
    log_mel = CONTRACT.log_mel(chirp())
    found = GriffinLim(CONTRACT)(log_mel, source=torch.zeros(2, 513, log_mel.shape[-1], dtype=torch.complex64))
    assert mel_error(found, log_mel) < 0.5


def test_a_chunk_with_context_equals_the_whole() -> None:
    vocoder = GriffinLim(CONTRACT, num_iters=3)
    samples = chirp(4)
    log_mel, spectrum = CONTRACT.log_mel(samples), CONTRACT.spectrum(samples)
    log_mel = log_mel + torch.randn(log_mel.shape, generator=torch.Generator().manual_seed(1))
    context, (start, stop) = vocoder.context_frames, (60, 90)
    assert context == 12
    outer = slice(start - context, stop + context)
    whole = vocoder(log_mel, source=spectrum)[:, start * 256 : stop * 256]
    chunk = vocoder(log_mel[..., outer], source=spectrum[..., outer])[:, context * 256 : -context * 256]
    torch.testing.assert_close(chunk, whole, atol=1e-5, rtol=0)


def test_context_is_a_bound_and_not_far_from_tight() -> None:
    vocoder = GriffinLim(CONTRACT, num_iters=2)
    samples = chirp(2)
    log_mel, spectrum = CONTRACT.log_mel(samples), CONTRACT.spectrum(samples)
    moved = log_mel.clone()
    moved[..., 60] += 1
    reach = (vocoder(moved, source=spectrum) - vocoder(log_mel, source=spectrum)).abs().amax(0).unflatten(0, (-1, 256)).amax(1)
    touched = (reach > 0).nonzero().flatten()
    assert touched.min() >= 60 - vocoder.context_frames
    assert touched.max() <= 60 + vocoder.context_frames
    assert touched.max() - touched.min() >= vocoder.context_frames


def test_iterations_are_torchaudios() -> None:
    """The same magnitudes and starting phases, away from the edges, which torchaudio reflects anew in each iteration."""
    magnitudes = CONTRACT.spectrum(chirp(3)).abs() + 0.1
    vocoder = GriffinLim(CONTRACT, num_iters=6)
    ours = vocoder._find_phases(magnitudes, torch.ones_like(magnitudes).to(torch.complex64))
    window = torch.hann_window(1024)
    theirs = torchaudio.functional.griffinlim(magnitudes, window, 1024, 256, 1024, 1.0, 6, 0.99, None, False)
    inner = slice(256 * 30, 256 * 150)  # their frames are centred: sample 0 of theirs is our 128th
    torch.testing.assert_close(ours[:, 128:][:, inner], theirs[:, inner], atol=1e-3, rtol=0)


def test_random_phases_converge_as_torchaudios_do(music: Tensor) -> None:
    window = torch.hann_window(1024)
    wanted = {True: torch.stft(music, 1024, 256, window=window, return_complex=True).abs(), False: CONTRACT.spectrum(music).abs()}

    def convergence(samples: Tensor, *, centred: bool) -> float:
        found = torch.stft(samples, 1024, 256, window=window, return_complex=True) if centred else CONTRACT.spectrum(samples)
        return ((found.abs() - wanted[centred])[..., 4:-4].norm() / wanted[centred][..., 4:-4].norm()).item()

    ours = theirs = 0.0
    for seed in range(2):  # one random start differs from the next by a fifth
        vocoder = GriffinLim(CONTRACT, num_iters=32, seed=seed)
        phases = vocoder._random_phases(wanted[False])
        ours += convergence(vocoder._find_phases(wanted[False], phases), centred=False)
        torch.manual_seed(seed)
        options = (window, 1024, 256, 1024, 1.0, 32, 0.99, music.shape[1], True)
        theirs += convergence(torchaudio.functional.griffinlim(wanted[True], *options), centred=True)
    assert ours <= 1.05 * theirs


def test_momentum_speeds_convergence(music: Tensor) -> None:
    log_mel = CONTRACT.log_mel(music)
    fast, slow = (mel_error(GriffinLim(CONTRACT, num_iters=16, momentum=m)(log_mel), log_mel) for m in (0.99, 0.0))
    assert fast < slow


def test_a_source_keeps_harmonies_that_random_phases_lose(music: Tensor) -> None:
    other = CONTRACT.log_mel(music) + torch.linspace(-1, 1, 64)[:, None]
    from_source = GriffinLim(CONTRACT)(other, source=CONTRACT.spectrum(music))
    alone = GriffinLim(CONTRACT)(other)
    assert _chroma_cosine(from_source, music) > 0.95
    assert _chroma_cosine(from_source, music) > _chroma_cosine(alone, music) + 0.05
    assert mel_error(from_source, other) < 0.15


def _chroma_cosine(a: Tensor, b: Tensor) -> float:
    chromas = []
    for samples in (a, b):
        power = torch.stft(samples[0], 4096, 1024, window=torch.hann_window(4096), return_complex=True).abs().square()
        hertz = torch.arange(2049) * 16_000 / 4096
        heard = (hertz > 60) & (hertz < 4000)
        classes = (12 * torch.log2(hertz[heard] / 440)).round().long() % 12
        chroma = torch.zeros(12, power.shape[1]).index_add_(0, classes, power[heard])
        chromas.append(chroma / chroma.norm(dim=0).clamp(min=1e-9))
    return (chromas[0] * chromas[1]).sum(0).mean().item()


def test_the_same_seed_gives_the_same_samples() -> None:
    log_mel = CONTRACT.log_mel(chirp(0.5))
    assert torch.equal(GriffinLim(CONTRACT)(log_mel), GriffinLim(CONTRACT)(log_mel))
    assert not torch.equal(GriffinLim(CONTRACT)(log_mel), GriffinLim(CONTRACT, seed=1)(log_mel))


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_few_frames_give_whole_hops(frames: int) -> None:
    samples = chirp()[:, : 256 * frames]
    found = GriffinLim(CONTRACT)(CONTRACT.log_mel(samples), source=CONTRACT.spectrum(samples))
    assert found.shape == (2, 256 * frames)
    torch.testing.assert_close(found, samples, atol=1e-4, rtol=0)


def test_a_hop_that_does_not_divide_the_window_works() -> None:
    contract = MelContract(n_fft=800, hop_length=300)
    samples = chirp()[:, :9000]
    found = GriffinLim(contract)(contract.log_mel(samples), source=contract.spectrum(samples))
    torch.testing.assert_close(found, samples, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wrong", [{"num_iters": -1}, {"momentum": 1.0}, {"num_updates": -1}, {"num_updates_alone": -2}], ids=str)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GriffinLim(CONTRACT, **wrong)  # type: ignore[arg-type]


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="80 bands"):
        GriffinLim(CONTRACT)(torch.zeros(1, 80, 10))
    with pytest.raises(ValueError, match="same frames"):
        GriffinLim(CONTRACT)(torch.zeros(1, 64, 10), source=torch.zeros(1, 513, 9, dtype=torch.complex64))
