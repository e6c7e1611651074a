"""Folders of audio to clips: every kind of file, every kind of bad input, caches that survive anything."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from etude.audio.mel import MelContract
from etude.data.audio import build as audio_build
from etude.data.audio.corpora import AudioFolder
from etude.data.cache import fill
from tests.data.audio.files import CONTRACT, RATE, inline, module, sound, write, write_styles


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test starts other processes itself."""
    inline(monkeypatch)


def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recordings that are encoded from now on."""
    names: list[str] = []
    encode = audio_build.encode

    def noted(contract: Any, folder: Any, recording: Any) -> Any:
        names.append(recording.name)
        return encode(contract, folder, recording)

    monkeypatch.setattr(audio_build, "encode", noted)
    return names


def test_worker_processes_encode_and_a_second_run_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_build, "fill", fill.fill)
    root = write_styles(tmp_path / "audio", files=5)
    module(root, tmp_path / "cache").prepare_data()
    monkeypatch.setattr(audio_build, "fill", None)
    data = module(root, tmp_path / "cache")
    data.prepare_data()
    assert data.num_pieces("train", "folk") + data.num_pieces("val", "folk") + data.num_pieces("test", "folk") == 5


def test_mono_16_bit_audio_is_kept_exactly_and_its_mels_are_the_contracts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_build, "FRAMES_AT_ONCE", 7)  # frames must not depend on where blocks end
    root = write_styles(tmp_path / "audio", files=4)
    data = module(root, tmp_path / "cache")
    for split in ("train", "val", "test"):
        for index in range(data.num_pieces(split, "rock")):
            samples, _ = soundfile.read(root / data.piece(split, "rock", index).name, dtype="float32")
            assert torch.equal(data.samples(split, "rock", index), torch.from_numpy(samples))
            expected = CONTRACT.log_mel(torch.from_numpy(samples))
            torch.testing.assert_close(data.log_mel(split, "rock", index), expected, atol=0.01, rtol=0)


KINDS = [
    ("a.wav", 8000, 1, None), ("b.wav", 8000, 2, "FLOAT"), ("c.flac", 96000, 2, None), ("d.ogg", 44100, 1, None),
    ("e.mp3", 22050, 2, None), ("f.wav", 48000, 6, None), ("g.aiff", 11025, 1, "PCM_24"), ("h.WAV", 8000, 1, "PCM_U8"),
]  # fmt: skip


def test_every_format_rate_and_number_of_channels_gives_the_same_sound(tmp_path: Path) -> None:
    for style, hertz in (("folk", 700.0), ("rock", 1500.0)):
        for name, rate, channels, subtype in KINDS:
            tone = sound(1, seconds=1.0, rate=rate, hertz=hertz)
            write(tmp_path / "audio" / style / name, np.repeat(tone[:, None], channels, 1), rate=rate, subtype=subtype)
    # an OGG file gets a random serial number, so a split by content differs from run to run: all is for training
    corpus = AudioFolder(root=str(tmp_path / "audio"), paired=False)
    data = module(tmp_path / "audio", tmp_path / "cache", corpus=corpus, split=[1, 0, 0])
    assert data.quarantine == []
    assert len(data.manifest()) == 16
    for style, hertz in (("folk", 700.0), ("rock", 1500.0)):
        for index in range(len(KINDS)):
            samples = data.samples("train", style, index)
            spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
            assert abs(float(spectrum.argmax()) * RATE / len(samples) - hertz) < 5
            assert abs(len(samples) - RATE) < 0.05 * RATE  # an MP3 may keep its encoder's padding
            assert abs(float(samples.std()) - 0.23) < 0.03


def quiet(mels: torch.Tensor) -> torch.Tensor:
    """The mean over bands below which a hundredth of the frames is."""
    return torch.quantile(mels.mean(0), 0.01)


def test_antiphase_is_no_silence_and_integers_as_floats_are_told(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio", files=4)
    tone = sound(1, seconds=1.5)
    write(root / "folk" / "opposite.wav", np.stack([tone, -0.9 * tone], 1))
    write(root / "folk" / "huge.wav", 300_000 * sound(2), subtype="FLOAT")
    data = module(root, tmp_path / "cache")
    ((name, _, reason),) = data.quarantine
    assert name == "folk/huge.wav" and reason.startswith("has a peak of ") and "divided by their full scale" in reason
    places = [(s, i) for s in ("train", "val", "test") for i in range(data.num_pieces(s, "folk"))]
    (mono,) = [data.samples(s, "folk", i) for s, i in places if data.piece(s, "folk", i).name == "folk/opposite.wav"]
    np.testing.assert_allclose(mono.numpy(), 0.95 * tone, atol=1e-3)


def test_statistics_are_what_the_training_mels_have(tmp_path: Path) -> None:
    data = module(write_styles(tmp_path / "audio"), tmp_path / "cache")
    for style, found in zip(data.styles, data.statistics, strict=True):
        mels = torch.cat([data.log_mel("train", style, i) for i in range(data.num_pieces("train", style))], 1).double()
        expected = torch.stack(
            [mels.mean(1), mels.std(1, correction=0), mels.amax(1), mels[:, mels.mean(0) <= quiet(mels)].mean(1)]
        )
        torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)
    assert set(data.parts) == {"contract", "styles", "statistics"}


def test_a_band_that_never_moves_can_be_divided_by(tmp_path: Path) -> None:
    """Recordings of half the rate leave the upper bands at the floor."""
    write_styles(tmp_path / "audio", styles=("new",))
    for number in range(4):
        time = np.arange(RATE // 2) / (RATE // 2)
        write(tmp_path / "audio" / "old" / f"{number}.wav", 0.2 * np.hanning(len(time)) * np.sin(1500 * time), rate=RATE // 2)
    data = module(tmp_path / "audio", tmp_path / "cache")
    mels = torch.cat([data.log_mel("train", "old", i) for i in range(data.num_pieces("train", "old"))], 1)
    assert mels.std(1).min() < 0.01 and data.statistics[:, 1].min() == pytest.approx(0.1)


# --- bad input ---


def test_bad_files_are_quarantined_with_reasons_and_the_good_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_styles(tmp_path / "audio", files=6)
    folk = root / "folk"
    (folk / "text.wav").write_text("not audio at all\n" * 50)
    (folk / "empty.wav").write_bytes(b"")
    (folk / "notes.txt").write_text("not meant as audio")
    hole = sound(1)
    hole[4000] = np.nan
    write(folk / "nan.wav", hole, subtype="FLOAT")
    write(folk / "silent.wav", np.zeros(8000))
    write(folk / "short.wav", sound(2, seconds=0.1))
    whole = write(tmp_path / "whole.mp3", sound(3, seconds=3.0, rate=22050), rate=22050)
    (folk / "cut.mp3").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write(folk / "clips.wav", np.clip(3 * sound(5), -1, 1))
    (folk / "lost.wav").symlink_to(tmp_path / "nowhere.wav")
    data = module(root, tmp_path / "cache")
    reasons = {file.removeprefix("folk/"): reason for file, piece, reason in data.quarantine}
    assert set(reasons) == {
        "text.wav", "empty.wav", "nan.wav", "silent.wav", "short.wav", "cut.mp3", "lost.wav",
    }  # fmt: skip
    for name, says in {"text.wav": "not audio", "empty.wav": "empty", "nan.wav": "not finite", "silent.wav": "silent",
                       "cut.mp3": "cut off", "lost.wav": "can't be read"}.items():  # fmt: skip
        assert says in reasons[name]
        assert "\n" not in reasons[name]
    assert reasons["short.wav"] == "shorter than a segment (0.13 s)"
    assert len(data.manifest()) == 13
    err = capfd.readouterr().err
    assert "1 file clips, such as folk/clips.wav" in err
    assert "7 files are left out" in err
    names = encodings(monkeypatch)
    module(root, tmp_path / "cache").prepare()
    assert names == []  # neither the good nor the bad are tried again


def test_a_style_with_bad_files_only_is_one_clear_error(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio", styles=("folk",), files=4)
    (root / "jazz").mkdir()
    (root / "jazz" / "a.wav").write_text("nonsense")
    with pytest.raises(ValueError, match=r"jazz has no usable audio \(jazz/a\.wav: is not audio") as caught:
        module(root, tmp_path / "cache").prepare()
    assert "\n" not in str(caught.value)


def test_empty_and_missing_styles_are_told_with_the_remedy(tmp_path: Path) -> None:
    root, cache = write_styles(tmp_path / "audio", files=4), tmp_path / "cache"
    (root / "jazz").mkdir()
    with pytest.raises(ValueError, match=r"audio/jazz holds no audio; put .*styles="):
        module(root, cache).prepare()
    assert module(root, cache, styles=["rock", "folk"]).styles == ("rock", "folk")  # the empty one is not asked for
    with pytest.raises(ValueError, match="'blues' is not there; there are folk, jazz, rock"):
        module(root, cache, styles=["folk", "blues"]).prepare()
    with pytest.raises(ValueError, match=r"styles=.*: at least 2 styles are needed, and here are 1 .folk.; name more in styles="):
        module(root, cache, styles=["folk"]).prepare()
    with pytest.raises(ValueError, match="twice"):
        module(root, cache, styles=["folk", "folk"]).prepare()
    assert module(root, cache, styles=["folk"], waveform=True).styles == ("folk",)  # a vocoder needs one
    flat = tmp_path / "flat"
    write(flat / "a.wav", sound(1))
    with pytest.raises(ValueError, match="subfolder of its own"):
        module(flat, cache).prepare()


@pytest.mark.parametrize(("root", "says"), [("", "data.root is empty"), ("nowhere", "is not a folder")])
def test_a_folder_that_is_not_there(root: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        module(tmp_path, tmp_path / "cache", corpus=AudioFolder(root=root)).prepare()


@pytest.mark.parametrize(("options", "says"), [
    ({"split": [0.5, 0.5, 0.5]}, "split="),
    ({"split": [0.0, 0.5, 0.5]}, "split="),
    ({"segment_frames": 0}, "segment_frames="),
    ({"batch_size": 0}, "batch_size="),
    ({"num_workers": -1}, "num_workers="),
    ({"batches_per_epoch": 0}, "batches_per_epoch="),
    ({"gain_db": [3, -3]}, "gain_db="),
    ({"gain_db": [-90, 0]}, "gain_db="),
    ({"gain_db": [1]}, "gain_db="),
])  # fmt: skip
def test_arguments_out_of_range_are_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        module(tmp_path, tmp_path, **options)


# --- the cache ---


def test_only_what_changed_is_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_styles(tmp_path / "audio", files=5), tmp_path / "cache"
    names = encodings(monkeypatch)
    module(root, cache).prepare()
    assert len(names) == 10
    names.clear()
    (root / "folk" / "folk00.wav").rename(root / "folk" / "moved.wav")
    write(root / "folk" / "folk01.wav", sound(77))
    write(root / "rock" / "new.wav", sound(78))
    data = module(root, cache)
    data.prepare()
    assert sorted(names) == ["folk/folk01.wav", "rock/new.wav"]
    assert "folk/moved.wav" in data.manifest()["name"].to_pylist()
    names.clear()
    other = MelContract(sample_rate=RATE, n_fft=256, hop_length=64, n_mels=20, f_max=4000.0)
    module(root, cache, contract=other).prepare()
    assert len(names) == 11


def test_ctrl_c_keeps_what_is_done_and_no_half_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root, cache = write_styles(tmp_path / "audio", files=5), tmp_path / "cache"
    blocks, count = audio_build._mel_blocks, []

    def interrupted(*arguments: Any) -> Any:
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return blocks(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_build, "_mel_blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module(root, cache).prepare()
    assert "3 of 10 recordings are done and saved" in capfd.readouterr().err
    files = [path for path in (cache).rglob("*") if path.suffix in (".pcm", ".mel", ".aside")]
    assert len(files) == 6
    names = encodings(monkeypatch)
    module(root, cache).prepare()
    assert len(names) == 7


def test_what_a_kill_left_is_cleared_away(tmp_path: Path) -> None:
    root, cache = write_styles(tmp_path / "audio", files=4), tmp_path / "cache"
    folder = audio_build.clips_folder(cache, CONTRACT)
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "abcd.pcm.1.aside").write_bytes(b"half")
    module(root, cache).prepare()
    assert not list(folder.rglob("*.aside"))


def test_a_full_disk_is_one_error_and_no_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_styles(tmp_path / "audio", files=4), tmp_path / "cache"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_build, "_sync", full)
        with pytest.raises(OSError, match="disk is full") as caught:
            module(root, cache).prepare()
    assert "data.cache_dir" in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.suffix in (".pcm", ".mel", ".aside")]
    data = module(root, cache)
    assert data.quarantine == []
    assert len(data.manifest()) == 8


def test_long_files_are_encoded_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etude.data.audio.recordings.BLOCK_SAMPLES", 1000)
    longest: list[int] = []
    quantise = audio_build.quantise
    monkeypatch.setattr(audio_build, "quantise", lambda block: (longest.append(len(block)), quantise(block))[1])
    for style, seed in (("folk", 1), ("rock", 2)):
        write(tmp_path / "audio" / style / f"{style}.wav", sound(seed, seconds=20.0, rate=2 * RATE), rate=2 * RATE)
    data = module(tmp_path / "audio", tmp_path / "cache")
    data.prepare()
    assert max(longest) < 10_000
    assert sum(longest) == 2 * 20 * RATE
    assert [data.piece("test", style, 0).stop for style in data.styles] == [20 * RATE // 64] * 2


# --- state ---


def test_resuming_on_other_data_is_refused_naming_both(tmp_path: Path) -> None:
    root, cache = write_styles(tmp_path / "audio", files=5), tmp_path / "cache"
    data = module(root, cache)
    state = data.state_dict()
    module(root, cache).load_state_dict(state)
    with pytest.raises(ValueError, match=r"styles \['folk', 'rock'\], here it is \['rock', 'folk'\]"):
        module(root, cache, styles=["rock", "folk"]).load_state_dict(state)
    (root / data.piece("train", "folk", 0).name).unlink()
    with pytest.raises(ValueError, match=f"dataset {state['dataset']}, here it is"):
        module(root, cache).load_state_dict(state)
    other = MelContract(sample_rate=RATE, n_fft=256, hop_length=64, n_mels=20, f_max=4000.0)
    with pytest.raises(ValueError, match="contract"):
        module(root, cache, contract=other).load_state_dict(state)


def test_unknown_splits_and_styles_are_named(tmp_path: Path) -> None:
    data = module(write_styles(tmp_path / "audio", files=4), tmp_path / "cache")
    with pytest.raises(ValueError, match="style=polka: valid are train, val, test and folk, rock"):
        data.num_pieces("train", "polka")
