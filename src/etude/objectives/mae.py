"""Masked autoencoding: show a few patches of a mel to the encoder, and let a small decoder predict the others.

Shapes: b rows, p patches, q patches that are shown, e values of a patch, d width of the encoder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVELENGTH = 1000.0  # the longest one of the sinusoids of frames is about 6,000 patches


class Mae(nn.Module):
    """Chooses the patches that are shown, predicts the values of all, and compares those that were hidden.

    Args:
        dim: d of the encoder. values: e. rows: patches above each other.
        share: of the patches that are hidden, in (0, 1).
        decoder_dim, decoder_layers, decoder_heads: sizes of the decoder.

    Raises: ValueError for a value out of range.

    Source: He et al. 2022, sections 3 and 4.1 (75 % hidden; each patch is normalised; a narrow decoder that sees mask tokens,
    which the encoder does not).
    """

    def __init__(
        self, *, dim: int, values: int, rows: int, share: float = 0.75, decoder_dim: int = 48, decoder_layers: int = 1,
        decoder_heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < share < 1 or decoder_layers < 1 or decoder_dim % (2 * decoder_heads):
            raise ValueError(
                f"objective.share={share} must lie in (0, 1), decoder_layers={decoder_layers} be at least 1, and "
                f"decoder_dim={decoder_dim} a multiple of 2 decoder_heads={2 * decoder_heads}"
            )
        self.share, self.rows = share, rows
        self.inlet, self.mask = nn.Linear(dim, decoder_dim), nn.Parameter(torch.randn(decoder_dim) * 0.02)
        self.bands = nn.Embedding(rows, decoder_dim)
        nn.init.normal_(self.bands.weight, std=0.02)
        self.columns = nn.Linear(decoder_dim, decoder_dim, bias=False)  # of the sinusoids of frames
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                decoder_dim, decoder_heads, 2 * decoder_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(decoder_layers)
        )
        self.norm, self.outlet = nn.LayerNorm(decoder_dim), nn.Linear(decoder_dim, values)

    def shown(self, rows: int, count: int, device: torch.device) -> Tensor:
        """Returns the indices of the patches that are shown in each row, rising, int64 [b, q]. Draws from torch's generator.

        Raises: ValueError if there are too few patches to hide and to show some.
        """
        number = round(count * (1 - self.share))
        if not 0 < number < count:
            raise ValueError(
                f"objective.share={self.share} of {count} patches hides all or none; set data.segment_frames higher, or model."
                "patch_frames lower"
            )
        return torch.rand(rows, count, device=device).argsort(1)[:, :number].sort(1).values

    def predicted(self, states_bqd: Tensor, shown_bq: Tensor, count: int) -> Tensor:
        """Returns the predicted values of all `count` patches, [b, p, e], from the encoder's states of those that are shown."""
        known = self.inlet(states_bqd)
        x = self.mask.to(known.dtype).expand(len(known), count, -1)
        x = x.scatter(1, shown_bq[..., None].expand_as(known), known)
        index = torch.arange(count, device=known.device)
        x = x + self.bands(index % self.rows) + self.columns(_sinusoids(index // self.rows, x.shape[-1]))
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.outlet(self.norm(x))
        return found

    def loss(self, predicted_bpe: Tensor, patches_bpe: Tensor, shown_bq: Tensor) -> Tensor:
        """Returns the mean squared error of the hidden patches, each normalised first; predicting their mean has 1."""
        target = F.layer_norm(patches_bpe.float(), patches_bpe.shape[-1:], eps=1e-6)
        error = (predicted_bpe.float() - target).square().mean(-1)
        hidden = torch.ones_like(error, dtype=torch.bool).scatter(1, shown_bq, False)
        return error[hidden].mean()


def _sinusoids(place_p: Tensor, dim: int) -> Tensor:
    """Returns sines and cosines of places, [p, dim] (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    angles = place_p.float()[:, None] * WAVELENGTH ** (torch.arange(half, device=place_p.device) / -half)
    return torch.cat((angles.sin(), angles.cos()), dim=1)
