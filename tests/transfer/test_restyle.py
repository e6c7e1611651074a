"""Restyling: no seams, nothing lost at intensity 0, loudness kept, and every fault is one line."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.audio.files import AudioError, inspect_audio, read_audio
from etude.audio.griffin_lim import GriffinLim
from etude.audio.loudness import LoudnessMeter
from etude.audio.mel import MelContract
from etude.transfer import restyle as module
from etude.transfer.restyle import restyle
from etude.transfer.stream import StreamRestyler, StyleRequest, restyle_stream

CONTRACT = MelContract()


class Filter:
    """A style task that sees 6 frames each side: a filter over frames, then means over groups of 4 that never move."""

    contract = CONTRACT
    styles = ("folk", "rock", "jazz")
    context_frames, stride = 6, 4

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
        frames, gain = log_mel_bmf.shape[-1], {"folk": 0.0, "rock": 1.0, "jazz": -1.0}[target]
        kernel = torch.tensor([0.5, -1.0, 1.5, -0.5, 0.5]).expand(64, 1, -1)
        blurred = F.conv1d(F.pad(log_mel_bmf, (2, 2), mode="replicate"), kernel, groups=64)
        grouped = F.pad(blurred, (0, -frames % 4), mode="replicate").unflatten(-1, (-1, 4)).mean(-1)
        tilt = torch.linspace(0, gain, 64)[:, None]
        return log_mel_bmf + 0.1 * (grouped.repeat_interleave(4, -1)[..., :frames] - log_mel_bmf) + tilt

    def style_distances(self, log_mel_mf: Tensor) -> dict[str, float]:
        return {"folk": 0.5, "rock": 0.55, "jazz": 0.2}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    run = tmp_path / "run"
    run.mkdir()
    return {"task": Filter(), "vocoder": GriffinLim(CONTRACT, num_iters=2), "folder": run, "style": "rock", "source": "folk"}


def sound(seconds: float, *, rate: int = 16_000, channels: int = 1) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    melody = 0.2 * torch.sin(6.28 * 330 * time) * (1 + torch.sin(3 * time)) / 2 + 0.1 * torch.sin(6.28 * 1250 * time)
    noise = 0.01 * torch.randn(channels, len(time), generator=torch.Generator().manual_seed(0))
    return melody * torch.linspace(1, 0.5, channels)[:, None] + noise


def file(path: Path, samples: Tensor, rate: int = 16_000, subtype: str = "FLOAT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.T.numpy(), rate, subtype=subtype if path.suffix == ".wav" else None)
    return path


def stream(samples: Tensor, rate: int, block_frames: int, size: int, *, intensity: float = 1.0) -> Tensor:
    request = StyleRequest(weights={"rock": 1.0}, source="folk", intensity=intensity)
    restyler = StreamRestyler(Filter(), GriffinLim(CONTRACT, num_iters=2), request, block_frames)
    return torch.cat(list(restyle_stream(iter(samples.split(size, 1)), rate, restyler)), 1)


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
@pytest.mark.parametrize(("block_frames", "size"), [(32, 4000), (37, 65_536), (50, 777)])
def test_blocks_leave_no_seam(rate: int, block_frames: int, size: int) -> None:
    samples = sound(4.03, rate=rate, channels=2)
    whole = stream(samples, rate, 10_000, 10**9)
    found = stream(samples, rate, block_frames, size)
    assert found.shape == samples.shape
    assert (whole - samples).abs().max() > 0.05
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)


def test_too_little_context_would_leave_a_seam() -> None:
    """The test above can fail: with the model's context hidden from the stream, it does."""
    samples = sound(2)
    whole = stream(samples, 16_000, 10_000, 10**9)
    task = Filter()
    task.context_frames = -8
    request = StyleRequest(weights={"rock": 1.0}, source="folk", intensity=1.0)
    restyler = StreamRestyler(task, GriffinLim(CONTRACT, num_iters=2), request, 32)
    assert (torch.cat(list(restyle_stream([samples], 16_000, restyler)), 1) - whole).abs().max() > 1e-4


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000, 96_000, 22_257])
@pytest.mark.parametrize("length", [1, 255, 257, 20_011])
def test_length_and_channels_stay(rate: int, length: int) -> None:
    samples = sound(2, rate=rate, channels=2)[:, :length]
    assert stream(samples, rate, 16, 5000).shape == samples.shape


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_intensity_0_gives_the_input_back(tmp_path: Path, options: dict[str, Any], channels: int) -> None:
    samples = sound(1.5, rate=44_100, channels=channels)
    path = file(tmp_path / "a.wav", samples, 44_100)
    (out,) = restyle(**options, input=str(path), intensity=0)
    found, rate = read_audio(out)
    assert rate == 44_100
    torch.testing.assert_close(found, samples, atol=1e-6, rtol=0)


def test_a_change_of_nothing_gives_the_input_back_through_mel_and_vocoder() -> None:
    """Intensity 0 is a bypass; this goes the whole way, as intensity near 0 does."""
    samples = sound(2, rate=44_100, channels=2)
    found = stream(samples, 44_100, 40, 5000, intensity=1e-6)
    assert (found - samples).square().sum() < 1e-4 * samples.square().sum()  # 40 dB


def test_intensity_moves_the_mel_by_its_share() -> None:
    samples = sound(3)
    start = CONTRACT.log_mel(samples)
    full = Filter().translate(start, source="folk", target="rock") - start
    for intensity in (0.3, 1.0):
        moved = CONTRACT.log_mel(stream(samples, 16_000, 64, 8000, intensity=intensity)) - start
        assert ((moved * full).sum() / full.square().sum()).item() == pytest.approx(intensity, abs=0.12)


@pytest.mark.parametrize("intensity", [0.0, 0.4, 1.0])
def test_what_lies_above_the_models_band_is_kept_by_one_minus_intensity(intensity: float) -> None:
    time = torch.arange(44_100) / 44_100
    high = 0.1 * torch.sin(6.28318 * 15_000 * time)[None]
    found = stream(high + sound(1, rate=44_100), 44_100, 32, 8000, intensity=intensity)
    share = (found * high)[:, 4000:-4000].sum() / high[:, 4000:-4000].square().sum()
    assert share.item() == pytest.approx(1 - intensity, abs=0.02)


def test_a_blend_is_the_mean_of_the_changes() -> None:
    samples = sound(1)
    restyler = StreamRestyler(
        Filter(), GriffinLim(CONTRACT), StyleRequest(weights={"rock": 0.5, "jazz": 0.5}, source="folk", intensity=1), 16
    )
    blended = torch.cat(list(restyle_stream([samples], 16_000, restyler)), 1)
    mel, task = CONTRACT.log_mel(samples), Filter()
    wanted = (task.translate(mel, source="folk", target="rock") + task.translate(mel, source="folk", target="jazz")) / 2
    expected = GriffinLim(CONTRACT)(wanted, source=CONTRACT.spectrum(samples))[:, : samples.shape[1]]
    torch.testing.assert_close(blended, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("suffix", "subtype", "kept"), [("wav", "PCM_24", "PCM_24"), ("flac", None, "PCM_16")])
def test_rate_channels_samples_and_loudness_stay(
    tmp_path: Path, options: dict[str, Any], suffix: str, subtype: str, kept: str
) -> None:
    samples = 0.3 * sound(3, rate=22_050, channels=2)
    path = file(tmp_path / f"a.{suffix}", samples, 22_050, subtype)
    (out,) = restyle(**options, input=str(path), output=str(tmp_path / f"b.{suffix}"))
    before, after = inspect_audio(path), inspect_audio(out)
    assert (before.sample_rate, before.channels, before.num_samples) == (after.sample_rate, after.channels, after.num_samples)
    assert after.subtype == kept
    levels = []
    for name in (path, out):
        meter = LoudnessMeter(22_050)
        meter.push(read_audio(name)[0])
        levels.append(meter.loudness())
    assert levels[1] == pytest.approx(levels[0], abs=0.1)


def test_peaks_do_not_clip_and_it_is_told(tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    samples = sound(2)
    path = file(tmp_path / "a.wav", 0.95 * samples / samples.abs().max())

    class Muffled(Filter):
        def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
            return log_mel_bmf - torch.linspace(-3, 3, log_mel_bmf.shape[-1])  # loud first, soft later: peaky

    (out,) = restyle(**{**options, "task": Muffled()}, input=str(path))
    assert 0.9 < read_audio(out)[0].abs().max() <= 0.99 * 1.01
    assert "so that peaks don't clip, 2" in (told := capsys.readouterr().err) and "softer" not in told
    before, after = LoudnessMeter(16_000), LoudnessMeter(16_000)
    before.push(read_audio(path)[0])
    after.push(read_audio(out)[0])
    assert after.loudness() == pytest.approx(before.loudness(), abs=0.2)


def test_a_short_peak_costs_the_rest_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    class Squeal(Filter):
        def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
            loud = log_mel_bmf.clone()
            loud[..., 100:102] += 3.0
            return loud

    samples = sound(6)
    (out,) = restyle(**{**options, "task": Squeal()}, input=str(file(tmp_path / "a.wav", samples)))
    late = slice(48_000, None)
    before, after = samples[:, late].square().mean(), read_audio(out)[0][:, late].square().mean()
    assert 10 * (after / before).log10().abs() < 1.0  # scaling the whole file until the peak fits cost 9 dB


def test_digital_silence_stays_free_of_clicks(tmp_path: Path, options: dict[str, Any]) -> None:
    class Hum(Filter):
        def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
            return log_mel_bmf.clamp(min=-5.0)

    samples = sound(6)
    samples[:, 32_000:80_000] = 0
    (out,) = restyle(**{**options, "task": Hum(), "intensity": 0.9999}, input=str(file(tmp_path / "a.wav", samples)))
    middle = read_audio(out)[0][0, 34_000:78_000]
    assert middle.abs().max() < 5 * middle.std()  # noise; a click in each frame had 16
    hops = middle[: len(middle) // 256 * 256].unflatten(0, (-1, 256)).square().mean(0)
    assert hops.max() < 2 * hops.mean()  # no place within a hop is louder than others; clicks had 255


def test_a_stereo_file_in_antiphase_is_restyled_as_what_it_sounds_like(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mono = sound(2)
    (alike,) = restyle(**options, input=str(file(tmp_path / "a.wav", mono.repeat(2, 1))))
    (opposite,) = restyle(**options, input=str(file(tmp_path / "b.wav", torch.cat([mono, -mono]))))
    assert "channels in antiphase; the model gets the mix with 1 of 2 inverted" in capsys.readouterr().err
    torch.testing.assert_close(read_audio(opposite)[0][1], -read_audio(alike)[0][1], atol=1e-3, rtol=0)


def test_real_music_keeps_its_loudness(shared_data: Path, options: dict[str, Any]) -> None:
    path = next((shared_data / "audio").glob("*trumpet*.ogg"))
    (out,) = restyle(**{**options, "style": {"rock": 0.5, "jazz": 0.5}}, input=str(path))
    assert out == options["folder"] / f"{path.stem}_rock+jazz.wav"
    before, after = LoudnessMeter(22_050), LoudnessMeter(22_050)
    before.push(read_audio(path)[0])
    after.push(read_audio(out)[0])
    assert after.loudness() == pytest.approx(before.loudness(), abs=0.1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"style": "polka"}, "style=polka is unknown; the model knows folk, rock, jazz"),
        ({"style": "jazz:0.5"}, "put a blend in quotes"),
        ({"source": "polka"}, "source=polka is unknown"),
        ({"style": None}, "style is missing"),
        ({"style": {"rock": 0.5, "jazz": 0.6}}, "add up to 1"),
        ({"style": {"rock": 1.5, "jazz": -0.5}}, "at least 0"),
        ({"style": "folk"}, "the source's own"),
        ({"intensity": 1.5}, "intensity is 1.5"),
        ({"intensity": -0.1}, "intensity is -0.1"),
        ({"input": None}, "in is missing"),
        ({"block_frames": 0}, "block_frames is 0"),
        ({"vocoder": GriffinLim(MelContract(n_mels=80))}, "n_mels 64, here 80"),
        ({"task": object()}, "changes no styles"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_wishes_that_can_not_be_met_are_told(tmp_path: Path, options: dict[str, Any], wrong: dict[str, Any], told: str) -> None:
    path = file(tmp_path / "a.wav", sound(0.2))
    with pytest.raises(ValueError, match=told):
        restyle(**{**options, "input": str(path), **wrong})
    assert not list(options["folder"].iterdir())


def test_the_nearest_style_is_the_source_and_told(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path / "a.wav", sound(0.5, rate=44_100, channels=2), 44_100)
    restyle(**{**options, "source": None, "style": "folk"}, input=str(path))
    assert "taken as jazz (0.20 nats a band from it, 0.55 from rock); set source=" in capsys.readouterr().err
    restyle(**{**options, "source": None, "style": "jazz"}, input=str(path))
    assert "taken as folk (unsure: 0.50 nats a band from it, 0.55 from rock)" in capsys.readouterr().err


def test_a_single_bad_file_is_an_error_and_leaves_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    for name, samples, told in (
        ("silent.wav", torch.zeros(1, 9000), "is silent"),
        ("nan.wav", torch.full((1, 9000), torch.nan), "not finite"),
    ):
        with pytest.raises(AudioError, match=told):
            restyle(**options, input=str(file(tmp_path / name, samples)))
    assert not list(options["folder"].iterdir())


def test_files_that_exist_stay_unless_asked(tmp_path: Path, options: dict[str, Any]) -> None:
    path, out = file(tmp_path / "a.wav", sound(0.5)), file(tmp_path / "b.wav", sound(0.1))
    with pytest.raises(AudioError, match="exists already"):
        restyle(**options, input=str(path), output=str(out))
    restyle(**options, input=str(path), output=str(out), overwrite=True)
    assert inspect_audio(out).num_samples == 8000
    with pytest.raises(AudioError, match="is the input itself"):
        restyle(**options, input=str(path), output=str(path), overwrite=True)


def test_a_folder_keeps_its_subfolders_and_bad_files_are_listed(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "in" / "out"
    file(source / "a.wav", sound(0.5))
    file(source / "a.flac", sound(0.3))
    file(source / "deep" / "b.wav", sound(0.4, channels=2))
    file(source / "deep" / "silent.wav", torch.zeros(1, 5000))
    (source / "words.mp3").write_text("words" * 100)
    (source / "notes.txt").write_text("not audio, not asked")
    files = restyle(**options, input=str(source), output=str(out))
    assert {str(path.relative_to(out)) for path in files} == {"a.wav_rock.wav", "a.flac_rock.wav", "deep/b_rock.wav"}
    assert inspect_audio(out / "deep" / "b_rock.wav").channels == 2
    rows = [row.split("\t") for row in (out / "quarantine.tsv").read_text().splitlines()]
    assert [Path(row[0]).name for row in rows] == ["file", "silent.wav", "words.mp3"]
    assert "is silent" in rows[1][1]
    assert "restyled 3 of 5 files, 2 left out" in capsys.readouterr().err
    assert not [path for path in out.rglob("*") if ".part" in path.name]


def test_a_folder_without_one_good_file_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(ValueError, match="no audio files"):
        restyle(**options, input=str(source))
    (source / "words.mp3").write_text("words" * 100)
    with pytest.raises(ValueError, match="none of its 1 file"):
        restyle(**options, input=str(source))
    with pytest.raises(ValueError, match="is a file's name"):
        restyle(**options, input=str(source), output=str(tmp_path / "b.wav"))
    with pytest.raises(ValueError, match="is the input folder"):
        restyle(**options, input=str(source), output=str(source))


def test_ctrl_c_keeps_what_is_done_and_removes_what_is_not(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        file(source / f"{name}.wav", sound(0.5))
    genuine, seen = module.restyle_stream, []

    def interrupted(*args: Any) -> Any:
        seen.append(args)
        for block in genuine(*args):
            yield block
            if len(seen) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "restyle_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restyle(**options, input=str(source), output=str(out))
    assert [path.name for path in out.iterdir()] == ["a_rock.wav"]
