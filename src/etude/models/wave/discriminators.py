"""Multi-resolution STFT discriminator of waveforms.

Shapes: b rows, n samples, k frequency bins, f frames, c channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

COMPRESSION = 0.3  # exponent of the magnitudes, so that quiet partials are not masked by loud ones


class StftDiscriminator(nn.Module):
    """Discriminator of the complex STFT of a waveform at one resolution.

    Args:
        n_fft: samples of the window; the hop is a quarter of it. channels: channels c of every layer.

    Source: Defossez et al. 2022 (EnCodec), one scale of its multi-scale STFT discriminator. Deviations: four layers,
    two of them with stride 2 over frames, too, no dilation, compressed magnitudes.
    """

    def __init__(self, *, n_fft: int, channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        sizes = [2, channels, channels, channels, channels]
        strides = [(4, 1), (2, 2), (2, 2), (2, 1)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (7, 3), stride=stride, padding=(3, 1)))
            for before, after, stride in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.score = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, samples_bn: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits [b, 1, k', f'] and the features of every layer."""
        x = self._spectrum(samples_bn)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features

    def _spectrum(self, samples_bn: Tensor) -> Tensor:
        window = torch.hann_window(self.n_fft, device=samples_bn.device)
        with torch.autocast(samples_bn.device.type, enabled=False):
            found = torch.stft(
                samples_bn.float(), self.n_fft, self.n_fft // 4, window=window, pad_mode="constant", return_complex=True
            )
            parts = torch.view_as_real(found).movedim(-1, 1)
            # inaudibly small, but needed: the root of 0 has no derivative
            return parts * (parts.square().sum(1, keepdim=True) + 1e-6) ** ((COMPRESSION - 1) / 2)


class MultiResolutionDiscriminator(nn.Module):
    """Discriminator of waveforms by their STFTs at several resolutions.

    Args:
        n_ffts: samples of the window of each resolution. channels: channels of every layer.

    Raises:
        ValueError: there is no resolution, or a window is not a multiple of 4.
    """

    def __init__(self, *, n_ffts: Sequence[int] = (256, 512, 1024, 2048), channels: int = 16) -> None:
        super().__init__()
        if not n_ffts or any(n_fft < 4 or n_fft % 4 for n_fft in n_ffts):
            raise ValueError(f"n_ffts={list(n_ffts)} must hold at least one multiple of 4, in samples; [512, 1024] is one choice")
        self.parts = nn.ModuleList(StftDiscriminator(n_fft=n_fft, channels=channels) for n_fft in n_ffts)

    def forward(self, samples_bn: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Returns the logits and the features of each resolution for waveforms [b, n]."""
        found = [part(samples_bn) for part in self.parts]
        return [logits for logits, _ in found], [features for _, features in found]
