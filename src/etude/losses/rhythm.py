"""Rhythm kept: onsets of the output where the input has them, whatever their loudness.

Shapes: b batch, m mel bands, f frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-6  # sum of squares under which an envelope has no onset to speak of, in units of a normalised mel
EPSILON = 1e-9


def onset_envelope(mel_bmf: Tensor, *, smoothing_frames: int = 3) -> Tensor:
    """Returns how much rises at each frame, [b, f] >= 0: the half-wave rectified spectral flux of log mels, smoothed.

    e_t = sum_j h_j r_{t+j},  r_t = mean_m max(0, x_{m,t} - x_{m,t-1}),  r_0 = 0, h a triangle of sum 1. Every rising band
    has a gradient; the triangle lends one to frames beside an onset, so that an onset that is a frame late can move.

    Args:
        mel_bmf: log mels in any affine unit; the envelope is in the same unit.
        smoothing_frames: the triangle's support, odd, 1 for none.

    Raises:
        ValueError: an even or non-positive support.

    Source: Dixon 2006, "Onset detection revisited", eq. 4 (spectral flux), on log mels as in Böck and Widmer 2013.
    """
    if smoothing_frames < 1 or smoothing_frames % 2 == 0:
        raise ValueError(f"smoothing_frames is {smoothing_frames}, must be odd and at least 1; 3 is a good start")
    rises_bf = F.pad(F.relu(mel_bmf[..., 1:] - mel_bmf[..., :-1]).mean(dim=-2), (1, 0))
    reach = smoothing_frames // 2
    triangle = (reach + 1 - torch.arange(-reach, reach + 1, device=mel_bmf.device, dtype=rises_bf.dtype).abs()) / (reach + 1) ** 2
    return F.conv1d(rises_bf[:, None], triangle[None, None], padding=reach)[:, 0]


def onset_loss(fake_bmf: Tensor, source_bmf: Tensor, *, smoothing_frames: int = 3) -> Tensor:
    """1 - Pearson's correlation of the two onset envelopes, a mean over the batch, in [0, 2].

    0 where the envelopes are equal up to a factor and an offset: an arrangement may be louder and busier, not out of time.
    A source without onsets asks for nothing and counts 0; a fake without any counts 1. No gradient goes into the source.

    Args:
        fake_bmf, source_bmf: log mels in one affine unit, normalised ones for choice; equal shapes.
        smoothing_frames: see `onset_envelope`.
    """
    fake, source = (onset_envelope(mel.float(), smoothing_frames=smoothing_frames) for mel in (fake_bmf, source_bmf.detach()))
    fake, source = fake - fake.mean(dim=-1, keepdim=True), source - source.mean(dim=-1, keepdim=True)
    energies = fake.square().sum(dim=-1), source.square().sum(dim=-1)
    # epsilon under the root: the gradient of a fake without onsets is finite
    correlation_b = (fake * source).sum(dim=-1) / ((energies[0] + EPSILON) * (energies[1] + EPSILON)).sqrt()
    return ((1 - correlation_b) * (energies[1] > FLAT)).mean()
