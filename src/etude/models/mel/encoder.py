"""Networks that read mels: convolutions over bands and frames, then residual blocks over frames.

Shapes: b rows, m mel bands, f frames, h hidden size.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR_QUANTILE = 0.1  # of a band's values in a segment: steady noise and hum lie there


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


class MelTrunk(nn.Module):
    """Computes hidden states of frames; the base of networks that read mels.

    The input has three channels: the mel, its change since the frame before, and, the same in every frame, the value that a band
    exceeds in 90 % of the segment's frames, which shows steady noise and missing bands. Two-dimensional convolutions halve the
    bands three times; residual blocks with dilations 1, 2, 4, ... then see `2^num_layers` frames and more on both sides.

    Args:
        n_mels: m, a multiple of 8. channels: of the first convolution, a multiple of 4; the next ones have 2 and 3 times as many.
        dim: h, a multiple of 8. num_layers: residual blocks.

    Raises: ValueError for a size out of its range.
    """

    def __init__(self, *, n_mels: int, channels: int, dim: int, num_layers: int) -> None:
        super().__init__()
        if n_mels % 8 or channels % 4 or dim % 8 or channels < 4 or dim < 8:
            raise ValueError(
                f"n_mels={n_mels} and model.dim={dim} must be multiples of 8, model.channels={channels} one of 4; "
                "64 or 128 bands, dim 96 and 16 channels go together"
            )
        self.dim = dim
        widths = (3, channels, 2 * channels, 3 * channels)
        self.stem = nn.ModuleList(nn.Conv2d(before, after, 3, stride=(2, 1), padding=1) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[1:])
        self.inlet = nn.Conv1d(widths[-1] * n_mels // 8, dim, 1)
        self.blocks = nn.ModuleList(ResidualBlock(dim, 2**layer) for layer in range(num_layers))
        self.norm = nn.GroupNorm(8, dim)

    def before_blocks(self, mel_bmf: Tensor) -> Tensor:
        """Returns what the first block gets, [b, h, f], of normalised mels."""
        change = F.pad(mel_bmf.diff(dim=-1), (1, 0))
        rank = max(1, round(FLOOR_QUANTILE * mel_bmf.shape[-1]))
        floor = mel_bmf.float().kthvalue(rank, dim=-1, keepdim=True).values.to(mel_bmf).expand_as(mel_bmf)
        x = torch.stack([mel_bmf, change, floor], dim=1)
        for conv, norm in zip(self.stem, self.norms, strict=True):
            x = F.gelu(norm(conv(x)))
        found: Tensor = self.inlet(x.flatten(1, 2))
        return found

    def states(self, mel_bmf: Tensor) -> Tensor:
        """Returns the last hidden states, [b, h, f], of normalised mels."""
        hidden = self.before_blocks(mel_bmf)
        for block in self.blocks:
            hidden = block(hidden)
        found: Tensor = self.norm(hidden)
        return found


class MelEncoder(MelTrunk):
    """Hidden states of frames for task=classifier: the grader's network without its heads, one frame after the other.

    Args: n_mels, channels, dim, num_layers: see `MelTrunk`.
    """

    def __init__(self, *, n_mels: int, channels: int = 16, dim: int = 96, num_layers: int = 5) -> None:
        super().__init__(n_mels=n_mels, channels=channels, dim=dim, num_layers=num_layers)

    def hidden(self, mel_bmf: Tensor) -> Tensor:
        """Returns the last hidden states, [b, f, h], of normalised mels [b, m, f]."""
        return self.states(mel_bmf).transpose(1, 2)

    def begin(self, mel_bmf: Tensor) -> tuple[Tensor]:
        """Returns what the first block gets, [b, f, h]; with `through` and `end` these are the steps of `hidden`."""
        return (self.before_blocks(mel_bmf).transpose(1, 2),)

    def through(self, block: nn.Module, x_bfh: Tensor) -> Tensor:
        """Returns the output of one of `blocks`, [b, f, h]."""
        out: Tensor = block(x_bfh.transpose(1, 2))
        return out.transpose(1, 2)

    def end(self, x_bfh: Tensor) -> Tensor:
        """Returns the normalised hidden states [b, f, h] of the last block's output."""
        out: Tensor = self.norm(x_bfh.transpose(1, 2))
        return out.transpose(1, 2)
