"""A Transformer that reads mels as patches: a few bands of a few frames each.

Shapes: b rows, m mel bands, f frames, p patches of a segment, q patches that are shown, e values of a patch, d width.
"""

import torch
from torch import Tensor, nn

from etude.models.symbolic.attention import Attention
from etude.models.symbolic.blocks import Block, FeedForward
from etude.models.symbolic.kernels import rms_norm

INIT_STD = 0.02
ROPE_BASE = 1000.0  # the longest wavelength of the rotary positions is about 6,000 patches of frames


class PatchEncoder(nn.Module):
    """Encodes each patch of a mel in its segment.

    Each patch is projected to the width; an embedding of its bands is added, and its frames are rotary positions, so a segment
    may have any number of frames; those beyond whole patches are left out. The blocks are those of the score Transformer.

    Args:
        n_mels: m, a multiple of patch_bands. dim: d, a multiple of 2 num_heads. num_layers, num_heads: of the blocks.
        patch_bands, patch_frames: size of a patch. dropout: of residual branches, in [0, 1).
        fused: see `Transformer`.

    Raises: ValueError for sizes that don't fit.

    Source: Dosovitskiy et al. 2021 (patches); He et al. 2022 (encoding only some of them).
    """

    def __init__(
        self, *, n_mels: int, dim: int = 96, num_layers: int = 4, num_heads: int = 4, patch_bands: int = 16,
        patch_frames: int = 8, dropout: float = 0.0, fused: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if patch_bands < 1 or patch_frames < 1 or n_mels % patch_bands or dim % (2 * num_heads) or num_layers < 1:
            raise ValueError(
                f"n_mels={n_mels} must be a multiple of model.patch_bands={patch_bands}, model.dim={dim} one of "
                f"2 model.num_heads={2 * num_heads}, and model.patch_frames={patch_frames} and model.num_layers={num_layers} be "
                "at least 1"
            )
        self.dim, self.head_dim, self.fused = dim, dim // num_heads, fused
        self.patch_bands, self.patch_frames, self.rows = patch_bands, patch_frames, n_mels // patch_bands
        self.inlet = nn.Linear(patch_bands * patch_frames, dim)
        self.bands = nn.Embedding(self.rows, dim)
        self.blocks = nn.ModuleList(
            Block(
                attention=Attention(
                    dim=dim, num_heads=num_heads, num_kv_heads=num_heads, qk_norm=True, fused=fused, causal=False
                ),
                feed_forward=FeedForward(dim=dim, hidden_dim=-(-8 * dim // (3 * 32)) * 32),
                dropout=dropout,
                fused=fused,
            )
            for _ in range(num_layers)
        )
        self.gain = nn.Parameter(torch.ones(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises all weights as the score Transformer does."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Attention) and module.temperature is not None:
                nn.init.ones_(module.temperature)
        nn.init.normal_(self.inlet.weight, std=self.inlet.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, (Attention, FeedForward)):
                nn.init.normal_(module.output.weight, std=INIT_STD / (2 * len(self.blocks)) ** 0.5)
        nn.init.ones_(self.gain)

    def patches(self, mel_bmf: Tensor) -> Tensor:
        """Returns the values of the patches, [b, p, e], frames after frames: patch i has bands i % rows and frames i // rows.

        Raises: ValueError for a segment shorter than a patch.
        """
        columns = mel_bmf.shape[-1] // self.patch_frames
        if not columns:
            raise ValueError(f"a segment of {mel_bmf.shape[-1]} frames is shorter than model.patch_frames={self.patch_frames}")
        whole = mel_bmf[..., : columns * self.patch_frames]
        grid = whole.reshape(len(mel_bmf), self.rows, self.patch_bands, columns, self.patch_frames)
        return grid.permute(0, 3, 1, 2, 4).flatten(3).flatten(1, 2)

    def hidden(self, mel_bmf: Tensor) -> Tensor:
        """Returns the last hidden states of all patches, [b, p, d], of normalised mels."""
        return self.of_patches(self.patches(mel_bmf))

    def of_patches(self, patches_bpe: Tensor, shown_bq: Tensor | None = None) -> Tensor:
        """Returns the last hidden states of the patches that are shown, [b, q, d].

        shown_bq: their indices; None for all. The others are not computed.
        """
        x_bqd, rotary = self._projected(patches_bpe, shown_bq)
        for block in self.blocks:
            x_bqd = block(x_bqd, rotary)
        return self.end(x_bqd)

    def begin(self, mel_bmf: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns what the first block gets, [b, p, d], and its angles; with `through` and `end` the steps of `hidden`."""
        return self._projected(self.patches(mel_bmf), None)

    def through(self, block: nn.Module, x_bpd: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the output of one of `blocks`, [b, p, d]."""
        out: Tensor = block(x_bpd, rotary)
        return out

    def end(self, x_bpd: Tensor) -> Tensor:
        """Returns the normalised hidden states [b, p, d] of the last block's output."""
        normed: Tensor = rms_norm(x_bpd, fused=self.fused) * self.gain.to(x_bpd.dtype)
        return normed

    def _projected(self, patches_bpe: Tensor, shown_bq: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        count = patches_bpe.shape[1]
        index = torch.arange(count, device=patches_bpe.device).expand(len(patches_bpe), -1) if shown_bq is None else shown_bq
        given = (
            patches_bpe if shown_bq is None else patches_bpe.gather(1, shown_bq[..., None].expand(-1, -1, patches_bpe.shape[2]))
        )
        x_bqd = self.inlet(given) + self.bands(index % self.rows)
        return x_bqd, self._angles(index // self.rows, x_bqd.dtype)

    def _angles(self, column_bq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        half = self.head_dim // 2
        rate = ROPE_BASE ** (torch.arange(half, device=column_bq.device) / -half)
        angles = (column_bq.flatten().float()[:, None] * rate)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)
