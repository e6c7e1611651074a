"""Vocos: a vocoder of convolutions over mel frames, followed by an inverse STFT.

Shapes: b rows, m mel bands, f frames, d width, k linear frequency bins, n = f * hop samples.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOG_MAGNITUDE = 6.0  # a full-scale sine under a window of 1024 samples reaches ln 256 = 5.5
MIN_MAGNITUDE = 1e-5  # lower bound of the initial magnitude of a bin


class MelSettings(Protocol):
    """The part of `etude.audio.mel.MelContract` that the vocoder uses."""

    @property
    def n_mels(self) -> int: ...
    @property
    def n_fft(self) -> int: ...
    @property
    def hop_length(self) -> int: ...
    def filterbank(self) -> Tensor: ...
    def denormalise(self, mel: Tensor) -> Tensor: ...


def inverse_stft(spectrum_bkf: Tensor, *, n_fft: int, hop_length: int) -> Tensor:
    """Returns waveforms [b, f * hop] of a complex STFT whose frames are not centred and extend beyond the edges.

        x[i] = sum_j w[i - j hop] y_j[i - j hop] / sum_j w[i - j hop]^2,   y_j the inverse transform of frame j

    This is the least-squares signal of the spectrum under a Hann window, cut by (n_fft - hop) / 2 at both ends. It inverts
    `MelContract.spectrum` exactly. `torch.istft` refuses frames that are not centred.

    Args:
        spectrum_bkf: complex, [b, n_fft / 2 + 1, f], f at least 1.
        n_fft, hop_length: samples of a window and between frames; hop at most n_fft / 2, their difference even.

    Source: Griffin and Lim 1984, eq. 6; the cut is the "same" padding of Siuzdak 2023 (Vocos).
    """
    window = torch.hann_window(n_fft, device=spectrum_bkf.device)
    frames = torch.fft.irfft(spectrum_bkf, n_fft, dim=1) * window[:, None]
    num_frames, cut = spectrum_bkf.shape[-1], (n_fft - hop_length) // 2
    length = (num_frames - 1) * hop_length + n_fft
    sizes = {"output_size": (1, length), "kernel_size": (1, n_fft), "stride": (1, hop_length)}
    summed = F.fold(frames, **sizes)[:, 0, 0, cut : length - cut]
    weight = F.fold(window.square()[None, :, None].expand(1, -1, num_frames), **sizes)[:, 0, 0, cut : length - cut]
    return summed / weight


class ConvNeXtBlock(nn.Module):
    """ConvNeXt block: a residual branch with a depthwise convolution over frames and two linear layers, times a learned scale.

    Args:
        dim: width d. hidden_dim: width between the two linear layers. kernel_size: frames, odd. scale: initial scale.

    Source: Liu et al. 2022 (A ConvNet for the 2020s), in one dimension.
    """

    def __init__(self, *, dim: int, hidden_dim: int, kernel_size: int, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x_bdf: Tensor) -> Tensor:
        y_bfd = self.norm(self.mix(x_bdf).transpose(1, 2))
        y_bfd = self.scale * self.contract(F.gelu(self.expand(y_bfd)))
        output: Tensor = x_bdf + y_bfd.transpose(1, 2)
        return output


class Vocos(nn.Module):
    """Turns normalised mels into waveforms by predicting the magnitude and phase of each bin of each frame.

    The norm treats each frame separately, so a sample depends on at most `context_frames` frames on each side.

    Args:
        contract: the mel settings.
        dim: width d of the frames. num_layers: number of ConvNeXt blocks. hidden_dim: width inside a block.
        kernel_size: frames of each convolution, odd.

    Raises:
        ValueError: kernel_size is even or num_layers is below 1.

    Source: Siuzdak 2023 (Vocos). Deviations: the network predicts a correction of the log magnitudes that the
    pseudo-inverse of the mel filterbank gives (Lv et al. 2024, FreeV); phases refer to the middle of the window, where they
    change little from bin to bin; log magnitudes are clamped to `MAX_LOG_MAGNITUDE`.
    """

    least_squares_km: Tensor
    turn_k: Tensor

    def __init__(
        self, *, contract: MelSettings, dim: int = 192, num_layers: int = 6, hidden_dim: int = 384, kernel_size: int = 7
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1 or num_layers < 1:
            raise ValueError(f"kernel_size={kernel_size} must be odd and num_layers={num_layers} at least 1; 7 and 6 go together")
        self.mel_settings = contract
        num_bins = contract.n_fft // 2 + 1
        self.embed = nn.Conv1d(contract.n_mels, dim, kernel_size, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim=dim, hidden_dim=hidden_dim, kernel_size=kernel_size, scale=1 / num_layers)
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 2 * num_bins)
        self.register_buffer("least_squares_km", torch.linalg.pinv(contract.filterbank()), persistent=False)
        self.register_buffer("turn_k", math.pi * (torch.arange(num_bins) % 2), persistent=False)
        self._convolution_frames = (num_layers + 1) * (kernel_size // 2)  # half of the receptive field of the convolutions
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def context_frames(self) -> int:
        """Frames on each side that the samples of a frame depend on, through convolutions and overlapping windows."""
        padding = (self.mel_settings.n_fft - self.mel_settings.hop_length) // 2
        return self._convolution_frames - (-padding // self.mel_settings.hop_length)

    def hidden(self, mel_bmf: Tensor) -> Tensor:
        """Returns the normalised last hidden states [b, f, d] of normalised mels."""
        x_bdf = self.norm(self.embed(mel_bmf).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x_bdf = block(x_bdf)
        hidden: Tensor = self.final_norm(x_bdf.transpose(1, 2))
        return hidden

    def polar(self, mel_bmf: Tensor) -> tuple[Tensor, Tensor]:
        """Returns natural-log magnitudes and phases in radians, both float32 [b, k, f], of normalised mels."""
        added, phase = self.head(self.hidden(mel_bmf)).float().transpose(1, 2).chunk(2, dim=1)
        with torch.autocast(mel_bmf.device.type, enabled=False):
            linear = self.mel_settings.denormalise(mel_bmf.float()).clamp(max=MAX_LOG_MAGNITUDE).exp()
            start = (self.least_squares_km @ linear).clamp(min=MIN_MAGNITUDE).log()
        return (start + added).clamp(max=MAX_LOG_MAGNITUDE), phase + self.turn_k[:, None]

    def spectrum(self, mel_bmf: Tensor) -> Tensor:
        """Returns the complex spectrum [b, k, f] of normalised mels."""
        log_magnitude, phase = self.polar(mel_bmf)
        magnitude = log_magnitude.exp()
        return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())

    def forward(self, mel_bmf: Tensor) -> Tensor:
        """Returns waveforms [b, f * hop] of normalised mels [b, m, f], f at least 1."""
        return inverse_stft(self.spectrum(mel_bmf), n_fft=self.mel_settings.n_fft, hop_length=self.mel_settings.hop_length)
