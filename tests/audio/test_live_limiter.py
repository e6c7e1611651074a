"""The live limiter: nothing above the ceiling, nothing changed that needs no change, the same for blocks of any size."""

import pytest
import torch
from torch import Tensor

from etude.audio.live_limiter import LiveLimiter


def limited(samples_cn: Tensor, size: int, *, rate: int = 16_000, ceiling: float = 0.95) -> Tensor:
    limiter = LiveLimiter(rate, ceiling=ceiling)
    return torch.cat([*(limiter.push(block) for block in samples_cn.split(size, 1)), limiter.flush()], 1)


def noise(seconds: float, level: float) -> Tensor:
    return level * torch.randn(2, round(16_000 * seconds), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 7, 160, 5000, 10**6])
def test_no_sample_exceeds_the_ceiling_whatever_the_blocks(size: int) -> None:
    samples = noise(0.25, 0.6)
    found = limited(samples, size)
    assert found.shape == samples.shape and samples.abs().max() > 1.5
    assert found.abs().max() <= 0.95 * (1 + 1e-6)
    torch.testing.assert_close(found, limited(samples, 333))


def test_what_stays_below_the_ceiling_is_not_touched() -> None:
    samples = noise(0.5, 0.1)
    assert torch.equal(limited(samples, 100), samples)


def test_the_gain_falls_just_before_a_peak_and_comes_back() -> None:
    samples = torch.full((1, 32_000), 0.5)
    samples[:, 8000:8010] = 1.9
    found = limited(samples, 64) / samples
    assert found[0, : 8000 - 16 * 6].min() == 1  # 6 ms before
    assert found[0, 8000:8010].max() <= 0.5 * (1 + 1e-6)
    assert found[0, 8000 + 3200] == pytest.approx(1 - 0.5 * 0.368, abs=0.02)  # after the release's time
    assert found[0].diff().abs().max() < 0.02  # no step, which would click


def test_the_delay_is_the_one_that_is_told() -> None:
    limiter, returned, most = LiveLimiter(16_000), 0, 0
    for given in range(1, 2001):
        found = limiter.push(torch.zeros(1, 1)).shape[1]
        most = max(most, given - returned - 1) if found else most
        returned += found
    assert limiter.ahead - limiter.segment <= most <= limiter.ahead
