"""Discriminators of mel spectrograms, with a logit for each patch and an output channel for each style.

Shapes: b batch, m mel bands, f frames, c channels, s styles, h, w patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

SLOPE = 0.2
SILENCE = -1.0  # value of silence in a normalised mel


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator of a mel spectrogram at one or several resolutions, conditioned on the style.

    Each scale has `num_layers` convolutions 4 x 4 with stride 2 whose channels double, one 3 x 3 convolution and a 3 x 3
    output, with leaky ReLU and without normalisation; the input of scale i is the mel after i average poolings over 2 x 2.
    Any number of frames is accepted: the mel is padded with silence to a multiple of the stride.

    Args:
        num_styles: s, the number of output channels, of which the style selects one.
        n_mels: ignored; any number of bands is accepted.
        channels: channels of the first layer; each next layer has twice as many, up to 8 times.
        num_layers: strided layers, at least 1; the receptive field is 7 * 2^num_layers - 2 frames and bands,
            so 26 with 2 layers and 54 with 3.
        num_scales: 1 to 3.
        spectral_norm: divide each weight by its largest singular value (one power iteration per training pass).
        frequency_channel: add an input channel with the height of the band, from -1 (lowest) to 1. A convolution does not know
            it, and the register of an instrument is part of a style.

    Raises:
        ValueError: an argument is out of its range.

    Source: Isola et al. 2017 (PatchGAN); Wang et al. 2018 (several scales); Choi et al. 2020, StarGAN v2 (an output for
    each style); Miyato et al. 2018 (spectral norm); Liu et al. 2018 (coordinates). Deviation: no instance norm, which
    would remove the level, a property of a style, and 3 x 3 kernels at stride 1, which keep the number of patches.
    """

    def __init__(
        self,
        num_styles: int,
        *,
        n_mels: int = 64,
        channels: int = 32,
        num_layers: int = 3,
        num_scales: int = 1,
        spectral_norm: bool = False,
        frequency_channel: bool = True,
    ) -> None:
        super().__init__()
        if num_styles < 1 or channels < 1 or num_layers < 1 or not 1 <= num_scales <= 3:
            raise ValueError(
                f"num_styles={num_styles}, channels={channels}, num_layers={num_layers} must be at least 1, "
                f"num_scales={num_scales} 1 to 3"
            )
        self.num_styles, self.num_layers, self.num_scales = num_styles, num_layers, num_scales
        self.frequency_channel = frequency_channel
        self.scales = nn.ModuleList(
            _patch_layers(1 + frequency_channel, channels, num_layers, num_styles, spectral_norm) for _ in range(num_scales)
        )

    @property
    def stride(self) -> int:
        """Frames and bands are padded to a multiple of this."""
        return int(2 ** (self.num_layers + self.num_scales - 1))

    def forward(self, mel_bmf: Tensor, style_b: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Returns the logits and hidden features of normalised mels.

        Args:
            mel_bmf: normalised log mels, -1 is silence; m and f at least 1.
            style_b: index of the style whose logits are returned, int64.

        Returns:
            For each scale the logits [b, 1, h, w] of the style, and the features [b, c, h, w] of each hidden layer.
        """
        x = _padded(mel_bmf, self.stride)[:, None]
        logits, features = [], []
        for scale, layers in enumerate(self.scales):
            if scale:
                x = F.avg_pool2d(x, 2)
            found = self._features(x, layers)
            features.append(found[:-1])
            logits.append(_select_style(found[-1], style_b))
        return logits, features

    def _features(self, mel_b1mf: Tensor, layers: nn.Module) -> list[Tensor]:
        x = mel_b1mf
        if self.frequency_channel:
            height = torch.linspace(-1, 1, x.shape[-2], device=x.device, dtype=x.dtype)
            x = torch.cat([x, height[:, None].expand_as(x)], dim=1)
        found = []
        for index, layer in enumerate(layers):  # type: ignore[arg-type, var-annotated]
            x = layer(F.leaky_relu(x, SLOPE) if index else x)
            found.append(x)
        return found


class FrameDiscriminator(nn.Module):
    """One-dimensional discriminator over the frames of a mel spectrogram, conditioned on the style.

    The bands are the input channels of convolutions over time: kernel 5, then `num_layers` times kernel 5 with stride 2, then
    3 and 3, with leaky ReLU. It costs a tenth of a two-dimensional discriminator and needs no frequency channel.

    Args:
        num_styles: s, the number of output channels, of which the style selects one.
        n_mels: number of bands m.
        channels: channels of every hidden layer.
        num_layers: strided layers, at least 1; the receptive field is 33 frames with 2, 65 with 3. It should span a few beats:
            only the context shows that a harmony does not fit.
        spectral_norm: divide each weight by its largest singular value.

    Raises:
        ValueError: an argument is out of its range.

    Source: Kaneko and Kameoka 2018 (CycleGAN-VC), with one output channel for each style (Choi et al. 2020).
    """

    def __init__(
        self, num_styles: int, *, n_mels: int = 64, channels: int = 128, num_layers: int = 3, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        if min(num_styles, n_mels, channels, num_layers) < 1:
            raise ValueError(f"num_styles={num_styles}, channels={channels}, num_layers={num_layers} must be at least 1")
        layers: list[nn.Module] = [nn.Conv1d(n_mels, channels, 5, padding=2)]
        layers += [nn.Conv1d(channels, channels, 5, stride=2, padding=2) for _ in range(num_layers)]
        layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.Conv1d(channels, num_styles, 3, padding=1)]
        self.layers = nn.ModuleList(with_spectral_norm(layer) if spectral_norm else layer for layer in layers)

    def forward(self, mel_bmf: Tensor, style_b: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Returns ([logits [b, 1, w]], [features [b, c, w] of each hidden layer]) of mels [b, m, f] for the styles [b]."""
        found = []
        x = mel_bmf
        for index, layer in enumerate(self.layers):
            x = layer(F.leaky_relu(x, SLOPE) if index else x)
            found.append(x)
        return [x[torch.arange(len(style_b), device=style_b.device), style_b][:, None]], [found[:-1]]


def _patch_layers(inputs: int, channels: int, num_layers: int, outputs: int, spectral_norm: bool) -> nn.ModuleList:
    widths = [inputs, *(channels * min(2**i, 8) for i in range(num_layers + 1))]
    layers: list[nn.Module] = [nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1) for i in range(num_layers)]
    layers += [nn.Conv2d(widths[-2], widths[-1], 3, padding=1), nn.Conv2d(widths[-1], outputs, 3, padding=1)]
    return nn.ModuleList(with_spectral_norm(layer) if spectral_norm else layer for layer in layers)


def _padded(mel_bmf: Tensor, stride: int) -> Tensor:
    """Returns the mel with bands and frames padded with silence to a multiple of the stride."""
    bands, frames = (-size % stride for size in mel_bmf.shape[-2:])
    return F.pad(mel_bmf, (0, frames, 0, bands), value=SILENCE)


def _select_style(logits_bshw: Tensor, style_b: Tensor) -> Tensor:
    return logits_bshw[torch.arange(len(style_b), device=style_b.device), style_b][:, None]
