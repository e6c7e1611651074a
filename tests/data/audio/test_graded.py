"""Batches with known defects: functions of their numbers alone, true about what was added, the same for any number of workers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.audio.degradations import quality
from etude.audio.mel import MelContract
from etude.data.audio.batches import RestrictedDraws
from etude.data.audio.corpora import AudioFolder
from etude.data.audio.graded import COARSE_BANDS, RECOLOURED, Spoiler, covered_frames, onset_frames, partners_of
from etude.data.audio.module import StyleDataModule
from tests.data.audio.files import CONTRACT, RATE, SEGMENT, inline, module, same, sound, write, write_styles

DEFECTS = ["clipping", "dropout", "hiss", "hum"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_styles(tmp_path_factory.mktemp("graded") / "styles")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)


def graded(root: Path, cache: Path, **changes: Any) -> StyleDataModule:
    return module(root, cache, **{"defects": DEFECTS, **changes})


def drawn(data: StyleDataModule, count: int = 6) -> list[dict[str, Any]]:
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(count)]


def test_a_batch_holds_what_it_says(root: Path, tmp_path: Path) -> None:
    data = graded(root, tmp_path, waveform=True, gain_db=[-6, 6])
    batch = drawn(data, 1)[0]
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes == {
        "mel": (2, 3, 16, SEGMENT), "samples": (2, 3, SEGMENT * 64), "defects": (2, 3, 4, SEGMENT), "strength": (2, 3, 4),
        "bands": (2, 3, 2, COARSE_BANDS, SEGMENT), "quality": (2, 3), "onsets": (2, 3, SEGMENT), "sections": (2, 3, SEGMENT),
    }  # fmt: skip
    assert all(value.dtype == torch.float32 for value in batch.values())
    mel = CONTRACT.normalise(CONTRACT.log_mel(batch["samples"]))
    torch.testing.assert_close(batch["mel"], mel, atol=1e-5, rtol=1e-5)
    assert data.parts["defects"] == tuple(DEFECTS) and data.parts["segment_frames"] == SEGMENT


def test_truths_agree_with_each_other(root: Path, tmp_path: Path) -> None:
    rows = [
        (batch, style, row) for batch in drawn(graded(root, tmp_path, batch_size=20)) for style in range(2) for row in range(20)
    ]
    counts, joins = [], 0
    for batch, style, row in rows:
        strength = batch["strength"][style, row]
        assert ((batch["defects"][style, row].amax(-1) > 0) == (strength > 0)).all()
        known = {name: float(value) for name, value in zip(DEFECTS, strength, strict=True) if value}
        assert float(batch["quality"][style, row]) == pytest.approx(quality(known), abs=1e-4)
        in_bands = batch["bands"][style, row].amax(1) > 0
        assert not (in_bands & (batch["defects"][style, row, 2:] == 0)).any()  # only where the defect is
        counts.append(len(known))
        joins += int(batch["sections"][style, row].sum())
    assert np.bincount(counts, minlength=4)[:4] / len(counts) == pytest.approx([0.25, 0.4, 0.2, 0.15], abs=0.1)
    assert joins / len(rows) == pytest.approx(0.3, abs=0.1)


def test_a_row_is_a_function_of_its_number_alone(root: Path, tmp_path: Path) -> None:
    one, two, other = (graded(root, tmp_path, seed=seed) for seed in (5, 5, 6))
    segments = [data.train_dataloader().dataset for data in (one, two, other)]
    batch, again = segments[0].__getitems__([4, 9]), segments[1].__getitems__([9, 4])
    for name, value in batch.items():
        assert torch.equal(value, again[name].flip(1)), name
    assert not torch.equal(batch["mel"], segments[2].__getitems__([4, 9])["mel"])
    alone = RestrictedDraws([4, 9], [np.zeros(one.num_pieces("train", "folk")), np.ones(one.num_pieces("train", "rock"))])
    left = segments[0].__getitems__(alone)
    assert left["mel"].shape[0] == 1 and left["style"].tolist() == [[1, 1]]


def test_workers_and_a_resumed_loader_give_the_same_batches(root: Path, tmp_path: Path) -> None:
    whole = drawn(graded(root, tmp_path), 6)
    with_workers = drawn(graded(root, tmp_path, num_workers=2), 6)
    first = graded(root, tmp_path).train_dataloader()
    iterator = iter(first)
    for _ in range(2):
        next(iterator)
    rest = graded(root, tmp_path).train_dataloader()
    rest.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(whole, with_workers, strict=True))
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_held_out_segments_are_the_same_for_every_seed_and_batch_size(root: Path, tmp_path: Path) -> None:
    rows = []
    for seed, size in ((5, 3), (6, 2)):
        batches = list(graded(root, tmp_path, seed=seed, batch_size=size).val_dataloader())
        rows.append({name: torch.cat([batch[name] for batch in batches], dim=1) for name in batches[0]})
    assert same(*rows) and rows[0]["quality"].std() > 1


def test_levels_tell_nothing_in_evaluation_and_vary_by_gain_db_in_training(root: Path, tmp_path: Path) -> None:
    held_out = torch.cat([b["samples"].flatten(0, 1) for b in graded(root, tmp_path, waveform=True).val_dataloader()])
    trained = torch.cat([b["samples"].flatten(0, 1) for b in drawn(graded(root, tmp_path, waveform=True, gain_db=[-6, 6]))])
    levels = [20 * samples.square().mean(-1).sqrt().log10() for samples in (held_out, trained)]
    assert levels[0] == pytest.approx(torch.full_like(levels[0], -23), abs=0.01)
    assert -29.01 < levels[1].min() < -25 and -21 < levels[1].max() < -16.99


def test_a_defect_lies_in_the_bands_and_frames_where_it_was_put() -> None:
    contract = MelContract(n_mels=64)
    spoiler = Spoiler(["hum"], contract, None)
    noise = np.random.default_rng(0).standard_normal(128 * 256).astype(np.float32)
    high = np.fft.irfft(np.fft.rfft(noise) * (np.arange(len(noise) // 2 + 1) > 4000)).astype(np.float32)  # above 2 kHz
    for seed in range(20):
        row = spoiler((high, np.zeros(128, bool)), (high, np.zeros(128, bool)), np.random.default_rng(seed))
        if row["strength"][0] > 0.5:
            break
    here = row["defects"][0] > 0
    low = row["bands"][0, 0] > 0
    assert low[here].mean() > 0.9 and not low[~here].any() and not row["bands"][0, 6:].any()  # a hum is low


def test_a_frame_is_covered_by_the_middle_half_of_its_window() -> None:
    marks = np.zeros(20 * 64, bool)
    marks[10 * 64 + 32] = True  # the centre of frame 10; half a window of 256 is 2 hops, one on each side
    assert np.flatnonzero(covered_frames(marks, CONTRACT, 20)).tolist() == [10, 11]
    assert not covered_frames(np.zeros(20 * 64, bool), CONTRACT, 20).any()


def test_partners_are_other_rows() -> None:
    rows = [((0, start), (1, start)) for start in range(5)]
    assert all(partner != row for row, partner in partners_of(rows).items()) and len(partners_of(rows)) == 5
    assert partners_of([]) == {}


def test_onsets_without_a_score_are_those_of_the_flux(tmp_path: Path) -> None:
    for number in range(6):
        samples = 0.001 * np.random.default_rng(number).standard_normal(RATE)
        samples[RATE // 2 :] += sound(number, seconds=0.5)
        write(tmp_path / "in" / f"{number}.wav", samples)
    data = graded(tmp_path / "in", tmp_path / "cache")
    rows = data._onsets_of("train")
    assert rows is not None and data.styles == ("in",)
    frame = RATE // 2 // 64
    assert all(np.abs(np.flatnonzero(piece) - frame).min() <= 3 for piece in rows[0])


def test_onsets_of_scores_are_their_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    data = graded(root, tmp_path)
    data.prepare()
    recordings, _ = data.corpus.recordings(data.styles, cache_dir=tmp_path, num_workers=1)
    times = np.array([0.0, 0.1, 0.105, 50.0])
    monkeypatch.setattr(type(recordings[0]), "onsets", lambda self: times)
    clips = [data._clips["train", style] for style in data.styles]
    found = onset_frames(recordings, clips, cache=tmp_path / "other", name="x")
    assert all(np.flatnonzero(piece).tolist() == [0, math.floor(0.1 * RATE / 64), 13] for piece in found[0])
    monkeypatch.undo()
    again = onset_frames(recordings, clips, cache=tmp_path / "other", name="x")  # cached
    assert all(np.array_equal(a, b) for a, b in zip(found[0], again[0], strict=True))


def test_a_folder_without_subfolders_is_one_style_and_loose_files_beside_some_are_told(root: Path, tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "flat" / f"{number}.wav", sound(number))
    data = graded(tmp_path / "flat", tmp_path / "cache", defects=["hum"])
    assert data.styles == ("flat",) and drawn(data, 1)[0]["mel"].shape[:2] == (1, 3)
    assert {piece["name"] for piece in data.manifest().to_pylist()} == {f"{number}.wav" for number in range(8)}
    with pytest.raises(ValueError, match="at least 2 styles are needed, and here are 1 \\(flat\\)"):
        module(tmp_path / "flat", tmp_path / "cache").prepare()
    assert module(tmp_path / "flat", tmp_path / "cache", targets=["style"]).styles == ("flat",)  # to learn vectors, say
    write(tmp_path / "mixed" / "a" / "0.wav", sound(0))
    write(tmp_path / "mixed" / "loose.wav", sound(1))
    _, failures = AudioFolder(root=str(tmp_path / "mixed")).recordings(["a"], cache_dir=tmp_path / "cache", num_workers=1)
    assert failures == [("loose.wav", "", "lies beside the folders of the styles; move it into one")]
    (tmp_path / "empty").mkdir()
    assert AudioFolder(root=str(tmp_path / "empty")).available() == []


@pytest.mark.parametrize(("defects", "told"), [(["rumble"], "'rumble' is not one of"), ([], "data.defects is empty")])
def test_unknown_defects_are_told_before_anything_is_read(root: Path, tmp_path: Path, defects: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        graded(root, tmp_path, defects=defects)


def test_sounds_are_changed_in_training_and_validation_and_not_in_tests(root: Path, tmp_path: Path) -> None:
    data = graded(root, tmp_path)
    data.setup("fit")
    shares = [
        loader.dataset.spoiler.recoloured for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert shares == [RECOLOURED, RECOLOURED, 0.0]


def test_a_changed_sound_is_no_defect_and_no_join() -> None:
    clean = (np.random.default_rng(0).standard_normal(62 * 256).astype(np.float32), np.zeros(62, np.float32))
    spoiler = Spoiler(DEFECTS, MelContract(), None, recoloured=1.0)
    rows = [spoiler(clean, clean, np.random.default_rng(seed)) for seed in range(40)]
    assert not any(row["sections"].any() for row in rows)  # the same piece is no other audio
    whole = [row for row in rows if not row["strength"].any()]
    assert len(whole) > 3 and all(row["quality"] == 10 and not row["defects"].any() and not row["bands"].any() for row in whole)
    assert not np.array_equal(whole[0]["samples"], whole[1]["samples"])
