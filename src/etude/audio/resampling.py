"""Resampling of streams in blocks of any size; the result equals that of the whole signal.

Shapes: c channels, n samples at the first rate, r samples at the second.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import Resample

LARGEST_TERM = 1000  # of the reduced ratio; the size of torchaudio's kernel grows with the product of the two terms
FILTER_WIDTH, ROLLOFF = 32, 0.97  # zero crossings on each side; cutoff as a share of the band, which avoids aliasing
BLOCK = 8192  # samples at the old rate that are filtered at once
MOST = 4096  # samples at the new rate that are filtered at once, one by one


class Resampler:
    """Changes the sample rate of a stream given in blocks; together the results equal the whole signal resampled at once.

    The output has no delay relative to the input. The number of samples is ceil(n * new / old), as in torchaudio. If the rates
    are equal, samples pass unchanged.

    Args:
        old: samples per second of the input, at least 1. new: samples per second of the output, at least 1.
        prompt: whether each output sample is returned as soon as its filter has its input, for a live stream. Otherwise about
            8192 input samples, whole periods of the ratio, are filtered at once, which is faster. The samples are the same.

    Raises:
        ValueError: a rate is below 1.

    Source: `torchaudio.transforms.Resample` (windowed sinc, Smith's bandlimited interpolation), whose kernel this is.
    Deviation: a ratio with large terms, such as 22257 Hz to 16000 Hz, is replaced by the nearest one with terms of at most
    1000, which is off by at most one millionth (0.002 cents); the exact kernel would take gigabytes.
    """

    def __init__(self, old: int, new: int, *, prompt: bool = False) -> None:
        if min(old, new) < 1:
            raise ValueError(f"old={old} and new={new} are sample rates in Hz, must be at least 1")
        ratio = max(Fraction(min(old, new), max(old, new)).limit_denominator(LARGEST_TERM), Fraction(1, LARGEST_TERM))
        low, high = ratio.numerator, ratio.denominator
        self.old, self.new = (low, high) if old < new else (high, low)  # the two directions are exact inverses
        if self.new != self.old:
            filters = Resample(self.old, self.new, lowpass_filter_width=FILTER_WIDTH, rolloff=ROLLOFF)
            self._kernel, self._width = filters.kernel, int(filters.width)
            self._steps = -(-BLOCK // self.old)
            self._needed = (self._steps - 1) * self.old + self._kernel.shape[-1]
            self._phases = self._by_phase(filters.kernel) if prompt else None
        self._buffer: Tensor | None = None
        self._first = 0  # of the samples and the zeros before them, the one with which the buffer begins
        self._num_received = self._num_returned = 0

    def num_samples(self, length: int) -> int:
        """Returns the number of output samples for `length` input samples."""
        return -(-length * self.new // self.old)

    @property
    def ahead(self) -> int:
        """Input samples, at most, that must follow a place in the stream before its output is returned."""
        if self.new == self.old:
            return 0
        return self._width + 1 if self._phases is not None else self._steps * self.old + self._width

    def push(self, samples_cn: Tensor) -> Tensor:
        """Adds the next samples [c, n]; returns the output samples that are complete, [c, r]; r may be 0."""
        self._num_received += samples_cn.shape[-1]
        if self.new == self.old:
            self._buffer = samples_cn[:, :0]
            return samples_cn
        before = samples_cn.new_zeros(samples_cn.shape[0], self._width) if self._buffer is None else self._buffer
        return self._filter(torch.cat([before, samples_cn], 1))

    def flush(self) -> Tensor:
        """Returns the remaining output samples of the stream, [c, r]."""
        if self._buffer is None:
            return torch.zeros(1, 0)
        if self.new == self.old:
            return self._buffer
        rest = self.num_samples(self._num_received) - self._num_returned
        return self._filter(F.pad(self._buffer, (0, self._needed + 2 * self._width)))[:, :rest]

    def _by_phase(self, kernel: Tensor) -> Tensor:
        """Returns the filter of each of the `new` output samples of a period, [new, taps], without the zeros around it."""
        starts = torch.arange(self.new) * self.old // self.new
        taps = torch.arange(2 * self._width + 2)  # the filter spans `width` on both sides of a place between two samples
        return F.pad(kernel[:, 0], (0, 2)).gather(1, starts[:, None] + taps)

    def _filter(self, buffer_cn: Tensor) -> Tensor:
        return self._filter_blocks(buffer_cn) if self._phases is None else self._filter_each(buffer_cn, self._phases)

    def _filter_each(self, buffer_cn: Tensor, phases: Tensor) -> Tensor:
        """Filters all output samples whose input is complete; output j begins at the input floor(j * old / new)."""
        taps, phases = phases.shape[1], phases.to(buffer_cn.device)
        most = self._first + buffer_cn.shape[1] - taps  # the last place at which a filter may begin
        stop = max(self._num_returned, ((most + 1) * self.new - 1) // self.old + 1)
        found = [buffer_cn[:, :0]]
        for start in range(self._num_returned, stop, MOST):
            places = torch.arange(start, min(start + MOST, stop), device=buffer_cn.device)
            windows = buffer_cn.unfold(1, taps, 1)[:, places * self.old // self.new - self._first]
            found.append((windows * phases[places % self.new]).sum(2))
        self._num_returned = stop
        begin = max(self._first, stop * self.old // self.new)
        self._buffer, self._first = buffer_cn[:, begin - self._first :], begin
        return torch.cat(found, 1)

    def _filter_blocks(self, buffer_cn: Tensor) -> Tensor:
        # blocks of one size: oneDNN caches its preparation for every shape, and many shapes would take megabytes
        found = [buffer_cn[:, :0]]
        while buffer_cn.shape[1] >= self._needed:
            piece = F.conv1d(buffer_cn[:, None, : self._needed], self._kernel.to(buffer_cn.device), stride=self.old)
            found.append(piece.transpose(1, 2).flatten(1))
            buffer_cn = buffer_cn[:, self._steps * self.old :]
            self._num_returned += found[-1].shape[1]
        self._buffer = buffer_cn
        return torch.cat(found, 1)


def resample(samples_cn: Tensor, old: int, new: int) -> Tensor:
    """Returns samples [c, ceil(n * new / old)] at the new rate."""
    resampler = Resampler(old, new)
    return torch.cat([resampler.push(samples_cn), resampler.flush()], 1)
