"""A look-ahead limiter of true peaks for a stream of samples whose peaks were measured beforehand.

Shapes: c channels, n samples, s segments of 5 ms.
"""

import math
from array import array

import torch
import torch.nn.functional as F
from torch import Tensor

SEGMENT_SECONDS = 0.005
REACH = 4  # segments over which the gain falls before a peak, and rises after it: 20 ms
OVERSAMPLING, TAPS = 4, 24  # factor; samples on which an interpolated one depends


class PeakMeter:
    """Measures the true peaks of a stream, segment by segment, from blocks of any size; 3 MB for an hour.

    The samples between the given ones are interpolated, three for each, by a sinc in a Hann window. A segment's peak includes
    the points next to it.

    Args:
        sample_rate: samples per second.

    Source: ITU-R BS.1770-4, Annex 2 (true peak by oversampling), with a longer filter than the one printed there.
    """

    def __init__(self, sample_rate: int) -> None:
        self.segment = max(1, round(SEGMENT_SECONDS * sample_rate))  # samples
        self._peaks = array("f")
        self._rest: Tensor | None = None

    def push(self, samples_cn: Tensor) -> None:
        """Adds the next samples [c, n]."""
        if self._rest is None:
            self._rest = samples_cn.new_zeros(len(samples_cn), TAPS // 2)
        samples_cn = torch.cat([self._rest, samples_cn], 1)
        whole = (samples_cn.shape[1] - TAPS) // self.segment * self.segment
        if whole > 0:
            self._peaks.extend(_segment_peaks(samples_cn[:, : whole + TAPS], self.segment))
            samples_cn = samples_cn[:, whole:]
        self._rest = samples_cn.clone()  # a view would keep the whole block

    def peaks(self) -> Tensor:
        """Returns the largest magnitude of each segment so far [s], the last of which may be incomplete."""
        found = torch.tensor(self._peaks)
        if self._rest is None or self._rest.shape[1] <= TAPS // 2:
            return found
        left = -(-(self._rest.shape[1] - TAPS // 2) // self.segment)  # segments
        padded = F.pad(self._rest, (0, left * self.segment + TAPS - self._rest.shape[1]))
        return torch.cat([found, torch.tensor(_segment_peaks(padded, self.segment))])


def _segment_peaks(samples_cn: Tensor, segment: int) -> list[float]:
    """Returns the true peaks of the segments of samples [c, s * segment + TAPS], whose first and last TAPS / 2 are context."""
    between_cpn = F.conv1d(samples_cn[:, None], _interpolators().to(samples_cn))  # the first is at TAPS / 2 - 1
    magnitude_n = torch.cat([samples_cn[:, None, TAPS // 2 - 1 : -TAPS // 2], between_cpn], 1).abs().amax((0, 1))
    nearby_n = torch.maximum(magnitude_n[:-1], magnitude_n[1:])  # what lies before a sample belongs to it, too
    found: list[float] = torch.unflatten(nearby_n, 0, (-1, segment)).amax(1).tolist()
    return found


def _interpolators() -> Tensor:
    """Returns filters [3, 1, TAPS] that give the points 1/4, 1/2 and 3/4 after the sample number TAPS / 2 - 1."""
    shifts = torch.arange(1, OVERSAMPLING, dtype=torch.float64)[:, None] / OVERSAMPLING
    distance = torch.arange(TAPS, dtype=torch.float64) - (TAPS // 2 - 1) - shifts
    taps = torch.sinc(distance) * torch.cos(math.pi * distance / TAPS).square()
    return (taps / taps.sum(-1, keepdim=True))[:, None]


def limiting_gains(peaks_s: Tensor, *, ceiling: float) -> Tensor:
    """Returns a gain in (0, 1] for each segment [s] that keeps all peaks at or below the ceiling, and varies smoothly.

    g = mean over 2 * REACH + 1 segments, in a Hann window, of the least gain that any segment within REACH + 1 needs. Each of
    the averaged gains is low enough for the segment itself and its neighbours, so their mean is, and so is `apply_gains`'s
    line between two segments.

    Args:
        peaks_s: largest magnitude of each segment. ceiling: above 0.
    """
    needed_s = (ceiling / peaks_s.double().clamp(min=1e-9)).clamp(max=1.0)
    if not len(needed_s) or float(needed_s.min()) == 1:
        return torch.ones(len(peaks_s))
    wide = F.pad(needed_s[None], (2 * REACH + 1, 2 * REACH + 1), value=1.0)
    lowest = -F.max_pool1d(-wide, 2 * REACH + 3, stride=1)
    window = torch.hann_window(2 * REACH + 3, periodic=False, dtype=torch.float64)[1:-1]
    smooth: Tensor = F.conv1d(lowest[None], (window / window.sum())[None, None])[0, 0]
    return smooth.float()


def apply_gains(samples_cn: Tensor, gains_s: Tensor, *, start: int, segment: int) -> Tensor:
    """Returns samples [c, n] times the gain at their place, on straight lines between the middles of the segments.

    Args:
        samples_cn: a part of the stream. gains_s: gains of all segments. start: number of the first sample in the stream.
        segment: samples of a segment.
    """
    place_n = (torch.arange(start, start + samples_cn.shape[1], dtype=torch.float64) + 0.5) / segment - 0.5
    first_n = place_n.floor().long()
    last = len(gains_s) - 1
    before_n, after_n = gains_s[first_n.clamp(0, last)], gains_s[(first_n + 1).clamp(0, last)]
    return samples_cn * torch.lerp(before_n, after_n, (place_n - first_n).float())
