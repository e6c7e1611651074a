"""Multi-resolution STFT loss between waveforms.

Shapes: b batch, n samples, k frequency bins, f frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# (window samples, hop samples, FFT samples), as in the source
RESOLUTIONS = ((600, 120, 1024), (1200, 240, 2048), (240, 50, 512))
POWER_FLOOR = 1e-7


def multi_resolution_stft(
    fake_bn: Tensor, real_bn: Tensor, *, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS
) -> Tensor:
    """Returns the multi-resolution STFT loss: spectral convergence plus log-magnitude distance, averaged over resolutions.

    | |S| - |S'| |_F / | |S| |_F  +  mean |ln |S| - ln |S'||, S of the real, S' of the fake waveform.

    Args:
        fake_bn, real_bn: waveforms in [-1, 1], equal shapes, longer than half of the longest FFT; the real ones get no
            gradient.
        resolutions: (window, hop, FFT) in samples.

    Raises:
        ValueError: the shapes differ, or there are too few samples.

    Source: Yamamoto, Song and Kim 2020 (Parallel WaveGAN), eq. 6 to 8; the norm is taken over each sample, as in the
    paper, and not over the batch, as in some implementations; powers are clamped to at least 1e-7.
    """
    if fake_bn.shape != real_bn.shape:
        raise ValueError(f"fake has shape {tuple(fake_bn.shape)} and real {tuple(real_bn.shape)}; crop them to one length")
    longest = max(n_fft for _, _, n_fft in resolutions)
    if fake_bn.shape[-1] <= longest // 2:
        raise ValueError(
            f"samples are {fake_bn.shape[-1]}, must be more than {longest // 2}, half of the longest FFT; "
            "give longer segments or a shorter resolution"
        )
    terms = []
    for window, hop, n_fft in resolutions:
        fake, real = (magnitude(x.float(), window=window, hop=hop, n_fft=n_fft) for x in (fake_bn, real_bn.detach()))
        convergence = torch.linalg.matrix_norm(real - fake) / torch.linalg.matrix_norm(real)
        terms.append(convergence.mean() + (real.log() - fake.log()).abs().mean())
    return torch.stack(terms).mean()


def magnitude(samples_bn: Tensor, *, window: int, hop: int, n_fft: int) -> Tensor:
    """Returns sqrt(max(|STFT|^2, 1e-7)), [b, k, f]: Hann window, reflected edges, centred frames."""
    shape = torch.hann_window(window, device=samples_bn.device)
    spectrum = torch.stft(samples_bn, n_fft, hop, window, window=shape, center=True, pad_mode="reflect", return_complex=True)
    # not abs(), whose gradient at zero is not useful; clamped values need none
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=POWER_FLOOR).sqrt()
