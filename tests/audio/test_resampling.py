"""Streamed resampling is whole-file resampling."""

import math

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.audio.resampling import FILTER_WIDTH, ROLLOFF, Resampler, resample

RATES = [(44_100, 16_000), (16_000, 44_100), (8_000, 16_000), (96_000, 16_000), (22_050, 16_000), (16_000, 16_000)]


def noise(length: int) -> Tensor:
    return 0.3 * torch.randn(2, length, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(("old", "new"), RATES)
@given(sizes=st.lists(st.integers(0, 12_000), min_size=1, max_size=6).filter(any))
@settings(max_examples=10, deadline=None)
def test_chunks_of_any_size_equal_the_whole(old: int, new: int, prompt: bool, sizes: list[int]) -> None:
    samples = noise(sum(sizes))
    expected = torchaudio.transforms.Resample(old, new, lowpass_filter_width=FILTER_WIDTH, rolloff=ROLLOFF)(samples)
    resampler = Resampler(old, new, prompt=prompt)
    found = torch.cat([*(resampler.push(part) for part in samples.split(sizes, dim=1)), resampler.flush()], 1)
    assert found.shape[1] == math.ceil(sum(sizes) * new / old) == resampler.num_samples(sum(sizes))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


LIVE_RATES = [*RATES, (22_257, 16_000), (16_000, 22_257), (16_000, 22_050), (11_025, 16_000), (48_000, 16_000), (192_000, 16_000)]


@pytest.mark.parametrize("size", [1, 37, 5000])
@pytest.mark.parametrize(("old", "new"), LIVE_RATES)
def test_a_prompt_one_is_the_other_and_waits_for_no_more_than_it_tells(old: int, new: int, size: int) -> None:
    samples = noise(1500 if size == 1 else 12_000)
    resampler, given, returned, parts = Resampler(old, new, prompt=True), 0, 0, []
    waited = 0.0  # input samples after the place of the next output
    for part in samples.split(size, 1):
        parts.append(resampler.push(part))
        given, returned = given + part.shape[1], returned + parts[-1].shape[1]
        waited = max(waited, given - returned * resampler.old / resampler.new)
    parts.append(resampler.flush())
    torch.testing.assert_close(torch.cat(parts, 1), resample(samples, old, new), atol=1e-5, rtol=0)
    assert waited <= resampler.ahead + 1e-9
    assert resampler.ahead - old / new - 2 <= waited  # it tells no more than it needs
    assert resampler.ahead <= 2 + 33 * max(1, old / new)  # 32 zero crossings, not whole periods


@pytest.mark.parametrize(("old", "new"), RATES)
def test_a_tone_below_both_bands_stays_itself(old: int, new: int) -> None:
    def tone(rate: int) -> Tensor:
        return torch.sin(2 * math.pi * 1000 * torch.arange(rate // 4) / rate)[None]

    found = resample(tone(old), old, new)[:, : new // 4]
    torch.testing.assert_close(found[:, new // 20 : -new // 20], tone(new)[:, new // 20 : -new // 20], atol=2e-3, rtol=0)


@pytest.mark.parametrize("hertz", [8_300, 10_000, 15_000])
def test_what_the_lower_rate_does_not_hold_does_not_fold_back(hertz: int) -> None:
    tone = torch.sin(2 * math.pi * hertz * torch.arange(44_100) / 44_100)[None]
    assert resample(tone, 44_100, 16_000)[:, 500:-500].abs().max() < 0.01


@pytest.mark.parametrize("rate", [22_257, 44_099, 11_127, 7])
def test_awkward_rates_stay_small_and_go_back_to_their_length(rate: int) -> None:
    down, up = Resampler(rate, 16_000), Resampler(16_000, rate)
    assert max(down.old, down.new) <= 1000
    assert (down.old, down.new) == (up.new, up.old)
    assert rate < 20 or down.new / down.old == pytest.approx(16_000 / rate, rel=2e-6)
    there = torch.cat([down.push(noise(2000)), down.flush()], 1)
    assert torch.cat([up.push(there), up.flush()], 1).shape[1] >= 2000


def test_a_rate_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="new=0"):
        Resampler(16_000, 0)
