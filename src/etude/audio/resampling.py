"""Resampling of streams: the chunks of any sound, of any size, come out as the whole would.

Shapes: c channels, n samples at the first rate, r samples at the second.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import Resample

LARGEST_TERM = 1000  # of the reduced ratio; torchaudio's kernel grows with the product of the two terms
FILTER_WIDTH, ROLLOFF = 32, 0.97  # zero crossings each side, and the cutoff's share of the band: what would fold back is gone
PIECE = 8192  # samples at the old rate that are filtered at once


class Resampler:
    """Changes the sample rate of a stream of blocks; together they equal the whole file resampled at once.

    What comes out lies where it lay in time (no delay); it comes out as soon as the filter has seen what it needs.
    The number of samples is ceil(n * new / old), as in torchaudio. Equal rates pass through untouched.

    Args:
        old: samples per second of what goes in. new: of what comes out. Both at least 1.

    Raises:
        ValueError: a rate below 1.

    Source: `torchaudio.transforms.Resample` (windowed sinc, Smith's bandlimited interpolation), whose kernel this is.
    Deviation: a ratio without small terms, as 22257 Hz to 16000 Hz, is replaced by the nearest whose terms are at most
    1000, which is at most one millionth (0.002 cents) off; its kernel would take gigabytes.
    """

    def __init__(self, old: int, new: int) -> None:
        if min(old, new) < 1:
            raise ValueError(f"old={old} and new={new} are sample rates in Hz, must be at least 1")
        ratio = max(Fraction(min(old, new), max(old, new)).limit_denominator(LARGEST_TERM), Fraction(1, LARGEST_TERM))
        low, high = ratio.numerator, ratio.denominator
        self.old, self.new = (low, high) if old < new else (high, low)  # there and back are exact opposites
        if self.new != self.old:
            filters = Resample(self.old, self.new, lowpass_filter_width=FILTER_WIDTH, rolloff=ROLLOFF)
            self._kernel, self._width = filters.kernel, filters.width
            self._steps = -(-PIECE // self.old)
            self._needed = (self._steps - 1) * self.old + self._kernel.shape[-1]
        self._waiting: Tensor | None = None
        self._seen = self._given = 0

    def num_samples(self, length: int) -> int:
        """Samples that so many samples become."""
        return -(-length * self.new // self.old)

    def push(self, samples_cn: Tensor) -> Tensor:
        """Takes the next samples [c, n], returns what is settled by now, [c, r]; r may be 0."""
        self._seen += samples_cn.shape[-1]
        if self.new == self.old:
            self._waiting = samples_cn[:, :0]
            return samples_cn
        before = samples_cn.new_zeros(samples_cn.shape[0], self._width) if self._waiting is None else self._waiting
        return self._settled(torch.cat([before, samples_cn], 1))

    def flush(self) -> Tensor:
        """Returns the rest of the stream, [c, r]."""
        if self._waiting is None:
            return torch.zeros(1, 0)
        if self.new == self.old:
            return self._waiting
        rest = self.num_samples(self._seen) - self._given
        return self._settled(F.pad(self._waiting, (0, self._needed + 2 * self._width)))[:, :rest]

    def _settled(self, waiting_cn: Tensor) -> Tensor:
        # pieces of one size: oneDNN keeps what it prepares for each shape, and a long stream of odd shapes grows by megabytes
        found = [waiting_cn[:, :0]]
        while waiting_cn.shape[1] >= self._needed:
            piece = F.conv1d(waiting_cn[:, None, : self._needed], self._kernel.to(waiting_cn.device), stride=self.old)
            found.append(piece.transpose(1, 2).flatten(1))
            waiting_cn = waiting_cn[:, self._steps * self.old :]
            self._given += found[-1].shape[1]
        self._waiting = waiting_cn
        return torch.cat(found, 1)


def resample(samples_cn: Tensor, old: int, new: int) -> Tensor:
    """Returns samples [c, ceil(n * new / old)] at the new rate."""
    resampler = Resampler(old, new)
    return torch.cat([resampler.push(samples_cn), resampler.flush()], 1)
