"""Restyling of mel spectrograms: convolutions over time, every frequency band in reach of every other.

Shapes: b batch, m mel bands, f frames, d channels, e style dimensions.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """x + W gelu(dilated convolution of film(norm(x))).

    The norm takes each frame by itself, so no frame far away has a say: any cut of the time axis gives the same output
    away from its edges. The convolutions are dense: on CPUs depthwise ones of these sizes take longer, their gradients
    above all.

    Source: He et al. 2016 (pre-activation residuals); Perez et al. 2018 (FiLM) for the style.
    """

    def __init__(self, *, dim: int, kernel_size: int, dilation: int, expansion: int, style_dim: int) -> None:
        super().__init__()
        self.reach = dilation * (kernel_size // 2)
        self.norm = nn.LayerNorm(dim)
        self.film = nn.Linear(style_dim, 2 * dim) if style_dim else None
        self.convolution = nn.Conv1d(dim, expansion * dim, kernel_size, padding=self.reach, dilation=dilation)
        self.project = nn.Conv1d(expansion * dim, dim, 1)
        if self.film is not None:
            nn.init.zeros_(self.film.bias)
            nn.init.normal_(self.film.weight, std=0.02)

    def forward(self, x_bdf: Tensor, style_be: Tensor | None) -> Tensor:
        h_bfd = self.norm(x_bdf.transpose(1, 2))
        if self.film is not None and style_be is not None:
            scale, shift = self.film(style_be)[:, None].chunk(2, dim=-1)
            h_bfd = h_bfd * (1 + scale) + shift
        return x_bdf + self.project(F.gelu(self.convolution(h_bfd.transpose(1, 2))))


class MelGenerator(nn.Module):
    """Gives back a mel of as many frames as it got, changed by a residual that is 0 before training.

    The bands are the channels of one-dimensional convolutions over time: a note may move by an octave in one layer,
    which a two-dimensional network of small kernels can't do, and a frame costs a hundredth of its multiplications.
    There is no stride, so any number of frames from 1 up is whole.

    Args:
        n_mels: m.
        style_dim: e of the vector that says what to do; 0 for a network of one direction, which takes none.
        dim: d. num_blocks: at least 1. kernel_size: of the blocks' convolutions, odd.
        dilations: of the blocks, repeated as often as needed.
        expansion: width of a block's hidden layer, in d.

    Raises:
        ValueError: an argument out of its range.
    """

    stride = 1

    def __init__(
        self,
        n_mels: int,
        *,
        style_dim: int = 0,
        dim: int = 128,
        num_blocks: int = 3,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1, 4, 16),
        expansion: int = 1,
    ) -> None:
        super().__init__()
        if min(n_mels, dim, num_blocks, expansion) < 1 or style_dim < 0:
            raise ValueError(f"dim={dim}, num_blocks={num_blocks}, expansion={expansion} must be at least 1")
        if kernel_size % 2 == 0 or kernel_size < 1 or not dilations or min(dilations) < 1:
            raise ValueError(f"kernel_size={kernel_size} must be odd and dilations={list(dilations)} at least 1 each")
        self.style_dim = style_dim
        self.inlet = nn.Conv1d(n_mels + 1, dim, 5, padding=2)
        self.blocks = nn.ModuleList(
            Block(
                dim=dim,
                kernel_size=kernel_size,
                dilation=dilations[i % len(dilations)],
                expansion=expansion,
                style_dim=style_dim,
            )
            for i in range(num_blocks)
        )
        self.norm, self.outlet = nn.LayerNorm(dim), nn.Linear(dim, n_mels)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    @property
    def context_frames(self) -> int:
        """Frames on each side that have a say in a frame of the output."""
        return 2 + sum(block.reach for block in self.blocks)  # type: ignore[misc]

    def features(self, mel_bmf: Tensor, style_be: Tensor | None = None, visible_b1f: Tensor | None = None) -> list[Tensor]:
        """Returns the hidden layers [b, d, f], first to last."""
        if visible_b1f is None:
            visible_b1f = torch.ones_like(mel_bmf[:, :1])
        x_bdf = self.inlet(torch.cat([mel_bmf * visible_b1f, visible_b1f], dim=1))
        found = [x_bdf]
        for block in self.blocks:
            found.append(block(found[-1], style_be))
        return found

    def forward(self, mel_bmf: Tensor, style_be: Tensor | None = None, visible_b1f: Tensor | None = None) -> Tensor:
        """Restyles.

        Args:
            mel_bmf: mels whose bands have mean 0 and deviation 1 in the source style.
            style_be: what to do, [b, style_dim]; None for a network of one direction.
            visible_b1f: 1 where the network may look, 0 where it must fill in; None for everywhere.

        Returns:
            Mels [b, m, f] whose bands are to have mean 0 and deviation 1 in the target style.
        """
        h_bdf = self.features(mel_bmf, style_be, visible_b1f)[-1]
        known_bmf = mel_bmf if visible_b1f is None else mel_bmf * visible_b1f  # nothing hidden passes by the network
        return known_bmf + self.outlet(self.norm(h_bdf.transpose(1, 2))).transpose(1, 2)


class StyleEncoder(nn.Module):
    """A style vector of a clip: two strided convolutions, mean and deviation over time, one linear layer.

    Args:
        n_mels: m. style_dim: e. dim: channels.

    Source: the style encoder of Choi et al. 2020 (StarGAN v2), with statistics over time in place of a fixed size.
    """

    def __init__(self, n_mels: int, style_dim: int, *, dim: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv1d(n_mels, dim, 5, stride=2, padding=2)
        self.second = nn.Conv1d(dim, dim, 5, stride=2, padding=2)
        self.out = nn.Linear(2 * dim, style_dim)

    def forward(self, mel_bmf: Tensor) -> Tensor:
        """Returns [b, e] of normalised mels [b, m, f], f at least 1."""
        h_bdf = F.gelu(self.second(F.gelu(self.first(mel_bmf))))
        mean, deviation = h_bdf.mean(-1), (h_bdf.float().var(-1, unbiased=False) + 1e-5).sqrt().to(h_bdf)
        return self.out(torch.cat([mean, deviation], dim=-1)) / math.sqrt(2)
