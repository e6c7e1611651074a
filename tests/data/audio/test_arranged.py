"""The default data: tunes that ship with a dependency, apart for training, paired for measuring."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.audio.mel import MelContract
from etude.data.audio.corpora import Arranged, Tunes
from etude.data.audio.module import StyleDataModule
from etude.data.scores import build
from etude.data.scores import duplicates as dedup
from etude.metrics.audio.mel_features import onset_agreement
from etude.render.synthesizers import default_soundfont
from tests.data.audio.files import inline

CONTRACT = MelContract(sample_rate=8000, n_fft=512, hop_length=128, n_mels=32, f_max=4000.0)
TINY: dict[str, Any] = {"songs_per_style": 2, "paired_val": 1, "paired_test": 2, "max_seconds": 6.0}


def module(cache: Path, *, styles: list[str] | None = None, **changes: Any) -> StyleDataModule:
    corpus = Arranged(**{**TINY, **changes})
    return StyleDataModule(
        corpus=corpus, contract=CONTRACT, cache_dir=str(cache), styles=styles, segment_frames=32, prepare_workers=1
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs a style, arranged and encoded in this process."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        inline(patch)
        module(folder).prepare()
    return folder


def songs(data: StyleDataModule, split: str, style: str) -> list[str]:
    return [data.piece(split, style, index).song for index in range(data.num_pieces(split, style))]


def test_training_songs_are_apart_and_held_out_ones_paired(cache: Path) -> None:
    data = module(cache)
    assert data.styles == ("folk", "rock", "jazz")
    assert data.paired
    assert data.quarantine == []
    training = [song for style in data.styles for song in songs(data, "train", style)]
    assert len(training) == len(set(training)) == 6
    held = {split: songs(data, split, "folk") for split in ("val", "test")}
    assert [len(names) for names in held.values()] == [1, 2]
    assert all(songs(data, split, style) == names for split, names in held.items() for style in data.styles)
    assert not set(training) & {*held["val"], *held["test"]}
    assert not set(held["val"]) & set(held["test"])
    assert all("music21" in row["source"] and row["licence"] for row in data.manifest().to_pylist())


def test_no_tune_is_anothers_double(cache: Path) -> None:
    data = module(cache)
    names = sorted(set(data.manifest()["song"].to_pylist()))
    files = {source.name: source.path for source in Tunes().files()}
    scores = [next(Tunes().read(files[name]))[2] for name in names]
    contents = np.array([dedup.content_hash(score) for score in scores])
    group = dedup.groups(contents, np.stack([dedup.sketch(score) for score in scores]))
    assert len(set(group.tolist())) == len(names)


def test_pairs_are_in_step_and_styles_differ(cache: Path) -> None:
    data = module(cache)
    for index in range(data.num_pieces("test", "folk")):
        folk, rock, jazz = (data.log_mel("test", style, index) for style in data.styles)
        frames = min(folk.shape[1], rock.shape[1], jazz.shape[1])
        assert frames > 32
        assert (
            max(m.shape[1] for m in (folk, rock, jazz)) - frames < 4.5 * CONTRACT.sample_rate / CONTRACT.hop_length
        )  # the tails
        assert float((folk[:, :frames] - rock[:, :frames]).abs().mean()) > 0.3
        # the attacks of the melody fall together: rises of the loudness agree better in step than half a beat apart
        rises = [mel[:, :frames].diff(dim=1).clamp(min=0).mean(0) for mel in (folk, rock)]
        together = float(torch.corrcoef(torch.stack(rises))[0, 1])
        apart = [float(torch.corrcoef(torch.stack([rises[0], rises[1].roll(shift)]))[0, 1]) for shift in (5, 8, 11, 14)]
        assert together > max(apart)


def test_batches_of_the_held_out_are_paired(cache: Path) -> None:
    data = module(cache)
    mel_srmf = torch.cat([batch["mel"] for batch in data.val_dataloader()], 1)
    starts = range(0, min(data.piece("val", style, 0).frames for style in data.styles) - 31, 32)
    assert mel_srmf.shape == (3, len(starts), 32, 32)
    for number, style in enumerate(data.styles):
        mel_mf = CONTRACT.normalise(data.log_mel("val", style, 0))
        for row, start in enumerate(starts):
            torch.testing.assert_close(mel_srmf[number, row], mel_mf[:, start : start + 32])


def test_damaged_facts_of_a_tune_are_read_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    shutil.copytree(cache, tmp_path / "cache")
    file = build.scores_folder(tmp_path / "cache") / "facts" / "data"
    facts = file.read_bytes()
    place = facts.index(b'"notes": ') + len(b'"notes": ')
    file.write_bytes(facts[:place] + (b"9" if facts[place] != ord("9") else b"8") + facts[place + 1 :])  # it is still valid JSON
    assert module(tmp_path / "cache").manifest().to_pylist() == module(cache).manifest().to_pylist()
    assert file.read_bytes() == facts


def test_everything_else_stays_when_styles_are_chosen_or_songs_added(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    whole, pair, more = module(cache), module(cache, styles=["jazz", "folk"]), module(cache, songs_per_style=3)
    assert pair.styles == ("jazz", "folk")
    for split, style in (("train", "jazz"), ("train", "folk"), ("val", "jazz"), ("test", "folk")):
        assert songs(pair, split, style) == songs(whole, split, style)
        assert set(songs(whole, split, style)) <= set(songs(more, split, style))
    torch.testing.assert_close(pair.statistics, whole.statistics[[2, 0]])


@pytest.mark.parametrize(("options", "says"), [
    ({"styles": ["folk", "polka"]}, "'polka' has no arrangement; valid are folk, rock, jazz"),
    ({"songs_per_style": 0}, "songs_per_style=0"),
    ({"paired_test": 0}, "paired_test=0"),
    ({"max_seconds": 0.5}, "max_seconds=0.5"),
    ({"synthesizer": "timidity"}, "corpus.synthesizer=timidity is not one of tinysoundfont, fluidsynth"),
])  # fmt: skip
def test_arguments_out_of_range_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Arranged(**options)


def test_a_missing_soundfont_and_a_root_are_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"soundfont=nowhere\.sf2 is not a file"):
        module(cache, soundfont="nowhere.sf2").prepare()
    with pytest.raises(ValueError, match="data=audio_folder"):
        StyleDataModule(corpus=Arranged(), contract=CONTRACT, root="music")


def test_a_missing_synthesizer_is_named_before_any_tune_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs the program fluidsynth.*install it"):
        module(tmp_path / "cache", synthesizer="fluidsynth").prepare()
    assert not (tmp_path / "cache").exists()


def test_soundfont_synthesizer_and_its_version_are_of_the_clips_identity(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.sf2"
    other.write_bytes(default_soundfont().read_bytes() + b"more")
    names = []
    for version, changes in (("1.0", {}), ("2.3", {"synthesizer": "fluidsynth"}), ("2.4", {"synthesizer": "fluidsynth"}),
                             ("1.0", {"soundfont": str(other)})):  # fmt: skip
        program = tmp_path / version / "fluidsynth"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho FluidSynth runtime version {version}.1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        found, _ = Arranged(**{**TINY, **changes}).recordings(["folk", "jazz"], cache_dir=cache, num_workers=1)
        names.append({recording.identity for recording in found})
    assert len(set.union(*names)) == 4 * len(names[0])  # no two of the four share a clip


@pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="needs the program fluidsynth")
def test_fluidsynth_plays_the_same_tunes_in_step(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    one, other = module(cache), module(cache, synthesizer="fluidsynth")
    for style in one.styles:
        assert songs(one, "test", style) == songs(other, "test", style)
        for index in range(one.num_pieces("test", style)):
            mels = [data.log_mel("test", style, index) for data in (one, other)]
            assert mels[0].shape == mels[1].shape
            assert 0.01 < float((mels[0] - mels[1]).abs().mean()) < 1.5
            assert onset_agreement(*mels, frame_rate=CONTRACT.sample_rate / CONTRACT.hop_length) > 0.7
