"""Random views of segments of mels: other pitch and speed, crops, noise, and a little of another segment.

Shapes: b rows, m mel bands, f frames, g frames of a view, s shifts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.audio.mel import MelContract


class MelViews:
    """Draws views of a batch of normalised mels, from torch's generator.

    Args:
        contract: of the mels.
        semitones: largest transposition, up and down; it moves the spectrum along the bands, formants included.
        stretch: largest change of the speed, in [0, 1): a view is 1 - stretch to 1 + stretch times as fast.
        noise: largest level of white noise, as a share of the segment's mean magnitude, at least 0.
        mix: largest share of another segment of the batch that is mixed in, in [0, 1).
    """

    def __init__(self, contract: MelContract, *, semitones: int, stretch: float, noise: float, mix: float) -> None:
        self.contract, self.semitones, self.stretch, self.noise, self.mix = contract, semitones, stretch, noise, mix
        centres = _band_centres(contract)
        bands = np.arange(contract.n_mels)
        rows = []
        for shift in range(-semitones, semitones + 1):
            source = np.interp(centres / 2 ** (shift / 12), centres, bands, left=0.0)  # the band from which each one comes
            low = np.floor(source).astype(int).clip(0, contract.n_mels - 2)
            matrix = np.zeros((contract.n_mels, contract.n_mels), np.float32)
            matrix[bands, low], matrix[bands, low + 1] = 1 - (source - low), source - low
            rows.append(matrix)
        self.moves = torch.from_numpy(np.stack(rows))  # [s, m, m], of log mels

    def view(self, mel_bmf: Tensor, *, least: float, most: float = 1.0) -> Tensor:
        """Returns a view of each row, [b, m, g].

        least, most: the share of the frames that a view shows, in (0, 1], the same in all rows; where it begins differs.
        """
        rows, frames, device = len(mel_bmf), mel_bmf.shape[-1], mel_bmf.device
        share = least + (most - least) * float(torch.rand(()))
        speed = 1 + self.stretch * (2 * float(torch.rand(())) - 1)
        length = max(1, min(frames, round(frames * share)))
        read = max(1, min(frames, round(length * speed)))  # frames that become `length` frames
        first_b = (torch.rand(rows, device=device) * (frames - read + 1)).long()
        index = (first_b[:, None] + torch.arange(read, device=device))[:, None].expand(-1, mel_bmf.shape[1], -1)
        view = mel_bmf.gather(2, index)
        if read != length:
            view = F.interpolate(view, size=length, mode="linear", align_corners=False)
        if self.semitones:
            shift_b = torch.randint(len(self.moves), (rows,), device=device)
            view = self.moves.to(view)[shift_b] @ view
        return self._dirtied(view)

    def _dirtied(self, mel_bmf: Tensor) -> Tensor:
        """Returns the mels with another row mixed in, and noise added; magnitudes are added as those of independent sounds."""
        if not self.mix and not self.noise:
            return mel_bmf
        power = (2 * self.contract.denormalise(mel_bmf)).exp()
        rows, device = len(mel_bmf), mel_bmf.device
        if self.mix and rows > 1:
            share = self.mix * torch.rand(rows, 1, 1, device=device)
            power = (1 - share).square() * power + share.square() * power.roll(1, 0)
        if self.noise:
            level = self.noise * torch.rand(rows, 1, 1, device=device) * power.mean((1, 2), keepdim=True).sqrt()
            power = power + level.square() * torch.empty_like(power).exponential_()  # the power of white noise in a bin
        return self.contract.normalise(power.clamp(min=self.contract.floor**2).log() / 2).to(mel_bmf.dtype)


def _band_centres(contract: MelContract) -> np.ndarray:
    """Returns the centre frequency of each band in Hz, rising, [m]: the mean of the bins by their weight."""
    weights = contract.filterbank("cpu").double().numpy()
    hertz = np.linspace(0, contract.sample_rate / 2, weights.shape[1])
    total = weights.sum(1)
    centres = np.where(total > 0, (weights @ hertz) / np.maximum(total, 1e-12), np.nan)
    known = ~np.isnan(centres)
    filled = np.interp(np.arange(len(centres)), np.flatnonzero(known), centres[known])
    rising: np.ndarray = np.maximum.accumulate(filled) + np.arange(len(filled)) * math.ulp(contract.sample_rate)
    return rising
