"""Every fault of a file is one line; what was written reads back; blocks are the whole."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from etude.audio.files import AudioError, AudioWriter, SilentAudioError, inspect_audio, polarities, read_audio, stream_audio


def sound(seconds: float = 1.0, *, rate: int = 16_000, channels: int = 1) -> Tensor:
    noise = torch.randn(channels, round(seconds * rate), generator=torch.Generator().manual_seed(channels))
    return (0.1 * noise).clamp(-0.9, 0.9)


def file(path: Path, samples: Tensor, rate: int = 16_000, **options: str) -> Path:
    soundfile.write(path, samples.T.numpy(), rate, **options)
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_lossless_files_read_as_they_were_written(tmp_path: Path, rate: int, channels: int, suffix: str) -> None:
    samples, path = sound(0.2, rate=rate, channels=channels), tmp_path / f"a.{suffix}"
    with AudioWriter(path, sample_rate=rate, channels=channels, subtype="PCM_24") as writer:
        for block in samples.split(1000, dim=1):
            writer.write(block)
    found, found_rate = read_audio(path)
    assert found_rate == rate
    assert inspect_audio(path).subtype == "PCM_24"
    torch.testing.assert_close(found, samples, atol=2**-23, rtol=0)
    mono, _ = read_audio(path, mono=True)
    torch.testing.assert_close(mono, samples.mean(0, keepdim=True), atol=2**-22, rtol=0)


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_lossy_files_keep_their_length_and_shape(tmp_path: Path, suffix: str) -> None:
    samples = 0.5 * torch.sin(torch.arange(44_100) * 0.05).expand(2, -1)
    with AudioWriter(tmp_path / f"a.{suffix}", sample_rate=44_100, channels=2) as writer:
        writer.write(samples)
    found, _ = read_audio(tmp_path / f"a.{suffix}")
    assert found.shape == samples.shape
    assert (found - samples).square().mean() < 1e-3 * samples.square().mean()


def test_channels_in_antiphase_do_not_cancel(tmp_path: Path) -> None:
    one, two = sound(channels=2)
    for channels, signs in (
        ([one, -one], [1, -1]), ([0.8 * one, -0.9 * one - 0.01 * two], [-1, 1]), ([one, two], [1, 1]), ([one, 0 * one], [1, 1]),
        ([one, -0.5 * one], [1, 1]), ([one], [1]), ([1.1 * one, two, -two, -one], [1, 1, 1, -1]),
    ):  # fmt: skip
        path = file(tmp_path / "a.wav", torch.stack(channels), subtype="FLOAT")
        assert polarities(path).tolist() == signs
    mono = read_audio(file(tmp_path / "a.wav", torch.stack([one, -one]), subtype="FLOAT"), mono=True)[0]
    torch.testing.assert_close(mono[0], one)


def test_integers_stored_as_floats_are_told(tmp_path: Path) -> None:
    path = file(tmp_path / "a.wav", 3e6 * sound(), subtype="FLOAT")
    with pytest.raises(AudioError, match=r"has a peak of \d+(\.\d+)?(e\+\d+)?, 1\d\d dB above full scale; export it"):
        read_audio(path)
    assert read_audio(file(tmp_path / "b.wav", 40 * sound(), subtype="FLOAT"))[0].abs().max() > 4  # a loud float file is fine


def test_blocks_are_the_whole(tmp_path: Path) -> None:
    path = file(tmp_path / "a.wav", sound(channels=2))
    blocks = list(stream_audio(path, block_samples=3000))
    assert [block.shape[1] for block in blocks] == [3000] * 5 + [1000]
    assert torch.equal(torch.cat(blocks, 1), read_audio(path)[0])
    with pytest.raises(ValueError, match="block_samples is 0"):
        next(stream_audio(path, block_samples=0))


def test_reading_at_another_rate_keeps_the_duration(tmp_path: Path) -> None:
    samples, rate = read_audio(file(tmp_path / "a.wav", sound(rate=44_100), 44_100), sample_rate=16_000)
    assert (samples.shape[1], rate) == (16_000, 16_000)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("text.wav", b"these are words\n" * 50, "not audio"),
        ("text.mp3", b"these are words\n" * 50, "not audio"),
        ("empty.wav", b"", "is empty"),
    ],
)
def test_what_is_no_audio_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=told) as caught:
        read_audio(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        inspect_audio(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="is a folder"):
        inspect_audio(tmp_path)
    with pytest.raises(AudioError, match="no samples"):
        read_audio(file(tmp_path / "zero.wav", torch.zeros(2, 0)))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, suffix: str) -> None:
    path = file(tmp_path / f"a.{suffix}", sound(5, rate=22_050, channels=2), 22_050)
    read_audio(path)
    with pytest.raises(AudioError, match="cut off"):
        read_audio(cut(path))


def test_an_mp3_behind_a_picture_is_told_where_it_is_cut_off(tmp_path: Path) -> None:
    path = file(tmp_path / "a.mp3", sound(5))
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 30, 0]) + bytes(30 << 7)
    path.write_bytes(tag + path.read_bytes())
    read_audio(path)
    with pytest.raises(AudioError, match="cut off"):
        read_audio(cut(path, 0.8))


def test_a_wav_from_a_pipe_may_not_know_its_length(tmp_path: Path) -> None:
    path = file(tmp_path / "a.wav", sound())
    head = bytearray(path.read_bytes())
    head[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(head)
    assert read_audio(path)[0].shape == (1, 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_told_with_their_place(tmp_path: Path, value: float) -> None:
    samples = sound()
    samples[0, 8000] = value
    with pytest.raises(AudioError, match=r"not finite, the first at 0\.50 s"):
        read_audio(file(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_silence_is_told_and_can_be_told_apart(tmp_path: Path) -> None:
    path = file(tmp_path / "a.wav", torch.full((2, 1000), 5e-5), subtype="FLOAT")
    with pytest.raises(SilentAudioError, match="is silent"):
        read_audio(path)


def test_clipping_is_told_and_a_single_peak_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = sound()
    samples[0, 0] = 1
    read_audio(file(tmp_path / "peak.wav", samples))
    assert capsys.readouterr().err == ""
    read_audio(file(tmp_path / "clipped.wav", (10 * samples).clamp(-1, 1)))
    assert "clipped.wav: 3" in capsys.readouterr().err


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(AudioError(Path("a.wav"), "is cut off", "get it again")))
    assert str(error) == "a.wav: is cut off; get it again"
    assert isinstance(error, AudioError)


def test_a_file_that_exists_stays_unless_asked(tmp_path: Path) -> None:
    path = file(tmp_path / "a.wav", sound())
    with pytest.raises(AudioError, match="exists already"):
        AudioWriter(path, sample_rate=16_000, channels=1)
    with AudioWriter(path, sample_rate=16_000, channels=1, overwrite=True) as writer:
        writer.write(sound(0.5))
    assert inspect_audio(path).num_samples == 8000


@pytest.mark.parametrize(
    ("name", "rate", "channels", "told"),
    [("a.xyz", 16_000, 1, "suffix"), ("a.mp3", 96_000, 2, "96000 Hz"), ("a.mp3", 44_100, 6, "6 channels")],
)
def test_what_a_format_does_not_hold_is_told_before_work(tmp_path: Path, name: str, rate: int, channels: int, told: str) -> None:
    with pytest.raises(AudioError, match=told):
        AudioWriter(tmp_path / name, sample_rate=rate, channels=channels)
    assert not list(tmp_path.iterdir())


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="can't be written"):
        AudioWriter(tmp_path / "file" / "a.wav", sample_rate=16_000, channels=1)
    with pytest.raises(AudioError, match="exists already"):
        (tmp_path / "folder.wav").mkdir()
        AudioWriter(tmp_path / "folder.wav", sample_rate=16_000, channels=1, overwrite=True)


@pytest.mark.parametrize(
    ("subtype", "written"),
    [("MPEG_LAYER_III", "PCM_16"), ("VORBIS", "PCM_16"), ("ULAW", "PCM_16"), (None, "PCM_16"), ("PCM_24", "PCM_24")],
)
def test_a_compressed_source_becomes_plain_samples(tmp_path: Path, subtype: str | None, written: str) -> None:
    with AudioWriter(tmp_path / "x.wav", sample_rate=16_000, channels=1, subtype=subtype) as writer:
        writer.write(torch.zeros(1, 100))
    assert inspect_audio(tmp_path / "x.wav").subtype == written


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / "a.wav", sample_rate=16_000, channels=1) as writer:
        writer.write(sound())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
