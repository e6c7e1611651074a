"""Integrated loudness of a stream of samples after ITU-R BS.1770-4, in constant memory.

Shapes: c channels, n samples, s segments of 100 ms, k linear frequency bins.
"""

import math
from array import array

import torch
from torch import Tensor

ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # in LUFS; in LU below the mean of the blocks above the absolute gate
CHANNEL_WEIGHTS = {5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41)}  # left, right, centre, (bass), surround
SHELF, HIGH_PASS = (1681.974450955533, 0.7071752369554196, 3.999843853973347), (38.13547087602444, 0.5003270373238773)


class LoudnessMeter:
    """Measures the integrated, gated loudness of a stream given in blocks of any size.

    The K filters are applied to segments of 100 ms in the frequency domain, as weights on the power spectrum (Parseval),
    so that no filter state is carried over. On music the result is within 0.1 LU of the time-domain filters.

    Args:
        sample_rate: samples per second.

    Source: ITU-R BS.1770-4, Annex 1; the filters' analogue parameters from De Man 2014. Deviation: 100 ms segments are
    filtered separately; audio shorter than 400 ms is one block.
    """

    def __init__(self, sample_rate: int) -> None:
        self._length = max(1, round(0.1 * sample_rate))
        self._weights = _k_weights(sample_rate, self._length)
        self._rest: Tensor | None = None
        # plain numbers: small tensors between large buffers would prevent freed memory from being returned to the system
        self._energies = array("d")

    def push(self, samples_cn: Tensor) -> None:
        """Adds the next samples [c, n]."""
        samples_cn = samples_cn if self._rest is None else torch.cat([self._rest, samples_cn], 1)
        whole = samples_cn.shape[1] // self._length * self._length
        if whole:
            self._energies.extend(self._energy(samples_cn[:, :whole]).tolist())
        self._rest = samples_cn[:, whole:]

    def _energy(self, samples_cn: Tensor) -> Tensor:
        power_csk = torch.fft.rfft(torch.unflatten(samples_cn, 1, (-1, self._length))).abs().square()
        weights = CHANNEL_WEIGHTS.get(len(samples_cn), (1.0,) * len(samples_cn))
        energy: Tensor = torch.tensor(weights, dtype=torch.float64) @ (power_csk @ self._weights).double()
        return energy

    def loudness(self) -> float:
        """Returns the loudness of all samples so far in LUFS; -inf if no block is above -70 LUFS."""
        energy_s = torch.tensor(self._energies, dtype=torch.float64)
        if len(energy_s) < 4 and self._rest is not None and self._rest.shape[1]:
            # in very short audio the last, incomplete segment counts, too
            padded = torch.nn.functional.pad(self._rest, (0, self._length - self._rest.shape[1]))
            energy_s = torch.cat([energy_s, self._energy(padded)])
        if not len(energy_s):
            return -math.inf
        blocks = energy_s.unfold(0, min(4, len(energy_s)), 1).mean(1)
        blocks = blocks[_lufs(blocks) > ABSOLUTE_GATE]
        if not len(blocks):
            return -math.inf
        blocks = blocks[_lufs(blocks) > _lufs(blocks.mean()) + RELATIVE_GATE]
        return float(_lufs(blocks.mean()))


def _lufs(energy: Tensor) -> Tensor:
    return -0.691 + 10 * energy.log10()


def _k_weights(sample_rate: int, length: int) -> Tensor:
    """Returns weights [k] whose product with |rfft|^2 of `length` samples is the mean square of the K-weighted samples."""
    omega = 2 * math.pi * torch.arange(length // 2 + 1, dtype=torch.float64) / length
    z = torch.exp(-1j * omega)
    response = torch.ones_like(omega)
    for numerator, denominator in (_shelf(sample_rate), _high_pass(sample_rate)):
        top, bottom = (a + b * z + c * z**2 for a, b, c in (numerator, denominator))
        response = response * (top / bottom).abs().square()
    sides = torch.full_like(omega, 2.0)  # each bin also represents its mirror image at the negative frequency
    sides[0] = 1
    if length % 2 == 0:
        sides[-1] = 1
    return (response * sides / length**2).float()


Biquad = tuple[tuple[float, float, float], tuple[float, float, float]]


def _shelf(sample_rate: int) -> Biquad:
    frequency, q, gain = SHELF
    k, high = math.tan(math.pi * min(frequency / sample_rate, 0.49)), 10 ** (gain / 20)
    middle = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    numerator = ((high + middle * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - middle * k / q + k * k) / a0)
    return numerator, (1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0)


def _high_pass(sample_rate: int) -> Biquad:
    frequency, q = HIGH_PASS
    k = math.tan(math.pi * frequency / sample_rate)
    a0 = 1 + k / q + k * k
    return (1.0, -2.0, 1.0), (1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0)
