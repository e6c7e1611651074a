"""True peaks are found between samples; limiting stays below the ceiling, is smooth, and leaves soft music alone."""

import math

import pytest
import torch
from torch import Tensor

from etude.audio.limiter import REACH, PeakMeter, apply_gains, limiting_gains

RATE = 16_000


def peaks_of(samples: Tensor, block: int = 10**9, rate: int = RATE) -> Tensor:
    meter = PeakMeter(rate)
    for part in samples.split(block, 1):
        meter.push(part)
    return meter.peaks()


def noise(seconds: float, channels: int = 2) -> Tensor:
    return 0.2 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def limited(samples: Tensor, ceiling: float) -> Tensor:
    gains = limiting_gains(peaks_of(samples), ceiling=ceiling)
    return apply_gains(samples, gains, start=0, segment=PeakMeter(RATE).segment)


def test_a_peak_between_two_samples_is_found() -> None:
    time = torch.arange(RATE, dtype=torch.float64)
    quarter = torch.sin(math.pi / 2 * time + math.pi / 4)[None].float()  # its peaks lie half-way between samples
    assert quarter.abs().max() == pytest.approx(math.sqrt(0.5), abs=1e-3)
    assert peaks_of(quarter)[2:-2].min() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("block", [1, 79, 80, 81, 5000])
@pytest.mark.parametrize("length", [1, 80, 4001])
def test_blocks_measure_as_the_whole(block: int, length: int) -> None:
    samples = noise(1)[:, :length]
    whole = peaks_of(samples)
    assert len(whole) == -(-length // 80)
    torch.testing.assert_close(peaks_of(samples, block), whole)
    assert (whole >= torch.nn.functional.pad(samples, (0, -length % 80)).unflatten(1, (-1, 80)).abs().amax((0, 2)) - 1e-6).all()


def test_what_is_soft_stays_bit_for_bit() -> None:
    samples = noise(1) * 0.1
    assert torch.equal(limited(samples, 0.99), samples)


def test_no_true_peak_exceeds_the_ceiling_and_what_is_far_from_a_peak_stays() -> None:
    samples = 0.5 * noise(2)  # its own peaks are below 0.6
    samples[:, 16_000:16_100] += 5.0
    found = limited(samples, 0.99)
    assert peaks_of(found).max() <= 0.99 * 1.01  # a gain that varies moves the interpolated points a little
    assert found[0, 16_000:16_100].abs().mean() > 0.8
    reach = 80 * (2 * REACH + 3)
    assert torch.equal(found[:, : 16_000 - reach], samples[:, : 16_000 - reach])
    assert torch.equal(found[:, 16_100 + reach :], samples[:, 16_100 + reach :])


def test_the_gain_is_smooth_and_no_lower_than_needed() -> None:
    peaks = torch.full((200,), 0.5)
    peaks[100] = 4.0
    gains = limiting_gains(peaks, ceiling=1.0)
    assert gains[100] == pytest.approx(0.25, abs=1e-6) and gains.min() == pytest.approx(0.25, abs=1e-6)
    assert (gains[99], gains[101]) == (pytest.approx(0.25, abs=1e-6),) * 2  # the line to the next one starts there
    assert gains.diff().abs().max() < 0.25
    assert (gains[: 100 - 2 * REACH - 2] == 1).all() and (gains[100 + 2 * REACH + 2 :] == 1).all()


def test_parts_get_the_gains_of_the_whole() -> None:
    samples, gains = noise(1), torch.rand(200, generator=torch.Generator().manual_seed(1))
    whole = apply_gains(samples, gains, start=0, segment=80)
    parts = [apply_gains(part, gains, start=777 * i, segment=80) for i, part in enumerate(samples.split(777, 1))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
