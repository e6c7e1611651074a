"""Mean and standard deviation of each mel band in each style, and the affine maps between styles that follow from them.

Shapes: n rows, m mel bands, f frames, s styles.
"""

from typing import cast

import torch
from torch import Tensor, nn


class BandStatistics(nn.Module):
    """Standardises mels by band: each band gets mean 0 and deviation 1 over the training audio of its style.

    Standardising with one style and reverting with another gives the per-band affine map between the two styles.

    Args:
        statistics: means and standard deviations of natural-log mels in nats, [s, 2, m]; the task stores them in checkpoints.
    """

    def __init__(self, statistics: Tensor) -> None:
        super().__init__()
        self.register_buffer("statistics", statistics.clone(), persistent=False)

    def _of(self, style_n: Tensor) -> tuple[Tensor, Tensor]:
        mean_nm, deviation_nm = cast(Tensor, self.statistics)[style_n].unbind(1)
        return mean_nm[..., None], deviation_nm[..., None]

    def standardise(self, log_mel_nmf: Tensor, style_n: Tensor) -> Tensor:
        """Returns natural-log mels standardised by band, each row with the statistics of its style."""
        mean, deviation = self._of(style_n)
        return (log_mel_nmf - mean) / deviation

    def destandardise(self, mel_nmf: Tensor, style_n: Tensor) -> Tensor:
        """Returns natural-log mels of standardised ones: the inverse of `standardise`."""
        mean, deviation = self._of(style_n)
        return mel_nmf * deviation + mean

    def deviation(self, style_n: Tensor) -> Tensor:
        """Returns the standard deviation of each band in nats, [n, m, 1]."""
        return self._of(style_n)[1]

    def distances(self, log_mel_mf: Tensor) -> Tensor:
        """Returns the distances [s], in squared nats, of a clip's band statistics to those of each style, loudness aside."""
        means_sm, deviations_sm = cast(Tensor, self.statistics).to(log_mel_mf).unbind(1)
        shift_sm = log_mel_mf.mean(-1) - means_sm
        shape_sm = shift_sm - shift_sm.mean(-1, keepdim=True)
        return (shape_sm.square() + (log_mel_mf.std(-1) - deviations_sm).square()).sum(-1)


def repeat_style(style: int, count: int, device: torch.device) -> Tensor:
    """Returns the index of one style `count` times, int64 [n]."""
    return torch.full((count,), style, device=device)
