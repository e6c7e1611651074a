"""The network of the grader: convolutions over bands and frames, then over frames, then a head for each thing it tells.

Shapes: b rows, m mel bands, f frames, h hidden size, d defects, z defects with a place in the spectrum, k coarse bands.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR_QUANTILE = 0.1  # of a band's values in a segment: steady noise and hum lie there


class Grades(NamedTuple):
    """What the network tells, as logits: `frames` [b, d, f], `clip` [b, d], `bands` [b, z, k, f], `quality` [b], `onsets` and
    `sections` [b, f]."""

    frames: Tensor
    clip: Tensor
    bands: Tensor
    quality: Tensor
    onsets: Tensor
    sections: Tensor


class ResidualBlock(nn.Module):
    """Adds a dilated convolution over frames to its input [b, h, f]."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, dim)
        self.conv = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
        self.output = nn.Conv1d(dim, dim, 1)

    def forward(self, x_bhf: Tensor) -> Tensor:
        """Returns [b, h, f]."""
        hidden: Tensor = self.output(F.gelu(self.conv(self.norm(x_bhf))))
        return x_bhf + hidden


class GraderNetwork(nn.Module):
    """Grades segments of mels.

    The input has three channels: the mel, its change since the frame before, and, the same in every frame, the value that a band
    exceeds in 90 % of the segment's frames, which shows steady noise and missing bands. Two-dimensional convolutions halve the
    bands three times; residual blocks with dilations 1, 2, 4, ... then see `2^num_layers` frames and more on both sides.

    The logit of a defect in a clip is a mean over the frames' logits z with weights softmax(a z), where a is learned for each
    defect: between the mean (a = 0, a steady defect) and the maximum (a click).

    Args:
        n_mels: m, a multiple of 8. num_defects: d. num_band_defects: z. num_bands: k.
        channels: of the first convolution, a multiple of 4; the next ones have 2 and 3 times as many.
        dim: h, a multiple of 8. num_layers: residual blocks. dropout: before the heads, in [0, 1).

    Raises:
        ValueError: a size is out of its range.

    Source: McFee, Salamon and Bello 2018 (adaptive pooling), equation 4. Deviation: logits are pooled, not probabilities.
    """

    def __init__(
        self, *, n_mels: int, num_defects: int, num_band_defects: int, num_bands: int, channels: int = 16, dim: int = 96,
        num_layers: int = 5, dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if n_mels % 8 or channels % 4 or dim % 8 or channels < 4 or dim < 8:
            raise ValueError(
                f"n_mels={n_mels} and model.dim={dim} must be multiples of 8, model.channels={channels} one of 4; "
                "64 or 128 bands, dim 96 and 16 channels go together"
            )
        self.num_bands, self.num_band_defects = num_bands, num_band_defects
        widths = (3, channels, 2 * channels, 3 * channels)
        self.stem = nn.ModuleList(nn.Conv2d(before, after, 3, stride=(2, 1), padding=1) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[1:])
        self.inlet = nn.Conv1d(widths[-1] * n_mels // 8, dim, 1)
        self.blocks = nn.ModuleList(ResidualBlock(dim, 2**layer) for layer in range(num_layers))
        self.norm = nn.GroupNorm(8, dim)
        self.dropout = nn.Dropout(dropout)
        self.frames = nn.Conv1d(dim, num_defects, 1)
        self.bands = nn.Conv1d(dim, num_band_defects * num_bands, 1) if num_band_defects else None
        self.borders = nn.Conv1d(dim, 2, 1)
        self.quality = nn.Sequential(nn.Conv1d(2 * dim, dim, 1), nn.GELU(), nn.Conv1d(dim, 1, 1))
        self.sharpness = nn.Parameter(torch.ones(num_defects))
        with torch.no_grad():  # defects and borders are rarer than not
            for head, logit in ((self.frames, -2.0), (self.borders, -3.0)):
                assert head.bias is not None
                head.bias.fill_(logit)

    def hidden(self, mel_bmf: Tensor) -> Tensor:
        """Returns the last hidden states, [b, h, f], of normalised mels."""
        change = F.pad(mel_bmf.diff(dim=-1), (1, 0))
        rank = max(1, round(FLOOR_QUANTILE * mel_bmf.shape[-1]))
        floor = mel_bmf.float().kthvalue(rank, dim=-1, keepdim=True).values.to(mel_bmf).expand_as(mel_bmf)
        x = torch.stack([mel_bmf, change, floor], dim=1)
        for conv, norm in zip(self.stem, self.norms, strict=True):
            x = F.gelu(norm(conv(x)))
        hidden = self.inlet(x.flatten(1, 2))
        for block in self.blocks:
            hidden = block(hidden)
        found: Tensor = self.norm(hidden)
        return found

    def forward(self, mel_bmf: Tensor) -> Grades:
        """Returns the logits for normalised mels [b, m, f]."""
        hidden_bhf = self.dropout(self.hidden(mel_bmf))
        frames_bdf, borders_b2f = self.frames(hidden_bhf).float(), self.borders(hidden_bhf).float()
        weights = (self.sharpness[:, None] * frames_bdf).softmax(-1)
        pooled = torch.cat([hidden_bhf.mean(-1, keepdim=True), hidden_bhf.amax(-1, keepdim=True)], dim=1)
        in_bands = frames_bdf[:, :0].repeat(1, self.num_bands, 1) if self.bands is None else self.bands(hidden_bhf).float()
        return Grades(
            frames=frames_bdf,
            clip=(weights * frames_bdf).sum(-1),
            bands=in_bands.unflatten(1, (self.num_band_defects, self.num_bands)),
            quality=self.quality(pooled).float()[:, 0, 0],
            onsets=borders_b2f[:, 0],
            sections=borders_b2f[:, 1],
        )
