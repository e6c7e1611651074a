"""Transposing mel spectrograms: their bands are resampled along the frequency axis.

Shapes: n rows, m mel bands, f frames.
"""

from functools import lru_cache

import torch
from torch import Tensor

from etude.audio.mel import MelContract


def transpose_bands(mel_nmf: Tensor, semitones_n: Tensor, *, centres_m: Tensor) -> Tensor:
    """Returns log mels whose frequencies are multiplied by 2^(semitones / 12), each row by its own interval.

    out(f) = in(f / 2^(semitones / 12)), linear in frequency between the centres of the bands; beyond the lowest and the highest
    centre it is the value there. Times do not change. With 64 bands up to 8 kHz bands below 1 kHz are 47 Hz apart, so this only
    approximates what a transposed performance would give; it is exact where the spectrum is linear between the centres.

    Args:
        mel_nmf: log mels, or any other value for each band and frame. Gradients flow through.
        semitones_n: intervals, positive upwards; fractions are allowed. centres_m: frequencies, from `band_centres`.
    """
    if len(centres_m) == 1:
        return mel_nmf
    wanted_nm = centres_m / torch.exp2(semitones_n.to(centres_m)[:, None] / 12)
    upper_nm = torch.searchsorted(centres_m, wanted_nm).clamp(1, len(centres_m) - 1)
    low_nm, high_nm = centres_m[upper_nm - 1], centres_m[upper_nm]
    share_nm1 = ((wanted_nm - low_nm) / (high_nm - low_nm)).clamp(0, 1)[..., None].to(mel_nmf)
    index_nmf = upper_nm[..., None].expand(-1, -1, mel_nmf.shape[-1])
    return torch.lerp(mel_nmf.gather(1, index_nmf - 1), mel_nmf.gather(1, index_nmf), share_nm1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # training may use what an evaluation asked for first
def band_centres(contract: MelContract) -> Tensor:
    """Returns the mean frequency of each band in Hz, [m], rising."""
    bank = contract.filterbank().double()
    bins_hz = torch.arange(contract.num_bins, dtype=torch.float64) * contract.sample_rate / contract.n_fft
    return (bank @ bins_hz / bank.sum(dim=1).clamp(min=1e-12)).float()
