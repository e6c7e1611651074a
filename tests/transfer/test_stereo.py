"""Stereo as mid and side: the mix is restyled as mono is, the width stays, and what is silent stays silent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.audio.files import mono_mix
from etude.audio.griffin_lim import GriffinLim
from etude.transfer.stereo import channels_of, side_of
from etude.transfer.stream import StreamRestyler, StyleRequest, restyle_stream
from tests.transfer.test_restyle import CONTRACT, Filter, sound

BOTH = torch.ones(2)


def stereo(seconds: float = 2.0) -> Tensor:
    """Two independent sounds, in different places."""
    one, other = sound(seconds), sound(seconds).roll(1017, 1)
    return torch.cat([0.9 * one + 0.2 * other, 0.3 * one + 0.7 * other])


def restyled(samples: Tensor, *, task: Any = None, polarity: Tensor | None = None, **options: Any) -> Tensor:
    request = StyleRequest(weights={"rock": 1.0}, source="folk", intensity=1.0)
    restyler = StreamRestyler(task or Filter(), GriffinLim(CONTRACT, num_iters=2), request, 64, polarity_c=polarity, **options)
    return torch.cat(list(restyle_stream([samples], 16_000, restyler)), 1)


@pytest.mark.parametrize("polarity", [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0)])
def test_mid_and_side_give_the_channels_back(polarity: tuple[float, float]) -> None:
    signs, samples = torch.tensor(polarity), stereo(0.5)
    torch.testing.assert_close(channels_of(mono_mix(samples, signs), side_of(samples, signs), signs), samples)


def test_the_mono_mix_is_the_restyled_mono_mix() -> None:
    samples = stereo()
    mono = restyled(samples.mean(0, keepdim=True))
    torch.testing.assert_close(restyled(samples).mean(0, keepdim=True), mono, atol=1e-4, rtol=0)
    apart = restyled(samples, stereo="channels").mean(0, keepdim=True)
    assert (apart - mono).abs().max() > 1e-3  # each channel is synthesised alone


def test_the_width_of_each_band_stays() -> None:
    samples = stereo()
    levels = []
    for each in (samples, restyled(samples)):
        parts = each.mean(0, keepdim=True), side_of(each, BOTH)
        mid, side = (CONTRACT.bands(CONTRACT.spectrum(x).abs()).square().sum(-1) for x in parts)
        levels.append(10 * (side / mid).log10())
    loud = torch.arange(64) < 50
    assert (levels[1] - levels[0])[0, loud].abs().mean() < 1.0


def test_equal_channels_stay_equal_although_the_model_fills_silence() -> None:
    class Hum(Filter):
        def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
            return log_mel_bmf.clamp(min=-3.0)

    mono = sound(1)
    found = restyled(mono.repeat(2, 1), task=Hum())
    assert (found[0] - found[1]).square().mean() < 1e-6 * found.square().mean()  # 60 dB; only the added noise differs


def test_a_channel_in_antiphase_is_inverted_and_comes_back_so() -> None:
    mono = sound(1)
    alike = restyled(mono.repeat(2, 1))
    opposite = restyled(torch.cat([mono, -mono]), polarity=torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(opposite[0], alike[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(opposite[1], -opposite[0], atol=2e-3, rtol=0)


def test_an_unknown_treatment_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stereo=left: there is mid_side and channels"):
        restyled(stereo(0.1), stereo="left")
