"""The settings of mel spectrograms ("mel contract"), shared by data, models, vocoders and metrics.

Shapes: c any leading dimensions, n samples, k linear frequency bins, m mel bands, f frames.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MelContract:
    """The settings of a log-mel spectrogram, and the functions that compute, normalise and denormalise it.

    Follows HiFi-GAN: Slaney bands, magnitudes, natural logarithm with a floor, reflected edges, frames not centred, so that
    `num_frames` is samples / hop, rounded up. Immutable. A checkpoint stores it; data with other settings are refused.

    Args:
        sample_rate: samples per second.
        n_fft: samples of a window, even. hop_length: samples between frames, at most n_fft / 2.
        n_mels: number of bands. f_min, f_max: their range in Hz; f_max is at most half the sample rate.
        norm: "slaney" for bands of equal area, None for bands of equal height. mel_scale: "slaney" or "htk".
        floor: smallest magnitude; ln(floor) is the lowest value.
        ceiling: log magnitude that normalises to 1; ln(floor) normalises to -1. Louder values exceed 1; nothing is clipped.

    Raises:
        ValueError: a size or frequency is out of its range.

    Source: Kong, Kim and Bae 2020 (HiFi-GAN), for the convention.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 64
    f_min: float = 30.0
    f_max: float = 8000.0
    norm: str | None = "slaney"
    mel_scale: str = "slaney"
    floor: float = 1e-5
    ceiling: float = 2.0

    def __post_init__(self) -> None:
        if self.n_fft % 2 or not 1 <= self.hop_length <= self.n_fft // 2 or (self.n_fft - self.hop_length) % 2:
            raise ValueError(
                f"n_fft={self.n_fft} and hop_length={self.hop_length} must be even, the hop at most half of the window; "
                "1024 and 256 go together"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"f_min={self.f_min} and f_max={self.f_max} must rise and lie within [0, {self.sample_rate / 2}], "
                "half the sample rate"
            )
        if self.n_mels < 1 or self.mel_scale not in ("slaney", "htk") or self.norm not in ("slaney", None):
            raise ValueError(
                f"n_mels={self.n_mels}, mel_scale={self.mel_scale!r}, norm={self.norm!r}: give at least 1 band, slaney or htk, "
                "slaney or null"
            )
        if not self.floor > 0 or self.ceiling <= math.log(self.floor):
            raise ValueError(f"floor={self.floor} must be above 0 and ceiling={self.ceiling} above ln(floor)")

    # --- sizes ---

    @property
    def num_bins(self) -> int:
        """Number of linear frequency bins k."""
        return self.n_fft // 2 + 1

    @property
    def padding(self) -> int:
        """Samples added at each edge."""
        return (self.n_fft - self.hop_length) // 2

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of `num_samples` samples, ceil(num_samples / hop_length)."""
        return -(-num_samples // self.hop_length)

    # --- samples to frames ---

    def spectrum(self, samples_cn: Tensor) -> Tensor:
        """Returns the complex STFT [..., k, f]; f = `num_frames(n)`.

        Raises: ValueError if there are no samples.
        """
        length = samples_cn.shape[-1]
        if length == 0:
            raise ValueError("samples are empty (length 0); give at least one sample")
        whole = self.num_frames(length) * self.hop_length
        flat = F.pad(samples_cn.reshape(-1, length), (0, whole - length))
        # reflection needs more samples than it adds; very short audio is padded with silence instead
        mode = "reflect" if whole > self.padding else "constant"
        flat = F.pad(flat[:, None], (self.padding, self.padding), mode=mode)[:, 0]
        found = torch.stft(
            flat, self.n_fft, self.hop_length, window=_window(self.n_fft, flat.device), center=False, return_complex=True
        )
        return found.reshape(*samples_cn.shape[:-1], *found.shape[-2:])

    def bands(self, magnitude_ckf: Tensor) -> Tensor:
        """Returns linear mel magnitudes [..., m, f] of linear magnitudes [..., k, f]."""
        return self.filterbank(magnitude_ckf.device) @ magnitude_ckf

    def filterbank(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns the filterbank [m, k] that turns linear magnitudes into mel magnitudes."""
        return _filterbank(self, torch.device(device))

    def log_mel(self, samples_cn: Tensor) -> Tensor:
        """Returns ln max(mel magnitude, floor), [..., m, f], of samples in [-1, 1]."""
        return self.bands(self.spectrum(samples_cn).abs()).clamp(min=self.floor).log()

    # --- the affine map ---

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Returns log mels mapped linearly from [ln floor, ceiling] to [-1, 1]."""
        low = math.log(self.floor)
        return (log_mel - low) * (2 / (self.ceiling - low)) - 1

    def denormalise(self, mel: Tensor) -> Tensor:
        """Returns log mels of normalised ones: the inverse of `normalise`."""
        low = math.log(self.floor)
        return (mel + 1) * ((self.ceiling - low) / 2) + low

    @property
    def scale(self) -> float:
        """Nats per unit of a normalised mel."""
        return (self.ceiling - math.log(self.floor)) / 2

    # --- identity ---

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings, so that `MelContract(**settings)` is equal."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """A short hash of all settings."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: "MelContract") -> str:
        """Returns the settings that differ, as "n_mels 64, here 128"; an empty string if none do."""
        mine, its = self.to_dict(), other.to_dict()
        return ", ".join(f"{name} {mine[name]}, here {its[name]}" for name in mine if mine[name] != its[name])


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # training may use what an evaluation asked for first
def _window(n_fft: int, device: torch.device) -> Tensor:
    return torch.hann_window(n_fft, device=device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _filterbank(contract: MelContract, device: torch.device) -> Tensor:
    bank: Tensor = AF.melscale_fbanks(
        contract.num_bins,
        contract.f_min,
        contract.f_max,
        contract.n_mels,
        contract.sample_rate,
        norm=contract.norm,
        mel_scale=contract.mel_scale,
    )
    return bank.T.contiguous().to(device)
