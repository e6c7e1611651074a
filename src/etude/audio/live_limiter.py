"""A limiter for a live stream: it looks 5 ms ahead and no farther, and so needs no measuring beforehand.

Shapes: c channels, n samples, s segments of 1 ms.
"""

import numpy as np
import torch
from torch import Tensor

SEGMENT_SECONDS = 0.001
REACH = 4  # segments over which the gain falls before a peak
RELEASE_SECONDS = 0.2  # in which 63 % of a reduction are taken back


class LiveLimiter:
    """Keeps the samples of a stream at or below a ceiling by gains that fall within 4 ms before a peak and rise slowly after it.

    With q_s the gain that segment s needs, h_s = min(q_s, ..., q_{s+4}), r_s = min(h_s, r_{s-1} + (1 - r_{s-1}) / release), the
    gain at the border of segments s and s + 1 is the mean of r_{s-3} ... r_s, and straight within a segment. Each of these r is
    at most q_s and q_{s+1}, so no sample exceeds the ceiling. Sample peaks count, not true peaks: keep the ceiling below 1.

    Args:
        sample_rate: samples per second. ceiling: largest magnitude, above 0.
    """

    def __init__(self, sample_rate: int, *, ceiling: float = 0.95) -> None:
        self.ceiling = ceiling
        self.segment = max(1, round(SEGMENT_SECONDS * sample_rate))
        self._rise = min(1.0, self.segment / (RELEASE_SECONDS * sample_rate))
        self._needed: list[float] = []  # of the segments that are waiting
        self._recent: list[float] = []  # r of the last REACH segments that were returned
        self._border = 1.0  # gain at the end of the last of them
        self._buffer: Tensor | None = None
        self.limited = self.segments = 0  # how many segments were made softer by more than 0.01 dB, of how many

    @property
    def ahead(self) -> int:
        """Samples, at most, that must follow a sample before it is returned."""
        return (REACH + 1) * self.segment

    def push(self, samples_cn: Tensor) -> Tensor:
        """Adds the next samples [c, n]; returns those whose gain is known, [c, r]."""
        self._buffer = samples_cn if self._buffer is None else torch.cat([self._buffer, samples_cn], 1)
        whole = self._buffer.shape[1] // self.segment
        for s in range(len(self._needed), whole):
            peak = float(self._buffer[:, s * self.segment : (s + 1) * self.segment].abs().max())
            self._needed.append(min(1.0, self.ceiling / max(peak, 1e-9)))
        return self._release(max(0, whole - REACH))

    def flush(self) -> Tensor:
        """Returns the remaining samples, [c, r]."""
        if self._buffer is None:
            return torch.zeros(1, 0)
        length = self._buffer.shape[1]
        silence = self._buffer.new_zeros(len(self._buffer), (REACH + 1) * self.segment)
        return self.push(silence)[:, :length]

    def _release(self, count: int) -> Tensor:
        assert self._buffer is not None
        if count and not self._recent:  # the stream begins with the gain that it needs
            self._border = min(self._needed[: REACH + 1])
            self._recent = [self._border] * REACH
        borders = [self._border]
        for s in range(count):
            held, last = min(self._needed[s : s + REACH + 1]), self._recent[-1]
            self._recent = [*self._recent[1:], min(held, last + (1 - last) * self._rise)]
            borders.append(sum(self._recent) / REACH)
        self._border = borders[-1]
        done, self._buffer = self._buffer[:, : count * self.segment], self._buffer[:, count * self.segment :].clone()
        self._needed = self._needed[count:]
        self.limited += sum(border < 0.999 for border in borders[1:])
        self.segments += count
        places = (np.arange(count * self.segment) + 0.5) / self.segment
        gain_n = np.interp(places, np.arange(count + 1), borders) if count else places
        return done * torch.from_numpy(gain_n).to(done)
