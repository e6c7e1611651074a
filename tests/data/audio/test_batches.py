"""Segments and their order: what a batch holds, what it costs to resume, and who gets what."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from etude.data.audio.batches import DrawSampler, RandomSegments, _positions
from etude.data.audio.held_out import evaluation_batches, evaluation_rows
from etude.techniques.data.curriculum import Curriculum
from tests.data.audio.files import CONTRACT, SEGMENT, inline, module, same, sound, write, write_styles


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of two styles, encoded in this process."""
    base = tmp_path_factory.mktemp("audio")
    root = write_styles(base / "audio", files=12)
    with pytest.MonkeyPatch.context() as patch:
        inline(patch)
        module(root, base / "cache").prepare()
    return root, base / "cache"


def places(mel_fm: np.ndarray, segment_fm: np.ndarray) -> list[int]:
    """Where a segment begins in a piece."""
    windows = np.lib.stride_tricks.sliding_window_view(mel_fm, SEGMENT, axis=0)  # [start, m, f]
    return np.flatnonzero((windows == segment_fm.T).all(axis=(1, 2))).tolist()


def test_a_batch_holds_segments_of_training_pieces_of_each_style(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    pieces = {s: [data.log_mel("train", s, i).numpy().T for i in range(data.num_pieces("train", s))] for s in data.styles}
    for batch in data.train_dataloader():
        mel_sbmf = batch["mel"]
        assert mel_sbmf.shape == (2, 3, CONTRACT.n_mels, SEGMENT)
        assert mel_sbmf.dtype == torch.float32
        assert mel_sbmf.is_contiguous()
        assert set(batch) == {"mel"}
        for style, mel_bmf in zip(data.styles, mel_sbmf, strict=True):
            raw = [CONTRACT.normalise(torch.from_numpy(piece)).numpy() for piece in pieces[style]]
            assert all(any(places(piece, mel_mf.T.numpy()) for piece in raw) for mel_mf in mel_bmf)


def test_every_place_is_as_likely_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    root = write_styles(tmp_path / "audio", files=8)
    data = module(root, tmp_path / "cache", batch_size=500, batches_per_epoch=8)
    own = data._of("train", "folk").pieces
    segments = data.train_dataloader().dataset
    counts = np.zeros(len(own))
    seen: list[int] = []

    def record(arrays: object, style: int, row: int, piece: int, start: int, gain_db: float = 0.0) -> None:
        if style == 0:
            counts[piece] += 1
            seen.append(start)
            assert 0 <= start <= own[piece].frames - SEGMENT
        arrays["mel"][style, row] = 0.0  # type: ignore[index]

    monkeypatch.setattr(segments, "_write", record)
    for first in range(0, 8000, 500):
        segments.__getitems__(range(first, first + 500))
    chances = np.array([piece.frames - SEGMENT + 1 for piece in own], float)
    expected = chances / chances.sum() * 8000
    assert float(((counts - expected) ** 2 / expected).sum()) < 3 * len(own)  # chi square
    assert min(seen) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch_is_exact(ready: tuple[Path, Path], workers: int) -> None:
    options = {"num_workers": workers, "gain_db": [-6, 6], "waveform": True}
    straight = module(*ready, **options).train_dataloader()
    expected = [*straight, *straight]
    first = module(*ready, **options).train_dataloader()
    taken = list(first)
    stream = iter(first)
    taken += [next(stream) for _ in range(2)]
    state = first.state_dict()
    second = module(*ready, **options).train_dataloader()
    second.load_state_dict(state)
    taken += list(second)
    assert len(taken) == len(expected) == 12
    assert all(same(*pair) for pair in zip(taken, expected, strict=True))
    assert not same(expected[0], expected[6])


def test_resume_survives_weights_only_loading(ready: tuple[Path, Path], tmp_path: Path) -> None:
    loader = module(*ready).train_dataloader()
    stream = iter(loader)
    next(stream)
    torch.save(loader.state_dict(), tmp_path / "state")
    rest = list(stream)
    again = module(*ready).train_dataloader()
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert all(same(*pair) for pair in zip(rest, again, strict=True))


def test_workers_change_nothing(ready: tuple[Path, Path]) -> None:
    alone, helped = (module(*ready, num_workers=workers) for workers in (0, 2))
    for split in ("train", "val"):
        one, two = (getattr(data, f"{split}_dataloader")() for data in (alone, helped))
        assert all(same(*pair) for pair in zip(one, two, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_draws_without_overlap(world: int) -> None:
    whole = DrawSampler(batch_size=2 * world, num_batches=5)
    ranks = [DrawSampler(batch_size=2, num_batches=5, rank=rank, world=world) for rank in range(world)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert sorted(draw for part in parts for draw in part) == batch
        assert all(draw % world == rank for rank, part in enumerate(parts) for draw in part)
    assert len({str(rank.state_dict()) for rank in ranks}) == 1


def test_a_style_draws_the_same_whatever_styles_are_beside_it(ready: tuple[Path, Path]) -> None:
    there, back = (next(iter(module(*ready, styles=s).train_dataloader())) for s in (["folk", "rock"], ["rock", "folk"]))
    assert torch.equal(there["mel"].flip(0), back["mel"])


def test_seeds_differ_and_gains_shift_what_lies_above_the_floor(ready: tuple[Path, Path]) -> None:
    plain, other = (next(iter(module(*ready, seed=seed).train_dataloader()))["mel"] for seed in (1, 2))
    assert not torch.equal(plain, other)
    louder = next(iter(module(*ready, seed=1, gain_db=[20, 20]).train_dataloader()))["mel"]
    expected = (CONTRACT.denormalise(plain) + np.log(10)).clamp(min=np.log(CONTRACT.floor))
    torch.testing.assert_close(CONTRACT.denormalise(louder), expected, atol=1e-4, rtol=0)


def test_samples_are_those_that_the_mel_was_made_of(ready: tuple[Path, Path]) -> None:
    for gains in (None, [-9.0, 9.0]):
        batch = next(iter(module(*ready, waveform=True, gain_db=gains).train_dataloader()))
        assert batch["samples"].shape == (2, 3, SEGMENT * CONTRACT.hop_length)
        inner = slice(3, -3)  # at its edges a segment has other neighbours than its piece
        made = CONTRACT.log_mel(batch["samples"])[..., inner]
        given = CONTRACT.denormalise(batch["mel"])[..., inner]
        torch.testing.assert_close(made, given, atol=0.02, rtol=0)


def test_silence_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    for style in ("folk", "rock"):
        for number in range(4):
            tone = sound(number, seconds=1.0)
            write(tmp_path / "audio" / style / f"{style}{number}.wav", np.concatenate([tone, np.zeros(8000), tone]))
    data = module(tmp_path / "audio", tmp_path / "cache", batch_size=200, batches_per_epoch=1)
    batch = next(iter(data.train_dataloader()))
    silent = (batch["mel"].amax(dim=(2, 3)) < -0.99).float().mean()
    assert silent < 0.03  # a third of the places, to the fourth power


def test_evaluation_covers_each_whole_segment_once(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    assert not data.paired
    clips = [data._of("val", style) for style in data.styles]
    rows = evaluation_rows(clips, segment=SEGMENT, paired=False)
    for style, clip in enumerate(clips):
        expected = [(i, k * SEGMENT) for i, piece in enumerate(clip.pieces) for k in range(piece.frames // SEGMENT)]
        found = [row[style] for row in rows]
        assert found == [expected[number % len(expected)] for number in range(len(found))]
        assert set(found) == set(expected)
    assert sum(batch["mel"].shape[1] for batch in data.val_dataloader()) == len(rows)


@pytest.mark.parametrize(("count", "world"), [(1, 4), (7, 2), (8, 4), (9, 4)])
def test_ranks_get_equally_many_evaluation_batches(count: int, world: int) -> None:
    rows = [((number, 0), (number, 0)) for number in range(count)]
    ranks = [evaluation_batches(rows, batch_size=2, rank=rank, world=world) for rank in range(world)]
    assert len({tuple(map(len, batches)) for batches in ranks}) == 1
    assert {row for batches in ranks for batch in batches for row in batch} == set(rows)


def test_a_thousand_steps_over_files_of_random_lengths_are_finite_and_fast(ready: tuple[Path, Path]) -> None:
    data = module(*ready, batches_per_epoch=1000)
    segments = data.train_dataloader().dataset
    assert isinstance(segments, RandomSegments)
    start, steps = time.process_time(), 0
    for batch in data.train_dataloader():
        steps += 1
        assert bool(batch["mel"].isfinite().all())
    assert steps == 1000
    assert (time.process_time() - start) / steps < 0.005


def pieces_of(data: Any, batch: dict[str, torch.Tensor], style: int) -> set[int]:
    """Which training pieces of a style a batch's segments are from."""
    name = data.styles[style]
    raw = [CONTRACT.normalise(data.log_mel("train", name, i).T) for i in range(data.num_pieces("train", name))]
    return {i for mel_mf in batch["mel"][style] for i, piece in enumerate(raw) if places(piece.numpy(), mel_mf.T.numpy())}


@pytest.mark.parametrize("workers", [0, 2])
def test_only_admitted_pieces_are_drawn_and_a_rule_of_ones_changes_nothing(ready: tuple[Path, Path], workers: int) -> None:
    plain, ones, some = (module(*ready, num_workers=workers) for _ in range(3))
    ones.admit("all", lambda rows, draw: np.ones(len(rows)))
    assert all(same(*pair) for pair in zip(plain.train_dataloader(), ones.train_dataloader(), strict=True))
    first = some.num_pieces("train", "folk")
    some.admit("last", lambda rows, draw: (rows == first - 1) | (rows >= first) * (rows - first <= draw))
    for draw, batch in enumerate(some.train_dataloader()):
        assert pieces_of(some, batch, 0) == {first - 1}
        assert max(pieces_of(some, batch, 1)) <= draw


def test_chances_count_as_shares_of_the_places() -> None:
    ends, admitted = np.array([100, 150, 250]), np.array([0.5, 0.0, 0.25])
    pieces, starts = _positions(np.linspace(0, 1, 10_001)[:-1], ends, admitted)
    assert np.bincount(pieces, minlength=3).tolist() == pytest.approx([6667, 0, 3333], abs=2)
    assert [int(starts[pieces == p].max()) for p in (0, 2)] == [99, 99] and starts.min() == 0


def test_admission_resumes_in_the_middle(ready: tuple[Path, Path]) -> None:
    def loader() -> Any:
        data = module(*ready)
        data.admit("one", lambda rows, draw: (rows % 3 == draw % 3).astype(float))
        return data.train_dataloader()

    straight = loader()
    expected = [*straight, *straight]
    first = loader()
    stream = iter(first)
    for _ in range(4):
        next(stream)
    second = loader()
    second.load_state_dict(first.state_dict())
    assert all(same(*pair) for pair in zip([*second, *second], expected[4:], strict=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rule_may_leave_a_style_out_and_the_others_are_drawn_as_before(ready: tuple[Path, Path], workers: int) -> None:
    plain, some = (module(*ready, num_workers=workers) for _ in range(2))
    folk = some.num_pieces("train", "folk")
    some.admit("phases", lambda rows, draw: np.where(draw < 2, 1.0, rows >= folk))
    some.may_leave_styles_out("phases")
    for draw, (whole, part) in enumerate(zip(plain.train_dataloader(), some.train_dataloader(), strict=True)):
        if draw < 2:
            assert same(whole, part)
        else:
            assert part["style"].tolist() == [[1] * part["mel"].shape[1]] and torch.equal(part["mel"], whole["mel"][1:])
    some.admit("few", lambda rows, draw: np.zeros(len(rows)))
    with pytest.raises(ValueError, match="few and phases admit no training piece of folk to batch 0"):
        next(iter(some.train_dataloader()))


def test_a_rule_that_leaves_a_style_without_pieces_is_told(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    data.admit("few", lambda rows, draw: np.zeros(len(rows)))
    with pytest.raises(ValueError, match="few admit no training piece of folk to batch 0"):
        next(iter(data.train_dataloader()))


def test_pieces_have_difficulties_and_a_curriculum_opens_the_easy_ones_first(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    columns = data.pieces()
    assert {name.split("_")[1] for name in columns if name.startswith("complexity_")} == {
        "rhythmic",
        "harmonic",
        "melodic",
        "structural",
    }
    assert set(columns["genre"]) == {"folk", "rock"} and all(len(column) == len(columns["genre"]) for column in columns.values())
    technique = Curriculum(difficulty="complexity_rhythmic_flux", start=0.3, by_genre=True)
    run: Any = SimpleNamespace(datamodule=data, max_steps=100, accumulate_grad_batches=1)
    technique.setup(run, SimpleNamespace(), "fit")  # type: ignore[arg-type]
    first = data.num_pieces("train", "folk")
    for style, rows in enumerate((range(first), range(first, len(columns["genre"])))):
        flux = columns["complexity_rhythmic_flux"][list(rows)]
        easy = set(np.argsort(flux)[: max(1, round(0.3 * len(flux)))].tolist())
        assert pieces_of(data, next(iter(data.train_dataloader())), style) <= easy


def test_the_number_of_a_batch_goes_on_with_another_number_of_ranks() -> None:
    asked: list[int] = []

    def admission(number: int) -> list[np.ndarray]:
        asked.append(number)
        return []

    two = DrawSampler(batch_size=2, num_batches=3, rank=1, world=2, admission=admission)
    list(two)
    one = DrawSampler(batch_size=2, num_batches=3, admission=admission)
    one.load_state_dict(two.state_dict())
    list(one)
    assert asked == [0, 1, 2, 3, 4, 5]
