"""Live transfer: the result of a file where the future is known, no clicks, the latency that is told, and clear refusals."""

import io
import math
import sys
import types
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.audio.griffin_lim import GriffinLim
from etude.audio.live_limiter import LiveLimiter
from etude.metrics.audio.artefacts import click_level
from etude.models.wave.vocos import Vocos
from etude.tasks.vocoder import NeuralVocoder, Vocoder
from etude.transfer.live import AHEAD_FRAMES, BLOCK_FRAMES, Pace, live_blocks, restyle_live
from etude.transfer.live_ends import Loudspeaker, Microphone, PcmFormat, PipeSink, PipeSource
from etude.transfer.live_stream import LiveRestyler, latency_parts
from etude.transfer.stream import StreamRestyler, StyleRequest, restyle_stream
from tests.transfer.test_restyle import CONTRACT, Filter, sound

REQUEST = StyleRequest(weights={"rock": 1.0}, source="folk", intensity=1.0)


def restyler(block: int = 2, ahead: int = 4, *, iters: int = 2, request: StyleRequest = REQUEST) -> LiveRestyler:
    return LiveRestyler(Filter(), GriffinLim(CONTRACT, num_iters=iters), request, block_frames=block, ahead_frames=ahead)


def of_file(samples: Tensor) -> Tensor:
    whole = StreamRestyler(Filter(), GriffinLim(CONTRACT, num_iters=2), REQUEST, 10_000)
    return torch.cat(list(restyle_stream([samples], 16_000, whole)), 1)


def streamed(samples: Tensor, live: LiveRestyler, size: int = 100) -> Tensor:
    return torch.cat(list(restyle_stream(samples.split(size, 1), 16_000, live)), 1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("block", "ahead", "size"), [(1, 24, 100), (4, 28, 6000), (3, 25, 257)])
def test_with_the_whole_context_ahead_it_is_the_result_of_a_file(channels: int, block: int, ahead: int, size: int) -> None:
    samples = sound(1.51, channels=channels)
    torch.testing.assert_close(streamed(samples, restyler(block, ahead), size), of_file(samples), atol=2e-4, rtol=0)


def test_with_little_ahead_it_is_another_but_a_near_one() -> None:
    samples = sound(2)
    whole = CONTRACT.log_mel(of_file(samples))
    off = [float((CONTRACT.log_mel(streamed(samples, restyler(2, ahead))) - whole).abs().mean()) for ahead in (1, 4, 24)]
    assert 0.2 > off[0] > off[1] > off[2]
    assert off[1] < 0.3 * float((CONTRACT.log_mel(samples) - whole).abs().mean())


class Restless(Filter):
    """Its change depends on how much it sees: the last frame of an excerpt is louder by a factor of 2.7."""

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
        louder = torch.linspace(0, 1, log_mel_bmf.shape[-1])
        return log_mel_bmf + louder


def test_borders_of_blocks_do_not_click_although_the_blocks_disagree() -> None:
    time = torch.arange(64_000) / 16_000
    samples = 0.1 * torch.sin(6.2832 * 200 * time)[None]
    live = LiveRestyler(Restless(), GriffinLim(CONTRACT, num_iters=2), REQUEST, block_frames=4, ahead_frames=2)
    found = streamed(samples, live)
    curvature = found[0, 4096:-4096].diff(n=2).abs()
    smooth = samples[0].diff(n=2).abs().max() * found.abs().max() / samples.abs().max()
    assert curvature.max() < 2 * smooth  # a step of a tenth of the level would be 15 times as much
    assert click_level(found[0], sample_rate=16_000, click_rate=16_000 / 1024) < 3.0

    live = LiveRestyler(Restless(), GriffinLim(CONTRACT, num_iters=2), REQUEST, block_frames=4, ahead_frames=2)
    live._fade_n = torch.ones(256)  # with no crossfade, it would fail
    assert streamed(samples, live)[0, 4096:-4096].diff(n=2).abs().max() > 2 * smooth


def pcm(samples: Tensor, *, rate: int = 16_000, header: bool = False) -> io.BytesIO:
    file = io.BytesIO()
    PipeSink(file, PcmFormat(rate, len(samples), wav=header)).write(samples)
    file.seek(0)
    return file


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_latency_is_the_one_that_is_told(rate: int, channels: int) -> None:
    samples = sound(1.2, rate=rate, channels=channels)
    origin = PipeSource(pcm(samples, rate=rate), sample_rate=rate, channels=channels)
    read, given, returned, most = origin.read, 0, 0, 0

    def counted(count: int) -> Tensor | None:
        nonlocal given
        piece = read(count)
        given += 0 if piece is None else piece.shape[1]
        return piece

    origin.read = counted  # type: ignore[method-assign]
    live, limiter, pace = restyler(2, 3), LiveLimiter(rate), Pace(0.032)
    for block in live_blocks(origin, live, limiter, pace):
        if given < samples.shape[1]:  # at the end nothing more is waited for
            most = max(most, given - returned)
        returned += block.shape[1]
    assert returned == samples.shape[1] and pace.blocks == live.blocks
    told = sum(latency_parts(live, limiter, rate).values())
    assert told - 0.025 < most / rate <= told


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 22_257])
def test_the_defaults_stay_below_150_ms_at_every_rate(rate: int) -> None:
    live = restyler(BLOCK_FRAMES, AHEAD_FRAMES)
    assert sum(latency_parts(live, LiveLimiter(rate), rate).values()) < 0.15


def test_the_level_follows_the_input() -> None:
    class Loud(Filter):
        def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
            return log_mel_bmf + 1.5  # 13 dB

    samples = 0.5 * sound(2)
    live = LiveRestyler(Loud(), GriffinLim(CONTRACT, num_iters=2), REQUEST, block_frames=2, ahead_frames=4)
    assert streamed(samples, live).square().mean() > 10 * samples.square().mean()
    assert live.level_gain == pytest.approx(math.exp(-1.5), rel=0.05)
    live = LiveRestyler(Loud(), GriffinLim(CONTRACT, num_iters=2), REQUEST, block_frames=2, ahead_frames=4)
    origin, limiter = PipeSource(pcm(samples), sample_rate=16_000, channels=1), LiveLimiter(16_000)
    found = torch.cat(list(live_blocks(origin, live, limiter, Pace(0.032))), 1)
    assert 10 * (found.square().mean() / samples.square().mean()).log10().abs() < 1.0 and not limiter.limited


def test_the_pace_counts_blocks_that_would_be_late() -> None:
    pace = Pace(0.03)
    for seconds in (0.01, 0.05, 0.02, 0.01, 0.01):
        pace.add(0.0, 0)
        pace.add(seconds, 1)
    assert (pace.blocks, pace.late) == (5, 2)  # the second, and the third behind it
    assert "5 blocks of 30 ms: 20.0 ms each, the longest 50.0; 1.5 times real time; 2 late" in pace.told()
    assert "can't keep up" in pace.told()
    assert Pace(0.03).told() == "no block was made"


def test_antiphase_stereo_keeps_its_sound_and_its_signs() -> None:
    mono = sound(1)
    alike = streamed(mono.repeat(2, 1), restyler())
    opposite = streamed(torch.cat([mono, -mono]), restyler())
    torch.testing.assert_close(opposite[0], alike[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(opposite[1], -opposite[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("header", [False, True])
def test_pcm_goes_through_unchanged(header: bool) -> None:
    samples = (sound(0.1, channels=2) * 32_768).round() / 32_768
    file = pcm(samples, header=header)
    source = PipeSource(file) if header else PipeSource(file, sample_rate=16_000, channels=2)
    assert source.format == PcmFormat(16_000, 2, wav=header)
    parts = []
    while (part := source.read(100)) is not None:
        parts.append(part)
    assert torch.equal(torch.cat(parts, 1), samples)


def test_what_follows_the_samples_of_a_wav_file_is_no_audio() -> None:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound(0.1, channels=2).T.numpy(), 8000, subtype="PCM_16", format="WAV")
    file = io.BytesIO(file.getvalue() + b"LIST\x04\x00\x00\x00abcd")
    source = PipeSource(file)
    assert source.format == PcmFormat(8000, 2, wav=True)
    found = source.read(10_000)
    assert found is not None and found.shape == (2, 1600) and source.read(10) is None


def test_pipes_that_hold_something_else_are_refused() -> None:
    import soundfile

    with pytest.raises(ValueError, match="holds no audio"):
        PipeSource(io.BytesIO())
    with pytest.raises(ValueError, match="live_rate=44100: the WAV stream says 16000; leave live_rate out"):
        PipeSource(pcm(sound(0.1), header=True), sample_rate=44_100)
    deep = io.BytesIO()
    soundfile.write(deep, sound(0.1).T.numpy(), 8000, subtype="PCM_24", format="WAV")
    deep.seek(0)
    with pytest.raises(ValueError, match="has 24 bits"):
        PipeSource(deep)
    with pytest.raises(ValueError, match="ends within its header"):
        PipeSource(io.BytesIO(b"RIFF\x00\x00\x00\x00WAVEfmt "))


def test_a_missing_package_library_or_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match=r"the microphone needs the package sounddevice.*etude\[live-audio\].*in=- out=-"):
        Microphone(sample_rate=None, channels=None)
    broken = types.ModuleType("sounddevice")

    def no_device(**options: Any) -> None:
        raise RuntimeError("Error querying device -1")

    broken.OutputStream = no_device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", broken)
    with pytest.raises(ValueError, match=r"the loudspeaker can't be opened with 2 channels at 48000 Hz \(Error querying"):
        Loudspeaker(PcmFormat(48_000, 2))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"input": "song.wav"}, "in=song.wav is a file; with live=true give in=- for a pipe"),
        ({"input": "."}, "in=. is a folder"),
        ({"output": "song.wav"}, "out=song.wav is a file"),
        ({"overwrite": True}, "overwrite=true does nothing with live=true"),
        ({"block_frames": 64}, "block_frames=64 does nothing with live=true; give live_block="),
        ({"live_block": 0}, r"live_block is 0, must be a whole number within \[1, 64\]"),
        ({"live_ahead": 0}, "live_ahead is 0"),
        ({"live_rate": 100}, "live_rate is 100"),
        ({"live_channels": 1.5}, "live_channels is 1.5"),
        ({"stereo": "left"}, "stereo=left"),
        ({"source": None}, "source is missing: .* give one of folk, jazz"),
        ({"style": "polka"}, "style=polka is unknown"),
        ({"intensity": 2}, "intensity is 2"),
        ({"task": object(), "source": None}, "changes no styles"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wishes_that_can_not_be_met_are_told(wrong: dict[str, Any], told: str) -> None:
    options = {"task": Filter(), "vocoder": GriffinLim(CONTRACT), "input": "-", "output": "-", "style": "rock", "source": "folk"}
    with pytest.raises(ValueError, match=told):
        restyle_live(**{**options, **wrong})


def test_a_neural_vocoder_plays_live_too() -> None:
    torch.manual_seed(0)
    network = Vocoder(
        model=partial(Vocos, dim=16, num_layers=1, hidden_dim=16), contract=CONTRACT, optimizer=torch.optim.AdamW,
        loss_weights={"generator/adversarial": 0.0},
    )  # fmt: skip
    voice, samples = NeuralVocoder(network), sound(1.2)
    whole = StreamRestyler(Filter(), voice, REQUEST, 10_000)
    expected = torch.cat(list(restyle_stream([samples], 16_000, whole)), 1)
    live = LiveRestyler(Filter(), voice, REQUEST, block_frames=2, ahead_frames=12)
    torch.testing.assert_close(streamed(samples, live), expected, atol=2e-4, rtol=0)
    live = LiveRestyler(Filter(), voice, REQUEST, block_frames=2, ahead_frames=4)
    origin, limiter = PipeSource(pcm(samples), sample_rate=16_000, channels=1), LiveLimiter(16_000)
    found = torch.cat(list(live_blocks(origin, live, limiter, Pace(0.032))), 1)
    assert found.shape == samples.shape and bool(torch.isfinite(found).all()) and found.abs().max() > 0.01
