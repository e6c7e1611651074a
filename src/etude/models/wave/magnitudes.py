"""A network that guesses the linear magnitudes behind a mel spectrogram, with the help of a source that is partly alike.

Shapes: b rows, m mel bands, k linear frequency bins, f frames, d width.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from etude.models.wave.vocos import MAX_LOG_MAGNITUDE, ConvNeXtBlock

FIT_UPDATES = 4  # updates of the source's magnitudes towards the mel, before the network sees them
EPSILON = 1e-12


class MelSettings(Protocol):
    """The part of `etude.audio.mel.MelContract` that the network uses."""

    @property
    def n_mels(self) -> int: ...
    @property
    def n_fft(self) -> int: ...
    @property
    def floor(self) -> float: ...
    def filterbank(self) -> Tensor: ...
    def normalise(self, log_mel: Tensor) -> Tensor: ...


class Magnitudes(nn.Module):
    """Guesses the linear magnitudes of a mel spectrogram, given those of a source that may share some of its notes.

        ln M = g ln F + (1 - g) ln P + a

    F are the source's magnitudes after `FIT_UPDATES` multiplicative updates towards the mel (see `GriffinLim`), which keep the
    fine structure of the source; P those of the pseudo-inverse of the filterbank, which are smooth. The network gives a and g,
    within 0 and 1, for each bin. Without a source, F are made of P. A frame depends on `context_frames` frames on each side.

    Args:
        contract: the mel settings.
        dim: width d. num_layers: number of ConvNeXt blocks, at least 1. hidden_dim: width inside a block.
        kernel_size: frames of each convolution, odd.

    Raises:
        ValueError: kernel_size is even or num_layers is below 1.

    Source: our own; the blocks are those of Siuzdak 2023 (Vocos), the correction of a pseudo-inverse is that of Lv et al. 2024
    (FreeV).
    """

    bank_mk: Tensor
    shares_km: Tensor
    outside_k: Tensor
    least_squares_km: Tensor

    def __init__(
        self, *, contract: MelSettings, dim: int = 128, num_layers: int = 4, hidden_dim: int = 256, kernel_size: int = 7
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1 or num_layers < 1:
            raise ValueError(f"kernel_size={kernel_size} must be odd and num_layers={num_layers} at least 1; 7 and 4 go together")
        self.mel_settings, bank = contract, contract.filterbank()
        num_bins, weights = contract.n_fft // 2 + 1, bank.sum(0)[:, None]
        self.embed = nn.Linear(contract.n_mels + num_bins, dim)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim=dim, hidden_dim=hidden_dim, kernel_size=kernel_size, scale=1 / num_layers)
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 2 * num_bins)
        fixed = {
            "bank_mk": bank.clone(), "outside_k": (weights == 0).float(), "least_squares_km": torch.linalg.pinv(bank),
            "shares_km": torch.where(weights > 0, bank.T / weights.clamp(min=EPSILON), 0.0),
        }  # fmt: skip
        for name, values in fixed.items():
            self.register_buffer(name, values, persistent=False)
        self.context_frames = num_layers * (kernel_size // 2)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def hidden(self, x_bfi: Tensor) -> Tensor:
        """Returns the normalised last hidden states [b, f, d] of the inputs."""
        x_bdf = self.norm(self.embed(x_bfi)).transpose(1, 2)
        for block in self.blocks:
            x_bdf = block(x_bdf)
        hidden: Tensor = self.final_norm(x_bdf.transpose(1, 2))
        return hidden

    def inputs(self, log_mel_bmf: Tensor, source_bkf: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the network's inputs [b, f, m + k], ln F and ln P, both [b, k, f]."""
        settings = self.mel_settings
        mel = log_mel_bmf.exp().clamp(min=settings.floor)
        smooth = (self.least_squares_km @ mel).clamp(min=settings.floor)
        if source_bkf is None:
            source_bkf = torch.zeros_like(smooth)
        present = source_bkf.amax((1, 2), keepdim=True) > 0
        found = torch.where(present, source_bkf, smooth).clamp(min=settings.floor)
        known = torch.where(present, settings.normalise(found.log()), -1.0)
        for _ in range(FIT_UPDATES):
            ratio = mel / (self.bank_mk @ found).clamp(min=settings.floor)
            found = found * (self.shares_km @ ratio + self.outside_k)
        x_bif = torch.cat([settings.normalise(log_mel_bmf), known], 1)
        return x_bif.transpose(1, 2), found.clamp(min=settings.floor).log(), smooth.log()

    def forward(self, log_mel_bmf: Tensor, source_bkf: Tensor | None = None) -> Tensor:
        """Returns natural-log magnitudes [b, k, f], float32.

        Args:
            log_mel_bmf: natural-log mels, f at least 1.
            source_bkf: linear magnitudes of the source; a row that is 0 everywhere, or None, is no source.
        """
        with torch.autocast(log_mel_bmf.device.type, enabled=False):  # small magnitudes need float32
            x_bfi, fitted, smooth = self.inputs(log_mel_bmf.float(), None if source_bkf is None else source_bkf.float())
        added, gate = self.head(self.hidden(x_bfi)).float().transpose(1, 2).chunk(2, dim=1)
        found: Tensor = torch.lerp(smooth, fitted, gate.sigmoid()) + added
        return found.clamp(max=MAX_LOG_MAGNITUDE)
