"""Filterbanks from frequency bands to the 12 pitch classes (chroma), for losses and metrics.

Shapes: m bands; 12 pitch classes, C first.
"""

from functools import lru_cache

import torch
from torch import Tensor

from etude.audio.mel import MelContract


def chroma_filterbank(
    frequencies_hz: Tensor,
    *,
    widths_hz: Tensor,
    tuning_hz: float = 440.0,
    blur_semitones: float = 0.3,
    f_min: float = 55.0,
    f_max: float = 5000.0,
) -> Tensor:
    """Returns the weight of each frequency band in each pitch class, [12, m]; columns sum to 1, or 0 outside [f_min, f_max].

    weight ~ sum over octaves of exp(-(distance in semitones)^2 / (2 s^2)),  s^2 = blur^2 + (width in semitones)^2, where the
    width is one standard deviation of the band. A band several semitones wide carries no pitch: its column is 1/12 throughout.

    Args:
        frequencies_hz: centre frequencies of the bands [m].
        widths_hz: standard deviation of each band [m]; 0 for a single frequency.
        tuning_hz: frequency of the A above middle C.
        blur_semitones: standard deviation for a single frequency; tolerates mistuning and vibrato.
        f_min, f_max: bands centred outside this range hold rumble and cymbals rather than harmony; their weight is 0.

    Source: Ellis 2007, "Chroma feature analysis and synthesis" (Gaussian weights); the band's own width is added here.
    """
    inside = (frequencies_hz >= f_min) & (frequencies_hz <= f_max)
    centres = frequencies_hz.double().clamp(min=1.0)
    pitch_m = 69 + 12 * (centres / tuning_hz).log2()
    width_m = 12 * widths_hz.double() / centres / torch.log(torch.tensor(2.0, dtype=torch.float64))
    variance_m = blur_semitones**2 + width_m.clamp(max=12.0) ** 2
    classes = torch.arange(12, dtype=torch.float64)[:, None, None]
    octaves = torch.arange(-6, 7, dtype=torch.float64)[None, :, None]
    distance = torch.remainder(pitch_m[None, None] - classes, 12) - 12 * octaves
    shares = torch.exp(-distance.square() / (2 * variance_m)).sum(dim=1)
    return (shares / shares.sum(dim=0) * inside).float()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # training may use what an evaluation asked for first
def mel_chroma_filterbank(contract: MelContract) -> Tensor:
    """Returns the weights of mel bands in the 12 pitch classes, [12, m].

    Limitation: with 64 bands up to 8 kHz, a band below 1 kHz is 47 Hz wide, which is a fifth at 100 Hz and a whole tone at
    400 Hz; above 1 kHz it is 0.8 semitones wide. So bass notes and low chords are not resolved, and the result follows
    overtones. 128 bands lower this limit by an octave. Where waveforms are available, measure harmony on them
    (`metrics.audio.mel_features`).
    """
    bank = contract.filterbank().double()
    bins_hz = torch.arange(contract.num_bins, dtype=torch.float64) * contract.sample_rate / contract.n_fft
    weight_m = bank.sum(dim=1).clamp(min=1e-12)
    centres = bank @ bins_hz / weight_m
    spread = (bank @ bins_hz.square() / weight_m - centres.square()).clamp(min=0)
    # the window widens each band: the standard deviation of the Hann window's main lobe is about 0.6 bins
    blur_hz = 0.6 * contract.sample_rate / contract.n_fft
    return chroma_filterbank(centres, widths_hz=(spread + blur_hz**2).sqrt())
