"""The data module: manifest, batches, exact resume, arguments."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from symusic import Note, Score, Track

from etude.tokens.miditok import MidiTokTokenizer
from tests.data.scores.pieces import module, write_folder


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_manifest_tells_about_every_piece(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    table = data.manifest()
    assert len(table) == 30
    assert {"path", "name", "sha256", "source", "licence", "genre", "key", "tempo_bpm", "metre", "bars", "notes",
            "tracks", "duration_beats", "split", "group"} <= set(table.column_names)  # fmt: skip
    row = table.slice(0, 1).to_pylist()[0]
    assert (row["genre"], row["metre"], row["tempo_bpm"], row["tracks"]) == ("folk", "4/4", 90.0, 4)
    assert (row["bars"], row["notes"], row["duration_beats"]) == (4, 64, 16.0)
    assert sum(len(data.manifest(split)) for split in ("train", "val", "test")) == 30
    assert data.tokenizer.genres == ("folk", "jazz")


def test_the_labels_of_training_are_told_with_their_values(ready: tuple[Path, Path]) -> None:
    asked = module(*ready, transpose=None).trained_labels()
    assert list(asked) == ["genre", "key", "metre", "tempo_bpm", "num_bars", "programs"]
    assert (asked["genre"], asked["metre"]) == (["folk", "jazz"], ["4/4"])
    assert asked["tempo_bpm"] == ["95"]
    moved = module(*ready, transpose=[-3, 3], tempo_scale=[0.5, 2.0], controls=["key", "tempo_bpm"]).trained_labels()
    assert list(moved) == ["key", "tempo_bpm"] and set(asked["key"]) < set(moved["key"])
    assert {"48", "95", "190"} <= set(moved["tempo_bpm"])
    assert module(*ready, controls=[]).trained_labels() == {}


def test_what_a_tokenizer_changes_in_training_pieces_is_told_with_counts(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scores", pieces=10)
    for path in sorted(root.rglob("*.mid"))[::2]:
        score = Score(str(path))
        quarter = score.ticks_per_quarter
        score.tracks.append(Track(is_drum=True, notes=[Note(quarter * n, quarter // 2, 38, 80) for n in range(8)]))
        score.dump_midi(path)
    data = module(root, tmp_path / "cache", split=(1.0, 0.0, 0.0))
    found = data.changed_pieces()
    assert len(found) == 10 and sum(changes.get("lose drums", 0) for _, changes in found) == 5 * 8
    line = data.told_changes(found)
    assert line.startswith("of the 10 training pieces, as the tokens of SatbGrid hold them, ") and "\n" not in line
    assert "5 lose drums (40 notes)" in line and line.endswith("tokenizer=remi keeps them")
    assert ", 1 loses drums (8 notes)" in data.told_changes([("a", {"lose drums": 8}), ("b", {"get other bars": 1})])
    assert len(data.changed_pieces(most=3)) == 3
    assert data.told_changes(data.changed_pieces(most=3)).startswith("of 3 of the 10 training pieces")
    kept = module(root, tmp_path / "cache", split=(1.0, 0.0, 0.0), tokenizer=MidiTokTokenizer)
    assert kept.told_changes(kept.changed_pieces()) == ""


def test_pieces_are_described_and_chosen_by_rules(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    columns, table = data.pieces(), data.manifest("train")
    assert {"genre", "bars", "tokens", "rhythmic_syncopation", "structural_length"} <= {
        name.removeprefix("complexity_") for name in columns
    }
    assert all(len(values) == len(table) for values in columns.values()) and (columns["tokens"] > 0).all()
    folk = columns["genre"] == "folk"
    data.admit("folk", lambda rows, draw: 1.0 * folk[rows])
    for batch in data.train_dataloader():
        held = batch["piece"][batch["piece"] >= 0]
        assert folk[held.numpy()].all()
        assert torch.equal(batch["piece"] >= 0, batch["documents"] >= 0)


def test_tokens_are_the_tokenizers_and_scores_the_files(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    for split in ("train", "val", "test"):
        for index in range(len(data.view(split))):
            score = data.score(split, int(data.view(split).table[index]["row"]))
            assert np.array_equal(data.tokenizer.encode(score), data.view(split).body(index))


def test_batches_have_the_shapes_and_kinds_that_training_expects(ready: tuple[Path, Path]) -> None:
    batches = list(module(*ready).train_dataloader())
    assert len(batches) == 6
    for batch in batches:
        assert {tuple(values.shape) for values in batch.values()} == {(2, 400)}
        assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
        assert batch["documents"].dtype == batch["positions"].dtype == torch.int32
        assert {"feature_position", "feature_voice"} <= set(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch_is_exact(ready: tuple[Path, Path], workers: int) -> None:
    straight = module(*ready, num_workers=workers).train_dataloader()
    expected = [*straight, *straight]
    first = module(*ready, num_workers=workers).train_dataloader()
    taken = list(first)
    stream = iter(first)
    taken += [next(stream) for _ in range(2)]
    state = first.state_dict()
    second = module(*ready, num_workers=workers).train_dataloader()
    second.load_state_dict(state)
    taken += list(second)
    assert len(taken) == len(expected) == 12
    assert all(same(*pair) for pair in zip(taken, expected, strict=True))


@pytest.mark.parametrize("taken", [3, 6])  # in an epoch, and at its end
@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_that_nobody_reads_loses_no_batch(ready: tuple[Path, Path], workers: int, taken: int) -> None:
    straight = module(*ready).train_dataloader()
    expected = [*straight, *straight]
    first = module(*ready, num_workers=workers).train_dataloader()
    stream = iter(first)
    for _ in range(taken):
        next(stream)
    second = module(*ready, num_workers=workers).train_dataloader()
    second.load_state_dict(first.state_dict())
    iter(second)
    iter(second)
    rest = list(second)
    assert len(rest) == (6 - taken or 6)
    assert all(same(*pair) for pair in zip(rest, expected[taken:], strict=False))


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
    for split in ("train", "val", "test"):
        one, two = (getattr(data, f"{split}_dataloader")() for data in (alone, helped))
        assert all(same(*pair) for pair in zip(one, two, strict=True))


def test_evaluation_counts_each_body_token_of_each_piece_once(ready: tuple[Path, Path]) -> None:
    data = module(*ready, max_eval_len=256)
    counted = np.zeros(len(data.manifest("val")), int)
    for batch in data.val_dataloader():
        np.add.at(counted, batch["piece"][batch["targets"] >= 0].numpy(), 1)
    lengths = np.zeros_like(counted)
    table = data.view("val").table
    lengths[table["row"]] = table["length"]
    assert counted.tolist() == lengths.tolist()


def test_another_tokenizer_needs_no_parsing(ready: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etude.data.scores.build.fill", None)
    data = module(*ready, tokenizer=MidiTokTokenizer, velocity_shift=1, tempo_scale=[0.9, 1.1])
    batch = next(iter(data.train_dataloader()))
    assert (batch["targets"] >= 0).any()


def test_byte_pairs_are_learnt_once_and_resume_exactly(ready: tuple[Path, Path]) -> None:
    make = functools.partial(MidiTokTokenizer, bpe_vocab_size=1000)
    data, again = (module(*ready, tokenizer=make) for _ in range(2))
    assert len(data.tokenizer) > data.tokenizer.base_size
    assert data.tokenizer.fingerprint == again.tokenizer.fingerprint
    assert all(same(*pair) for pair in zip(data.train_dataloader(), again.train_dataloader(), strict=True))
    counted = sum(int((batch["targets"] >= 0).sum()) for batch in data.val_dataloader())
    view = data.view("val")
    assert counted == sum(len(data.tokenizer.compress(np.array(view.body(i)))) for i in range(len(view)))


def test_complexity_columns_are_there_on_request(ready: tuple[Path, Path]) -> None:
    names = module(*ready, complexity=True).manifest().column_names
    for group in ("rhythmic", "harmonic", "melodic", "structural"):
        assert any(name.startswith(f"complexity_{group}") for name in names)


def test_resuming_on_other_data_is_refused(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    state = data.state_dict()
    data.load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint was trained on dataset"):
        data.load_state_dict({**state, "dataset": "folder-other"})


@pytest.mark.parametrize(("options", "says"), [
    ({"split": [0.5, 0.5, 0.5]}, "split="),
    ({"transpose": [4, -4]}, "transpose="),
    ({"tempo_scale": [0.0, 1.0]}, "tempo_scale="),
    ({"control_dropout": 1.5}, "control_dropout="),
    ({"batch_size": 0}, "batch_size="),
    ({"controls": ["mood"]}, "mood"),
])  # fmt: skip
def test_arguments_out_of_range_are_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        module(tmp_path, tmp_path, **options)
