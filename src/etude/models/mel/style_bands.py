"""What each mel band has in each style: mean, deviation, loudest and quiet level; the maps and limits that follow from them.

Shapes: n rows, m mel bands, f frames, s styles.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILENT_NATS = 1.0  # a frame whose bands are all within so much of the lowest log magnitude is silent
FADE_FRAMES = 8  # of a silence, after and before sound


class BandStatistics(nn.Module):
    """Standardises mels by band: each band gets mean 0 and deviation 1 over the training audio of its style.

    Standardising with one style and reverting with another gives the per-band affine map between the two styles.

    Args:
        statistics: of natural-log mels in nats, [s, 4, m]: mean, standard deviation, maximum over the training frames, and the
            level of the quietest frames; or [s, 2, m], as checkpoints before these limits have, which then limit nothing. The
            task stores them in checkpoints.

    Raises:
        ValueError: another number of rows.
    """

    def __init__(self, statistics: Tensor) -> None:
        super().__init__()
        if statistics.ndim != 3 or statistics.shape[1] not in (2, 4):
            raise ValueError(f"statistics has the shape {list(statistics.shape)}, must be [styles, 4 or 2, bands]")
        self.register_buffer("statistics", statistics.clone(), persistent=False)

    def _of(self, style_n: Tensor) -> tuple[Tensor, Tensor]:
        mean_nm, deviation_nm = cast(Tensor, self.statistics)[style_n, :2].unbind(1)
        return mean_nm[..., None], deviation_nm[..., None]

    def limit(self, log_mel_nmf: Tensor, source_nmf: Tensor, style_n: Tensor, *, lowest: float) -> Tensor:
        """Returns generated natural-log mels within what the training frames of their style have.

        No band exceeds its maximum. Where the source is silent, no band exceeds the style's quiet level; in the first and last
        `FADE_FRAMES` of a silence the excess is faded, in nats.

        Args:
            log_mel_nmf: generated mels. source_nmf: natural-log mels of their sources. style_n: the styles of the generated.
            lowest: lowest log magnitude, ln(floor).
        """
        limits = cast(Tensor, self.statistics)[style_n, 2:]
        if not limits.shape[1]:
            return log_mel_nmf
        highest_nm1, quiet_nm1 = limits[..., None].unbind(1)
        found = torch.minimum(log_mel_nmf, highest_nm1)
        silent_n1f = silence((source_nmf > lowest + SILENT_NATS).any(1, keepdim=True))
        return found - silent_n1f * F.relu(found - quiet_nm1)

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
        means_sm, deviations_sm = cast(Tensor, self.statistics)[:, :2].to(log_mel_mf).unbind(1)
        shift_sm = log_mel_mf.mean(-1) - means_sm
        shape_sm = shift_sm - shift_sm.mean(-1, keepdim=True)
        deviation_m = log_mel_mf.std(-1, correction=min(1, log_mel_mf.shape[-1] - 1))  # a single frame has none: 0
        return (shape_sm.square() + (deviation_m - deviations_sm).square()).sum(-1)


def silence(sounding_n1f: Tensor) -> Tensor:
    """Returns how silent each frame is, 0 to 1: the distance to the nearest sounding frame over `FADE_FRAMES`, at most 1."""
    heard = sounding_n1f.float()
    near = [F.max_pool1d(heard, 2 * reach + 1, stride=1, padding=reach) for reach in range(FADE_FRAMES)]
    return 1 - torch.stack(near).mean(0)


def repeat_style(style: int, count: int, device: torch.device) -> Tensor:
    """Returns the index of one style `count` times, int64 [n]."""
    return torch.full((count,), style, device=device)
