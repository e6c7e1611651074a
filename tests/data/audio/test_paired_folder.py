"""Pairs of score and sound: rolls in step with the mels, ends, splits by score; what does not fit is told."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from symusic import Note, Score, Tempo, Track

from etude.data.audio.corpora import AudioFolder
from etude.data.audio.module import StyleDataModule
from etude.data.audio.paired_folder import PairedFolder
from etude.music.roll import note_table
from tests.data.audio.files import CONTRACT, RATE, SEGMENT, inline, same, sound, write

FRAME = CONTRACT.hop_length / CONTRACT.sample_rate


def tune(seed: int, *, program: int = 40) -> Score:
    """Five notes in two seconds, with rests between them."""
    score = Score(480)
    score.tempos = [Tempo(0, 120.0)]
    track = Track(program=program)
    pitches = np.random.default_rng(seed).integers(60, 85, 5)
    track.notes.extend([Note(384 * place, 240, int(pitch), 100) for place, pitch in enumerate(pitches)])
    score.tracks.append(track)
    return score


def played(score: Score, *, seconds: float | None = None) -> np.ndarray:
    """A sine for each note, and nothing in the rests."""
    table = note_table(score)
    samples = np.zeros(round((seconds or table[:, 1].max()) * RATE))
    for onset, end, _, pitch, _ in table:
        time = np.arange(round(onset * RATE), min(round(end * RATE), len(samples)))
        samples[time] += 0.5 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time / RATE)
    return samples


def write_pair(root: Path, name: str, score: Score, samples: np.ndarray | None = None) -> None:
    write(root / f"{name}.wav", played(score) if samples is None else samples)
    score.dump_midi(root / f"{name}.mid")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs") / "songs"
    for number in range(10):
        write_pair(root / f"book{number % 2}", f"song{number}", tune(number))
    return root


@pytest.fixture(scope="module")
def cache(pairs: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        inline(patch)
        module(pairs, pairs.parent / "cache").prepare()
    return pairs.parent / "cache"


def module(root: Path, cache: Path, **changes: Any) -> StyleDataModule:
    options = {"corpus": PairedFolder(str(root)), "contract": CONTRACT, "cache_dir": str(cache), "segment_frames": SEGMENT}
    options |= {"batch_size": 3, "batches_per_epoch": 6, "prepare_workers": 1, "seed": 5, "score": True}
    return StyleDataModule(**{**options, **changes})  # type: ignore[arg-type]


def test_the_roll_is_in_step_with_the_mel(pairs: Path, cache: Path) -> None:
    data = module(pairs, cache)
    roll, mel = data.roll("train", "pairs", 0), data.log_mel("train", "pairs", 0)
    assert roll.shape == (2, 1, 128, mel.shape[1]) and data.parts["instruments"] == (40,)
    sounding = roll[1].amax((0, 1)) > 0
    loud = mel.amax(0) > -4.0
    inside = sounding[1:-1] == sounding[2:]  # a window reaches over the borders
    assert (sounding[1:-1] == loud[1:-1])[inside].float().mean() > 0.95
    onsets = roll[0].amax((0, 1)).nonzero().flatten()
    assert onsets.tolist() == [int(0.4 * place / FRAME) for place in range(5)]


def test_batches_hold_what_the_pieces_are(pairs: Path, cache: Path) -> None:
    data = module(pairs, cache)
    frames = data.piece("val", "pairs", 0).frames
    batches = list(data.val_dataloader())
    rolls = torch.cat([batch["roll"] for batch in batches], 1)[0]
    stops = torch.cat([batch["stop"] for batch in batches], 1)[0].flatten()
    count = -(-frames // SEGMENT)  # the last segment reaches over the end
    whole = torch.cat(list(rolls[:count]), -1)
    assert torch.equal(whole[..., :frames], data.roll("val", "pairs", 0))
    assert stops[: count * SEGMENT].tolist() == [0.0] * frames + [1.0] * (count * SEGMENT - frames)
    mels = torch.cat(list(torch.cat([batch["mel"] for batch in batches], 1)[0][:count]), -1)
    torch.testing.assert_close(mels[:, :frames], CONTRACT.normalise(data.log_mel("val", "pairs", 0)))
    assert mels[:, frames:].max() == -1.0  # silence


def test_training_segments_see_the_end_and_are_drawn_again_alike(pairs: Path, cache: Path) -> None:
    data, again = module(pairs, cache, batch_size=64), module(pairs, cache, batch_size=64)
    batches = list(data.train_dataloader())
    assert all(same(one, two) for one, two in zip(batches, again.train_dataloader(), strict=True))
    stops = torch.cat([batch["stop"][0] for batch in batches])
    assert 0 < stops.mean() < 0.1 and stops.sum(1).max() <= SEGMENT // 2
    assert (stops.diff(dim=1) >= 0).all()
    behind = torch.cat([batch["roll"][0].amax((1, 2, 3)) for batch in batches])[stops > 0]
    assert behind.max() == 0


def test_renderings_of_one_score_share_a_split(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    shutil.copytree(pairs, tmp_path / "songs")
    for number in range(10):
        write_pair(tmp_path / "songs" / "soft", f"other{number}", tune(number), 0.5 * played(tune(number)))
    table = module(tmp_path / "songs", tmp_path / "cache").manifest().to_pylist()
    splits = {row["song"].rpartition("/")[2]: row["split"] for row in table}
    assert all(splits[f"song{number}"] == splits[f"other{number}"] for number in range(10))
    assert len(set(splits.values())) == 3


def test_what_does_not_fit_is_left_out_with_a_reason(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    root = tmp_path / "songs"
    shutil.copytree(pairs, root)
    write(root / "lonely.wav", sound(1))
    tune(50).dump_midi(root / "silent.mid")
    write_pair(root, "long", tune(51), played(tune(51), seconds=9.0))
    write_pair(root, "empty", tune(52))
    Score(480).dump_midi(root / "empty.mid")
    write_pair(root, "twice", tune(53))
    write(root / "twice.flac", played(tune(53)))
    found = {file: reason for file, _, reason in module(root, tmp_path / "cache").quarantine}
    assert found["lonely.wav"] == "has no MIDI file of the same name; add it"
    assert found["silent.mid"] == "has no audio file of the same name; add it"
    assert "lasts 9.0 s and its score 1.8 s, more than 5 s apart; align the two" in found["long.wav"]
    assert found["empty.wav"] == "its score: it holds no notes; remove it"
    assert found["twice.wav"] == "another file of this name is used, twice.flac; remove one of them"
    assert len(found) == 5


def test_a_difference_may_be_allowed(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    shutil.copytree(pairs, tmp_path / "songs")
    write_pair(tmp_path / "songs", "long", tune(51), played(tune(51), seconds=9.0))
    data = module(tmp_path / "songs", tmp_path / "cache", corpus=PairedFolder(str(tmp_path / "songs"), max_difference=8.0))
    assert data.quarantine == []


def test_without_a_usable_pair_the_reasons_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    write(tmp_path / "songs" / "one.wav", sound(1))
    with pytest.raises(ValueError, match=r"holds no pair of an audio and a MIDI file .*one\.wav: has no MIDI file"):
        module(tmp_path / "songs", tmp_path / "cache").prepare()
    write_pair(tmp_path / "songs", "one", tune(1), played(tune(1), seconds=9.0))
    with pytest.raises(ValueError, match=r"pairs has no usable audio \(one\.wav: lasts 9\.0 s and its score 1\.8 s"):
        module(tmp_path / "songs", tmp_path / "cache").prepare()


def test_what_can_have_no_notes_is_refused_at_once(tmp_path: Path, pairs: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.score=true: this data has no scores; give data=arranged, or .*paired_folder"):
        module(pairs, cache, corpus=AudioFolder(root=str(pairs)))
    with pytest.raises(ValueError, match=r"data\.root is empty; give the folder of audio and MIDI files"):
        module(pairs, cache, corpus=PairedFolder()).prepare()
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        module(tmp_path / "nowhere", cache).prepare()
    with pytest.raises(ValueError, match=r"corpus\.max_difference=0 must be above 0 seconds"):
        PairedFolder("x", max_difference=0)
    with pytest.raises(ValueError, match=r"opened without notes; set data\.score=true"):
        module(pairs, cache, score=False, waveform=True).roll("train", "pairs", 0)
