"""Generators of mel spectrograms: one-dimensional convolutions over time, with the frequency bands as channels.

Shapes: b batch, m mel bands, f frames, d channels, e style dimensions.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Residual block: x + W gelu(dilated convolution of film(norm(x))).

    The norm treats each frame separately, so the receptive field is finite: an excerpt gives the same output as the whole,
    except near its edges. The convolutions are dense, since depthwise ones of these sizes are slower on CPUs, above all in the
    backward pass.

    Source: He et al. 2016 (pre-activation residual blocks); Perez et al. 2018 (FiLM) for the style.
    """

    def __init__(self, *, dim: int, kernel_size: int, dilation: int, expansion: int, style_dim: int) -> None:
        super().__init__()
        self.context_frames = dilation * (kernel_size // 2)
        self.norm = nn.LayerNorm(dim)
        self.film = nn.Linear(style_dim, 2 * dim) if style_dim else None
        self.convolution = nn.Conv1d(dim, expansion * dim, kernel_size, padding=self.context_frames, dilation=dilation)
        self.project = nn.Conv1d(expansion * dim, dim, 1)
        if self.film is not None:
            nn.init.zeros_(self.film.bias)
            nn.init.normal_(self.film.weight, std=0.02)

    def forward(self, x_bdf: Tensor, style_be: Tensor | None) -> Tensor:
        h_bfd = self.norm(x_bdf.transpose(1, 2))
        if self.film is not None and style_be is not None:
            scale, shift = self.film(style_be)[:, None].chunk(2, dim=-1)
            h_bfd = h_bfd * (1 + scale) + shift
        output: Tensor = x_bdf + self.project(F.gelu(self.convolution(h_bfd.transpose(1, 2))))
        return output


class MelGenerator(nn.Module):
    """Translates a mel spectrogram to another style: the output is the input plus a learned residual, 0 before training.

    The bands are the channels of one-dimensional convolutions over time. So one layer can move a note by an octave, which a
    two-dimensional network with small kernels can't, and a frame costs a hundredth of its multiplications. There is no
    stride: any number of frames from 1 is accepted, and the output has as many.

    Args:
        n_mels: number of bands m.
        style_dim: size e of the style vector; 0 for a generator of one direction, which takes no style vector.
        dim: channels d.
        num_blocks: residual blocks, at least 1.
        kernel_size: kernel size of the blocks' convolutions, odd.
        dilations: dilations of the blocks, repeated as often as needed.
        expansion: width of a block's hidden layer as a multiple of d.

    Raises:
        ValueError: an argument is out of its range.
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
            ResidualBlock(
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
        """Frames on each side that an output frame depends on (half of the receptive field)."""
        return 2 + sum(block.context_frames for block in self.blocks)  # type: ignore[misc]

    def features(self, mel_bmf: Tensor, style_be: Tensor | None = None, visible_b1f: Tensor | None = None) -> list[Tensor]:
        """Returns the outputs of all hidden layers [b, d, f], first to last; arguments as of `forward`."""
        if visible_b1f is None:
            visible_b1f = torch.ones_like(mel_bmf[:, :1])
        x_bdf = self.inlet(torch.cat([mel_bmf * visible_b1f, visible_b1f], dim=1))
        found = [x_bdf]
        for block in self.blocks:
            found.append(block(found[-1], style_be))
        return found

    def forward(self, mel_bmf: Tensor, style_be: Tensor | None = None, visible_b1f: Tensor | None = None) -> Tensor:
        """Translates mels to another style.

        Args:
            mel_bmf: mels, standardised by band with the statistics of the source style.
            style_be: style vector [b, style_dim]; None for a generator of one direction.
            visible_b1f: 1 where a frame is given, 0 where it is hidden and must be filled in; None if all are given.

        Returns:
            Mels [b, m, f], standardised by band with the statistics of the target style.
        """
        h_bdf = self.features(mel_bmf, style_be, visible_b1f)[-1]
        known_bmf = (
            mel_bmf if visible_b1f is None else mel_bmf * visible_b1f
        )  # the residual connection must not leak hidden frames
        output: Tensor = known_bmf + self.outlet(self.norm(h_bdf.transpose(1, 2))).transpose(1, 2)
        return output


class StyleEncoder(nn.Module):
    """Encodes a clip as a style vector: two strided convolutions, mean and deviation over time, one linear layer.

    Args:
        n_mels: number of bands m. style_dim: size e of the style vector. dim: channels.

    Source: the style encoder of Choi et al. 2020 (StarGAN v2), with statistics over time in place of a fixed size.
    """

    def __init__(self, n_mels: int, style_dim: int, *, dim: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv1d(n_mels, dim, 5, stride=2, padding=2)
        self.second = nn.Conv1d(dim, dim, 5, stride=2, padding=2)
        self.out = nn.Linear(2 * dim, style_dim)

    def forward(self, mel_bmf: Tensor) -> Tensor:
        """Returns the style vectors [b, e] of mels [b, m, f], f at least 1."""
        h_bdf = F.gelu(self.second(F.gelu(self.first(mel_bmf))))
        mean, deviation = h_bdf.mean(-1), (h_bdf.float().var(-1, unbiased=False) + 1e-5).sqrt().to(h_bdf)
        style: Tensor = self.out(torch.cat([mean, deviation], dim=-1))
        return style / math.sqrt(2)
