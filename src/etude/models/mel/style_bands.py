"""Styles as the mean and deviation of their bands: what a restyling begins with, in closed form.

Shapes: n rows, m mel bands, f frames, s styles.
"""

from typing import cast

import torch
from torch import Tensor, nn


class StyleBands(nn.Module):
    """Makes mels white, each band of mean 0 and deviation 1 over its style's training audio, and colours them again.

    White in one style and coloured in another is the per-band affine map between the two.

    Args:
        statistics: means and deviations of natural-log mels in nats, [s, 2, m]; a checkpoint keeps them with the task's parts.
    """

    def __init__(self, statistics: Tensor) -> None:
        super().__init__()
        self.register_buffer("statistics", statistics.clone(), persistent=False)

    def _of(self, style_n: Tensor) -> tuple[Tensor, Tensor]:
        mean_nm, deviation_nm = cast(Tensor, self.statistics)[style_n].unbind(1)
        return mean_nm[..., None], deviation_nm[..., None]

    def white(self, log_mel_nmf: Tensor, style_n: Tensor) -> Tensor:
        """Natural-log mels to white ones, each row by the statistics of its style."""
        mean, deviation = self._of(style_n)
        return (log_mel_nmf - mean) / deviation

    def coloured(self, white_nmf: Tensor, style_n: Tensor) -> Tensor:
        """The inverse of `white`."""
        mean, deviation = self._of(style_n)
        return white_nmf * deviation + mean

    def deviation(self, style_n: Tensor) -> Tensor:
        """Nats of one unit of each band of white mels, [n, m, 1]."""
        return self._of(style_n)[1]

    def distances(self, log_mel_mf: Tensor) -> Tensor:
        """How far a clip's band means and deviations are from each style's, loudness apart: squared nats [s]."""
        means_sm, deviations_sm = cast(Tensor, self.statistics).to(log_mel_mf).unbind(1)
        shift_sm = log_mel_mf.mean(-1) - means_sm
        shape_sm = shift_sm - shift_sm.mean(-1, keepdim=True)
        return (shape_sm.square() + (log_mel_mf.std(-1) - deviations_sm).square()).sum(-1)


def rows_of(style: int, count: int, device: torch.device) -> Tensor:
    """`count` rows of one style, int64 [n]."""
    return torch.full((count,), style, device=device)
