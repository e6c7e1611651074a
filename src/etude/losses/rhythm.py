"""Rhythm loss: difference between the onsets of input and output, regardless of loudness.

Shapes: b batch, m mel bands, f frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-6  # sum of squares below which an envelope counts as having no onsets, in units of a normalised mel
EPSILON = 1e-9


def onset_envelope(mel_bmf: Tensor, *, smoothing_frames: int = 3) -> Tensor:
    """Returns the onset envelope [b, f] >= 0: the smoothed, half-wave rectified spectral flux of log mels.

    e_t = sum_j h_j r_{t+j},  r_t = mean_m max(0, x_{m,t} - x_{m,t-1}),  r_0 = 0, h a triangular window of sum 1. The
    window gives a gradient to the frames next to an onset, too, so that a late onset can move.

    Args:
        mel_bmf: log mels, in nats or normalised; the envelope has the same unit.
        smoothing_frames: length of the window, odd; 1 for no smoothing.

    Raises:
        ValueError: smoothing_frames is even or not positive.

    Source: Dixon 2006, "Onset detection revisited", eq. 4 (spectral flux), on log mels as in Böck and Widmer 2013.
    """
    if smoothing_frames < 1 or smoothing_frames % 2 == 0:
        raise ValueError(f"smoothing_frames is {smoothing_frames}, must be odd and at least 1; 3 is a good start")
    rises_bf = F.pad(F.relu(mel_bmf[..., 1:] - mel_bmf[..., :-1]).mean(dim=-2), (1, 0))
    reach = smoothing_frames // 2
    triangle = (reach + 1 - torch.arange(-reach, reach + 1, device=mel_bmf.device, dtype=rises_bf.dtype).abs()) / (reach + 1) ** 2
    return F.conv1d(rises_bf[:, None], triangle[None, None], padding=reach)[:, 0]


def onset_loss(fake_bmf: Tensor, source_bmf: Tensor, *, smoothing_frames: int = 3) -> Tensor:
    """Returns 1 - Pearson's correlation of the two onset envelopes, averaged over the batch, in [0, 2].

    It is 0 if the envelopes are equal up to a factor and an offset: the output may be louder, but not out of time. A source
    without onsets gives 0, an output without onsets 1. The source gets no gradient.

    Args:
        fake_bmf, source_bmf: log mels with equal shapes and the same unit, preferably normalised.
        smoothing_frames: see `onset_envelope`.
    """
    fake, source = (onset_envelope(mel.float(), smoothing_frames=smoothing_frames) for mel in (fake_bmf, source_bmf.detach()))
    fake, source = fake - fake.mean(dim=-1, keepdim=True), source - source.mean(dim=-1, keepdim=True)
    energies = fake.square().sum(dim=-1), source.square().sum(dim=-1)
    # epsilon under the root keeps the gradient finite for an output without onsets
    correlation_b = (fake * source).sum(dim=-1) / ((energies[0] + EPSILON) * (energies[1] + EPSILON)).sqrt()
    return ((1 - correlation_b) * (energies[1] > FLAT)).mean()
