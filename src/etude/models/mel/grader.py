"""The network of the grader: convolutions over bands and frames, then over frames, then a head for each thing it tells.

Shapes: b rows, m mel bands, f frames, h hidden size, d defects, z defects with a place in the spectrum, k coarse bands.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.models.mel.encoder import MelTrunk


class Grades(NamedTuple):
    """What the network tells, as logits: `frames` [b, d, f], `clip` [b, d], `bands` [b, z, k, f], `quality` [b], `onsets` and
    `sections` [b, f]."""

    frames: Tensor
    clip: Tensor
    bands: Tensor
    quality: Tensor
    onsets: Tensor
    sections: Tensor


class GraderNetwork(MelTrunk):
    """Grades segments of mels, from the hidden states of `MelTrunk`.

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
        super().__init__(n_mels=n_mels, channels=channels, dim=dim, num_layers=num_layers)
        self.num_bands, self.num_band_defects = num_bands, num_band_defects
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
        return self.states(mel_bmf)

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
