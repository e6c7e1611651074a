"""A variational network from aligned piano rolls to mel spectrograms: convolutions over time, one latent vector for each clip.

Shapes: b batch, k = 2 kinds of channels (onset, sustain), p instruments, m mel bands, f frames, d channels, z latents.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.models.mel.generator import ResidualBlock

KINDS, PITCHES = 2, 128
STOP_RATE = 0.02  # probability of the end that the untrained network gives each frame


class ClipEncoder(nn.Module):
    """Computes the posterior of a clip's latents from its mel and from what the decoder knows of the score.

    Two convolutions over time, the mean over the frames that count, one linear layer.
    """

    def __init__(self, n_mels: int, score_dim: int, latent_dim: int, *, dim: int = 64) -> None:
        super().__init__()
        self.score = nn.Conv1d(score_dim, dim, 1)
        self.first = nn.Conv1d(n_mels, dim, 5, padding=2)
        self.second = nn.Conv1d(dim, dim, 5, padding=2)
        self.out = nn.Linear(dim, 2 * latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # the posterior begins as the prior

    def forward(self, mel_bmf: Tensor, score_bdf: Tensor, counted_bf: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance, [b, z] each, float32; `counted_bf` is 1 in frames that count, 0 in others."""
        counted_b1f = counted_bf[:, None].float()
        h_bdf = F.gelu(self.second(F.gelu(self.first(mel_bmf * counted_b1f) + self.score(score_bdf))))
        mean_bd = (h_bdf.float() * counted_b1f).sum(-1) / counted_b1f.sum(-1).clamp(min=1)
        mean_bz, log_variance_bz = self.out(mean_bd.to(h_bdf)).float().chunk(2, dim=-1)
        return mean_bz, log_variance_bz.clamp(-8, 8)


class ScoreVae(nn.Module):
    """Predicts the mel of each frame from the notes around it and a latent vector for what the score does not say.

    The roll is mixed over instruments and kinds into `voices` for each pitch, the same mixture at every pitch, and then goes
    through residual dilated convolutions that the latents modulate (FiLM). There is no stride: any number of frames is accepted.

    Args:
        n_mels: number of bands m. num_instruments: p.
        dim: channels d. num_blocks: residual blocks, at least 1. kernel_size: odd. dilations: of the blocks, repeated as needed.
        expansion: width of a block's hidden layer as a multiple of d.
        voices: channels for each pitch after mixing the instruments; 0: every instrument keeps its own.
        latent_dim: size z of the latent vector.

    Raises:
        ValueError: an argument is out of its range.

    Source: Kingma and Welling 2014 for the latents, Perez et al. 2018 for FiLM.
    """

    def __init__(
        self,
        n_mels: int,
        num_instruments: int,
        *,
        dim: int = 192,
        num_blocks: int = 4,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1, 4, 16),
        expansion: int = 1,
        voices: int = 8,
        latent_dim: int = 16,
    ) -> None:
        super().__init__()
        if min(n_mels, num_instruments, dim, num_blocks, expansion, latent_dim) < 1 or voices < 0:
            raise ValueError(
                f"model.dim={dim}, num_blocks={num_blocks}, expansion={expansion} and latent_dim={latent_dim} must be at least "
                f"1, voices={voices} at least 0"
            )
        if kernel_size % 2 == 0 or kernel_size < 1 or not dilations or min(dilations) < 1:
            raise ValueError(f"model.kernel_size={kernel_size} must be odd and dilations={list(dilations)} at least 1 each")
        self.num_instruments, self.latent_dim = num_instruments, latent_dim
        self.mix = nn.Parameter(torch.empty(voices, KINDS * num_instruments)) if voices else None
        if self.mix is not None:
            nn.init.kaiming_uniform_(self.mix, a=math.sqrt(5))  # as a linear layer
        self.inlet = nn.Conv1d((voices or KINDS * num_instruments) * PITCHES, dim, 1)
        self.encoder = ClipEncoder(n_mels, dim, latent_dim)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                dim=dim,
                kernel_size=kernel_size,
                dilation=dilations[i % len(dilations)],
                expansion=expansion,
                style_dim=latent_dim,
            )
            for i in range(num_blocks)
        )
        self.norm, self.outlet, self.end = nn.LayerNorm(dim), nn.Linear(dim, n_mels), nn.Conv1d(dim, 1, 1)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)
        nn.init.zeros_(self.end.weight)
        assert self.end.bias is not None
        nn.init.constant_(self.end.bias, math.log(STOP_RATE / (1 - STOP_RATE)))

    @property
    def context_frames(self) -> int:
        """Frames on each side that an output frame depends on (half of the receptive field)."""
        return sum(block.context_frames for block in self.blocks)  # type: ignore[misc]

    def read(self, roll_bkptf: Tensor) -> Tensor:
        """Returns what the decoder begins with, [b, d, f], of rolls [b, 2, p, 128, f]."""
        channels = roll_bkptf.flatten(1, 2)  # [b, k * p, 128, f]
        if self.mix is not None:
            channels = torch.einsum("vc,bctf->bvtf", self.mix.to(channels), channels)
        found: Tensor = self.inlet(channels.flatten(1, 2))
        return found

    def encode(self, mel_bmf: Tensor, score_bdf: Tensor, counted_bf: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance of the latents, [b, z] each; arguments as of `ClipEncoder`."""
        mean_bz, log_variance_bz = self.encoder(mel_bmf, score_bdf, counted_bf)
        return mean_bz, log_variance_bz

    def hidden(self, score_bdf: Tensor, latent_bz: Tensor) -> Tensor:
        """Returns the last hidden states, [b, f, d]."""
        h_bdf = score_bdf
        for block in self.blocks:
            h_bdf = block(h_bdf, latent_bz)
        found: Tensor = self.norm(h_bdf.transpose(1, 2))
        return found

    def decode(self, score_bdf: Tensor, latent_bz: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mels [b, m, f], standardised by band, and the logits [b, f] of being behind the end of the music."""
        h_bfd = self.hidden(score_bdf, latent_bz)
        return self.outlet(h_bfd).transpose(1, 2), self.end(h_bfd.transpose(1, 2))[:, 0]
