"""A network of the grader that is a chain of convolutions, rectifiers and means, through which bounds can be propagated.

Shapes: b rows, m mel bands, f frames, h hidden size, d defects, z defects with a place in the spectrum, k coarse bands.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from etude.models.mel.grader import Grades


class PlainGraderNetwork(nn.Module):
    """Grades segments of mels like `GraderNetwork`, without norms, residual blocks and learned pooling.

    Two-dimensional convolutions halve the bands three times; dilated convolutions over frames follow. The logit of a defect in a
    clip is the mean of its frames' logits, so it is linear in the mean hidden state.

    Args:
        n_mels: m, a multiple of 8. num_defects: d. num_band_defects: z. num_bands: k.
        channels: of the first convolution; the next ones have 2 and 3 times as many. dim: h. num_layers: convolutions over
            frames, with dilations 1, 2, 4, ...

    Raises:
        ValueError: a size is out of its range.
    """

    def __init__(
        self, *, n_mels: int, num_defects: int, num_band_defects: int, num_bands: int, channels: int = 16, dim: int = 96,
        num_layers: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        if n_mels % 8 or min(channels, dim, num_layers) < 1:
            raise ValueError(
                f"n_mels={n_mels} must be a multiple of 8, model.channels={channels}, model.dim={dim} and model.num_layers="
                f"{num_layers} at least 1"
            )
        self.num_bands, self.num_band_defects = num_bands, num_band_defects
        parts: list[nn.Module] = [nn.Unflatten(1, (1, n_mels))]
        for before, after in pairwise((1, channels, 2 * channels, 3 * channels)):
            parts += [nn.Conv2d(before, after, 3, stride=(2, 1), padding=1), nn.ReLU()]
        parts += [nn.Flatten(1, 2), nn.Conv1d(3 * channels * n_mels // 8, dim, 1), nn.ReLU()]
        for layer in range(num_layers):
            parts += [nn.Conv1d(dim, dim, 3, padding=2**layer, dilation=2**layer), nn.ReLU()]
        self.trunk = nn.Sequential(*parts)
        self.blocks = nn.ModuleList()  # there are no residual blocks
        self.frames = nn.Conv1d(dim, num_defects, 1)
        self.bands = nn.Conv1d(dim, num_band_defects * num_bands, 1) if num_band_defects else None
        self.borders = nn.Conv1d(dim, 2, 1)
        self.quality = nn.Linear(dim, 1)
        with torch.no_grad():  # borders are rarer than not
            assert self.borders.bias is not None
            self.borders.bias.fill_(-3.0)

    def hidden(self, mel_bmf: Tensor) -> Tensor:
        """Returns the last hidden states, [b, h, f], of normalised mels."""
        found: Tensor = self.trunk(mel_bmf)
        return found

    def forward(self, mel_bmf: Tensor) -> Grades:
        """Returns the logits for normalised mels [b, m, f]."""
        hidden_bhf = self.hidden(mel_bmf)
        frames_bdf, borders_b2f = self.frames(hidden_bhf).float(), self.borders(hidden_bhf).float()
        in_bands = frames_bdf[:, :0].repeat(1, self.num_bands, 1) if self.bands is None else self.bands(hidden_bhf).float()
        return Grades(
            frames=frames_bdf,
            clip=frames_bdf.mean(-1),
            bands=in_bands.unflatten(1, (self.num_band_defects, self.num_bands)),
            quality=self.quality(hidden_bhf.mean(-1)).float()[:, 0],
            onsets=borders_b2f[:, 0],
            sections=borders_b2f[:, 1],
        )

    def decision(self, defect: int) -> nn.Sequential:
        """Returns the chain of layers from mels [b, m, f] to logits [b, 2]: 0 and that of the defect in the clip."""
        last = nn.Linear(self.frames.in_channels, 2).to(self.frames.weight)
        with torch.no_grad():
            assert self.frames.bias is not None
            last.weight.copy_(torch.stack([torch.zeros_like(last.weight[0]), self.frames.weight[defect, :, 0]]))
            last.bias.copy_(torch.stack([torch.zeros_like(last.bias[0]), self.frames.bias[defect]]))
        made = nn.Sequential(self.trunk, nn.AdaptiveAvgPool1d(1), nn.Flatten(), last.requires_grad_(False))
        return made.train(self.training)
